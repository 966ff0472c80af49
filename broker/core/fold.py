"""How chunks change a dict: the one definition of what a delta does.

Replica and full state both use it, so they cannot differ. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Batch, Cell, Chunk, Run
from broker.protocol.operations import OPERATIONS, Operation

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

NAMED_REFUSED = 5  # of one run

# Called with deltas that took effect, in columns: operation, keys, values after them, timestamps.
# It may keep the columns, which nobody changes any more.
Observer = Callable[[Operation, Sequence[str], Sequence[Any], Sequence[int]], None]


@dataclass(slots=True)
class Tally:
    """Counts of the deltas of one or more batches; the other counts add up to `deltas`.

    Attributes:
        deltas: the number in the batch headers, or the number found if that is larger.
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


def decode_chunks(
    batch: Batch, frames: FrameReader | None = None
) -> tuple[list[Chunk], list[BadChunk]]:
    """Decode a batch's chunks; those that break a rule are returned separately, as bytes.

    Args:
        batch: the batch.
        frames: opens what is compressed; None: the namespace lacks the word `compress`.
    """
    chunks: list[Chunk] = []
    bad: list[BadChunk] = []
    for index, data in enumerate(batch.chunks):
        try:
            chunks.append(decode_chunk(data, frames))
        except DecodeError as error:
            bad.append(BadChunk(batch.offset, index, str(error), data))
    return chunks, bad


def fold(
    values: dict[str, Cell],
    batch: Batch,
    chunks: Iterable[Chunk],
    floors: dict[str, int] | None = None,
    observe: Observer | None = None,
    *,
    damaged: set[str] | None = None,
    tables: ShardTables | None = None,
    note_fault: Callable[[str], object] | None = None,
    note_refused: Callable[[str, str], object] | None = None,
) -> Tally:
    """Apply a batch's readable chunks to `values` and `tables`, in order.

    Args:
        values: changed in place.
        batch: the batch, for its offset and the number of deltas in its header.
        chunks: those that `decode_chunks` could decode.
        floors: key -> offset up to which `values` already holds that key; its deltas at or below
            are superseded. None or empty: none are.
        observe: called for the deltas that took effect on `values`, one or more in the same order.
        damaged: keys whose value in the full state cannot be read: deltas that go on from it are
            refused, others give the key a value again, or remove it, and take it out of here.
        tables: changed in place; None: deltas for tables count as skipped.
        note_fault: called with each rule that a chunk's part for tables broke.
        note_refused: called with key and node of deltas that were refused, of some in each run.

    Returns:
        The counts of the batch's deltas.
    """
    tally = Tally()
    seen = 0
    for chunk in chunks:
        for run in chunk.runs:
            seen += len(run.keys)
            if floors:
                run = _above(run, floors, batch.offset, tally)  # noqa: PLW2901 - same run, narrowed
            if damaged:
                run = _readable(run, damaged, tally)  # noqa: PLW2901 - likewise
            op = OPERATIONS[run.op]
            after, unchanged = op.effect(values, run.keys, run.values)
            if unchanged and op.refuses:
                tally.refused += len(unchanged)
                _name(note_refused, run, unchanged, chunk.node)
            if observe is not None:
                _report(observe, op.name, run, after, unchanged, chunk.time_ms)
        if tables is not None and (chunk.tables or chunk.tables_fault):
            outcome = tables.apply(chunk, batch.offset)
            seen += outcome.applied + outcome.superseded + outcome.refused
            tally.superseded += outcome.superseded
            tally.refused += outcome.refused
            if outcome.fault and note_fault is not None:
                note_fault(outcome.fault)
    # If the header names fewer deltas than were found, the number found counts.
    tally.deltas = max(batch.deltas, seen)
    tally.skipped = tally.deltas - seen
    tally.applied = seen - tally.superseded - tally.refused
    return tally


def _name(
    note_refused: Callable[[str, str], object] | None,
    run: Run,
    refused: Sequence[int],
    node: str,
) -> None:
    """Note the first deltas of a run that were refused."""
    if note_refused is not None:
        for n in refused[:NAMED_REFUSED]:
            note_refused(run.keys[n], node)


def _above(run: Run, floors: dict[str, int], offset: int, tally: Tally) -> Run:
    """The part of a run that the loaded state does not hold yet."""
    keep = [n for n, key in enumerate(run.keys) if floors.get(key, 0) < offset]
    tally.superseded += len(run.keys) - len(keep)
    return _picked(run, keep)


def _readable(run: Run, damaged: set[str], tally: Tally) -> Run:
    """The part of a run that does not go on from a damaged value."""
    if OPERATIONS[run.op].overwrites:
        damaged.difference_update(run.keys)
        return run
    keep = [n for n, key in enumerate(run.keys) if key not in damaged]
    tally.refused += len(run.keys) - len(keep)
    return _picked(run, keep)


def _picked(run: Run, keep: list[int]) -> Run:
    return Run(
        run.op,
        [run.keys[n] for n in keep],
        run.values and [run.values[n] for n in keep],
        run.timestamps and [run.timestamps[n] for n in keep],
    )


def _report(  # noqa: PLR0917 - the columns of the deltas
    observe: Observer,
    operation: Operation,
    run: Run,
    after: Iterable[Any],
    unchanged: Sequence[int],
    time_ms: int,
) -> None:
    """Call an observer with the deltas of a run that took effect."""
    keys, values = run.keys, after if type(after) is list else [*after]
    stamps = run.timestamps or [time_ms] * len(keys)
    if unchanged:
        took = [True] * len(keys)
        for n in unchanged:
            took[n] = False
        keys, values, stamps = ([*compress(one, took)] for one in (keys, values, stamps))
    if keys:
        observe(operation, keys, values, stamps)
