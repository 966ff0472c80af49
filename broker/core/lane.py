"""One shard's deltas before Redis accepts them: columns that fill, chunks in flight. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.core.fast_path import Intake
from broker.core.key_ids import LaneNames
from broker.protocol.constants import MAX_NAME_LENGTH
from broker.protocol.messages import Run, TableKey, TableRun
from broker.protocol.operations import OP_SET, OPERATIONS, Column
from broker.protocol.table_codec import merged, table_run_size
from broker.protocol.values import STAMP_BYTES, admit_given, admit_key

# A chunk's own fields beside its runs, at most: array, version, node, three numbers, array of runs.
CHUNK_HEAD_BYTES = 1 + 1 + (2 + MAX_NAME_LENGTH) + 3 * 9 + 5
# A run's own fields beside its columns.
RUN_BYTES = 20


@dataclass(slots=True)
class Columns:
    """Deltas of one future chunk, in runs of one operation.

    Attributes:
        size: upper bound of the packed size in bytes.
        since: monotonic seconds of the first delta; its age counts from here.
        ticket: number among the lane's closed columns, for callers that wait for them.
    """

    since: float = 0.0
    ticket: int = 0
    runs: list[Run] = field(default_factory=list)
    tables: list[TableRun] = field(default_factory=list)
    count: int = 0
    size: int = CHUNK_HEAD_BYTES

    def overhead(self, op: int) -> int:
        """Return the bytes that another delta of an operation adds to the chunk beside its own."""
        if not self.count:
            return CHUNK_HEAD_BYTES + RUN_BYTES
        return 0 if self.runs and self.runs[-1].op == op else RUN_BYTES

    def append(self, op: int, key: str, value: Any, stamp: int | None, size: int) -> None:
        """Add one delta behind the others; its own bytes are given."""
        runs = self.runs
        if not runs or runs[-1].op != op:
            size += RUN_BYTES
            has_values = OPERATIONS[op].column is not Column.NOTHING
            runs.append(Run(op, [], [] if has_values else None, None if stamp is None else []))
        run = runs[-1]
        run.keys.append(key)
        if run.values is not None:
            run.values.append(value)
        if run.timestamps is not None and stamp is not None:
            run.timestamps.append(stamp)
        self.count += 1
        self.size += size

    def extend(
        self, op: int, keys: Sequence[str], values: Sequence[Any], stamp: int | None, size: int
    ) -> None:
        """Add many deltas of one operation, a column at a time, as a run of their own."""
        size += RUN_BYTES
        stamps = None if stamp is None else [stamp] * len(keys)
        self.runs.append(Run(op, list(keys), list(values), stamps))
        self.count += len(keys)
        self.size += size

    def extend_plain(self, keys: list[str], values: list[Any], size: int) -> None:
        """Add many sets without timestamps of their own behind the others."""
        last = self.runs[-1] if self.runs else None
        if last is not None and last.op == OP_SET and last.values is not None:
            last.keys.extend(keys)
            last.values.extend(values)
            self.count += len(keys)
            self.size += size
        else:
            self.extend(OP_SET, keys, values, None, size)

    def add_table_run(self, run: TableRun, size: int) -> None:
        """Add deltas of a table behind the others; their own bytes are given."""
        self.tables.append(run)
        self.count += run.deltas
        self.size += size

    def conflate(self, overwritten: set[str]) -> int:
        """Drop each delta that a newer set or delete of its key overwrites.

        Args:
            overwritten: keys that later columns set or delete; this one's are added.

        Returns:
            How many were dropped.
        """
        kept = [_drop_overwritten(overwritten, run) for run in reversed(self.runs)]
        kept = [run for run in reversed(kept) if run.keys]
        tables = _conflated(self.tables) if self.tables else []
        count = sum(len(run.keys) for run in kept) + sum(run.deltas for run in tables)
        dropped = self.count - count
        if dropped:
            self.runs, self.tables = kept, tables
            self.count -= dropped
            self.size = CHUNK_HEAD_BYTES + sum(map(size_of, kept))
            self.size += sum(map(table_run_size, self.tables))
        return dropped

    def join(self, later: Columns) -> None:
        """Append the deltas of columns that were closed after these."""
        last, first = self.runs[-1:], later.runs[:1]
        if (
            last
            and first
            and last[0].op == first[0].op
            and (last[0].timestamps is None) == (first[0].timestamps is None)
        ):
            _extend(last[0], first[0])
            self.runs += later.runs[1:]
        else:
            self.runs += later.runs
        self.tables += later.tables
        self.count += later.count
        self.size += later.size - CHUNK_HEAD_BYTES
        self.ticket = later.ticket


@dataclass(frozen=True, slots=True)
class Packed:
    """A numbered chunk, ready to be appended.

    Attributes:
        number: 1, 2, 3 ... in its lane.
        deltas: how many it holds.
        total: deltas of the lane up to and including this chunk.
        since: monotonic seconds of its oldest delta.
        ticket: that of its columns.
        data: the bytes.
        defined: table -> how many ids of text keys the chunks before it define.
    """

    number: int
    deltas: int
    total: int
    since: float
    ticket: int
    data: bytes
    defined: Mapping[TableKey, int] = field(default_factory=dict)


@dataclass(slots=True)
class Lane:
    """One shard's deltas before Redis accepts them, and those kept after."""

    shard: int
    incarnation: int = 0
    intake: Intake = field(init=False)
    names: LaneNames = field(default_factory=LaneNames)
    reserved: int = 0
    open: Columns = field(default_factory=Columns)
    closed: deque[Columns] = field(default_factory=deque)
    resend: deque[Packed] = field(default_factory=deque)
    in_flight: deque[Packed] = field(default_factory=deque)
    kept: deque[tuple[Packed, float]] = field(default_factory=deque)
    kept_bytes: int = 0
    tickets: int = 0
    number: int = 0
    packed: int = 0
    buffered: int = 0
    accepted: int = 0
    accepted_number: int = 0
    conflated: int = 0
    lost: int = 0
    gone: list[tuple[int, int]] = field(default_factory=list)
    resent: int = 0

    def __post_init__(self) -> None:
        """Give it an intake of its own."""
        self.intake = Intake(self.shard)

    def begin(self, incarnation: int) -> None:
        """Number chunks for this incarnation of the node name."""
        self.incarnation = incarnation

    @property
    def pending(self) -> int:
        """Deltas that Redis has not accepted yet."""
        return self.buffered - self.conflated - self.accepted

    def lose(self, first: int, end: int) -> int:
        """Count deltas `first` to before `end` as lost; return how many were not counted before.

        A later loss may reach further back than an earlier one, or repeat it.
        """
        if first >= end:
            return 0
        known = sum(max(0, min(stop, end) - max(start, first)) for start, stop in self.gone)
        kept = [(start, min(stop, first)) for start, stop in self.gone if start < first]
        self.gone = [*kept, (first, end)]
        lost = end - first - known
        self.lost += lost
        return lost

    def outstanding(self, ticket: int) -> bool:
        """Whether columns with this ticket or an older one still have to reach Redis."""
        return (
            (bool(self.in_flight) and self.in_flight[0].ticket <= ticket)
            or (bool(self.resend) and self.resend[0].ticket <= ticket)
            or (bool(self.closed) and self.closed[0].ticket <= ticket)
        )


