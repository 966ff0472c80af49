"""The deltas of one future chunk, in columns. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.core.chunk_size import CHUNK_HEAD_BYTES, RUN_BYTES, size_of
from broker.protocol.messages import Run, TableRun
from broker.protocol.operations import OP_SET, OPERATIONS, Column
from broker.protocol.table_codec import merged, table_run_size


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

    def recount(self) -> None:
        """Drop a delta that was added to some columns only, and count the others again."""
        for run in self.runs:
            columns = [
                column for column in (run.keys, run.values, run.timestamps) if column is not None
            ]
            count = min(map(len, columns))
            for column in columns:
                del column[count:]
        self.runs = [run for run in self.runs if run.keys]
        self.count = sum(len(run.keys) for run in self.runs)
        self.count += sum(run.deltas for run in self.tables)
        self.size = CHUNK_HEAD_BYTES + sum(map(size_of, self.runs))
        self.size += sum(map(table_run_size, self.tables))

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
