"""The one meaning of a delta: how chunks change a dict.

Replica and full state both use this, so they cannot drift apart. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk
from broker.protocol.constants import INT_MAX, INT_MIN, OP_DELETE, OP_INCREMENT, OP_SET
from broker.protocol.messages import Batch, Chunk, Operation, Run

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

OPERATIONS: dict[int, Operation] = {
    OP_SET: "set",
    OP_DELETE: "delete",
    OP_INCREMENT: "increment",
}

# Told of deltas that took effect, in columns: operation, keys, values after them, timestamps (of
# which there may be more). It keeps none of the lists.
Observer = Callable[[Operation, Sequence[str], Sequence[Any], Iterable[int]], None]


@dataclass(slots=True)
class Tally:
    """What became of the deltas of one or more batches; the parts add up to `deltas`.

    Attributes:
        deltas: as many as the batch headers promised, or as there were if those are more.
        applied: took effect.
        superseded: already contained in the full state that was loaded.
        refused: an increment of something that is not a number, or beyond the 64-bit range.
        skipped: inside chunks that broke a rule.
    """

    deltas: int = 0
    applied: int = 0
    superseded: int = 0
    refused: int = 0
    skipped: int = 0

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.deltas += other.deltas
        self.applied += other.applied
        self.superseded += other.superseded
        self.refused += other.refused
        self.skipped += other.skipped


@dataclass(frozen=True, slots=True)
class BadChunk:
    """A chunk that broke a rule, for inspection.

    Attributes:
        offset: the batch it was in.
        index: its place in that batch, from 0.
        fault: which rule it broke.
        data: its bytes.
    """

    offset: int
    index: int
    fault: str
    data: bytes


def decode_chunks(batch: Batch) -> tuple[list[Chunk], list[BadChunk]]:
    """Read a batch's chunks; those that break a rule come back apart, whole."""
    chunks: list[Chunk] = []
    bad: list[BadChunk] = []
    for index, data in enumerate(batch.chunks):
        try:
            chunks.append(decode_chunk(data))
        except DecodeError as error:
            bad.append(BadChunk(batch.offset, index, str(error), data))
    return chunks, bad


def fold(
    values: dict[str, Any],
    batch: Batch,
    chunks: Iterable[Chunk],
    floors: dict[str, int] | None = None,
    observe: Observer | None = None,
    *,
    tables: ShardTables | None = None,
    note_fault: Callable[[str], object] | None = None,
) -> Tally:
    """Apply a batch's readable chunks to `values` and `tables`, in order.

    Args:
        values: changed in place.
        batch: the batch, for its offset and the number of deltas promised.
        chunks: what `decode_chunks` could read of it.
        floors: key -> offset up to which `values` already holds that key; its deltas at or below
            are superseded. None or empty: nothing is.
        observe: called for the deltas that took effect on `values`, one or more in the same order.
        tables: changed in place; None: what is for tables counts as skipped.
        note_fault: told of each rule that a chunk's part for tables broke.

    Returns:
        What became of each delta.
    """
    tally = Tally()
    seen = 0
    for chunk in chunks:
        for run in chunk.runs:
            seen += len(run.keys)
            if floors:
                run = _above(run, floors, batch.offset, tally)  # noqa: PLW2901 - same run, narrowed
            tally.refused += (
                _APPLY[run.op](values, run)
                if observe is None
                else _observed(values, run, observe, chunk.time_ms)
            )
        if tables is not None and (chunk.tables or chunk.tables_fault):
            outcome = tables.apply(chunk, batch.offset)
            seen += outcome.applied + outcome.superseded + outcome.refused
            tally.superseded += outcome.superseded
            tally.refused += outcome.refused
            if outcome.fault and note_fault is not None:
                note_fault(outcome.fault)
    # A producer that told too few deltas is believed what it sent.
    tally.deltas = max(batch.deltas, seen)
    tally.skipped = tally.deltas - seen
    tally.applied = seen - tally.superseded - tally.refused
    return tally


def _above(run: Run, floors: dict[str, int], offset: int, tally: Tally) -> Run:
    """The part of a run that the loaded state does not hold yet."""
    keep = [n for n, key in enumerate(run.keys) if floors.get(key, 0) < offset]
    tally.superseded += len(run.keys) - len(keep)
    return Run(
        run.op,
        [run.keys[n] for n in keep],
        run.values and [run.values[n] for n in keep],
        run.timestamps and [run.timestamps[n] for n in keep],
    )


def _apply_set(values: dict[str, Any], run: Run) -> int:
    values.update(zip(run.keys, run.values or (), strict=True))
    return 0


def _apply_delete(values: dict[str, Any], run: Run) -> int:
    for key in run.keys:
        values.pop(key, None)
    return 0


def _apply_increment(values: dict[str, Any], run: Run) -> int:
    refused = 0
    for key, amount in zip(run.keys, run.values or (), strict=True):
        total = incremented(values.get(key, 0), amount)
        if total is None:
            refused += 1
        else:
            values[key] = total
    return refused


def incremented(value: Any, amount: Any) -> int | float | None:
    """Return value + amount, or None where the delta is refused.

    Integers stay integers within the 64-bit range; as soon as one side is a float the sum is a
    float64. Bools and everything else are not numbers.
    """
    if type(value) is int:
        total = value + amount
        if type(total) is int and not INT_MIN <= total <= INT_MAX:
            return None
        return total  # type: ignore[no-any-return]
    return value + amount if type(value) is float else None


_APPLY = {OP_SET: _apply_set, OP_DELETE: _apply_delete, OP_INCREMENT: _apply_increment}


def _observed(values: dict[str, Any], run: Run, observe: Observer, time_ms: int) -> int:
    """Apply a run so that each delta's outcome can be told."""
    operation = OPERATIONS[run.op]
    stamps: Iterable[int] = run.timestamps or repeat(time_ms)
    if run.op == OP_SET:
        _apply_set(values, run)
        observe(operation, run.keys, run.values or (), stamps)
        return 0
    keys: list[str] = []
    outcome: list[Any] = []
    when: list[int] = []
    refused = 0
    for key, given, stamp in zip(run.keys, run.values or repeat(None), stamps, strict=False):
        if run.op == OP_DELETE:
            if values.pop(key, _ABSENT) is _ABSENT:
                continue
            value = None
        else:
            value = incremented(values.get(key, 0), given)
            if value is None:
                refused += 1
                continue
            values[key] = value
        keys.append(key)
        outcome.append(value)
        when.append(stamp)
    if keys:
        observe(operation, keys, outcome, when)
    return refused


_ABSENT = object()