def _conflated(runs: list[TableRun]) -> list[TableRun]:
    from broker.core.tables.conflate import conflated  # noqa: PLC0415 - needs numpy, which is here then

    return conflated(merged(runs))


def _drop_overwritten(overwritten: set[str], run: Run) -> Run:
    """Return the deltas of a run that nothing newer overwrites; add what it overwrites itself."""
    keep = []
    overwrites = OPERATIONS[run.op].overwrites
    for n in range(len(run.keys) - 1, -1, -1):
        if run.keys[n] not in overwritten:
            keep.append(n)
            if overwrites:
                overwritten.add(run.keys[n])
    keep.reverse()
    return run if len(keep) == len(run.keys) else select(run, keep)


def _extend(run: Run, more: Run) -> None:
    run.keys.extend(more.keys)
    if run.values is not None:
        run.values.extend(more.values or ())
    if run.timestamps is not None:
        run.timestamps.extend(more.timestamps or ())


def select(run: Run, indices: list[int]) -> Run:
    """Return the part of a run at these places."""
    return Run(
        run.op,
        [run.keys[n] for n in indices],
        None if run.values is None else [run.values[n] for n in indices],
        None if run.timestamps is None else [run.timestamps[n] for n in indices],
    )


def size_of(run: Run) -> int:
    """Return an upper bound of a run's packed size in bytes, as its deltas were counted."""
    size = RUN_BYTES + sum(map(admit_key, run.keys))
    column = OPERATIONS[run.op].column
    size += sum(admit_given(column, value)[1] for value in run.values or ())
    return size + STAMP_BYTES * len(run.timestamps or ())
