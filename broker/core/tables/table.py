"""One table of one shard: what its arrays hold, and how deltas change them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from broker.core.tables.index import NameIndex, NumberIndex, Slots, U64s
from broker.protocol.constants import BLOCK_SLOTS
from broker.protocol.messages import IdRange, TableDefine, TableKey, TableRun
from broker.protocol.operations import OP_RECORDS, Operation, op_of_part

Column: TypeAlias = "npt.NDArray[Any]"

INT64_SAFE = float(1 << 62)  # sums below it cannot leave int64, rounding of floats included
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1

_ID = np.dtype("<u4")
_STAMP = np.dtype("<i8")
NO_SLOTS: Slots = np.zeros(0, dtype=np.int64)


# One counter for all tables: a reloaded table must not repeat a revision that readers saw.
_REVISIONS = count(1)


def next_revision() -> int:
    """Return a number above all that were returned before."""
    return next(_REVISIONS)


class Count(NamedTuple):
    """After the batch of an offset, a producer had so many ids."""

    ids: int
    offset: int


@dataclass(slots=True)
class NodeIds:
    """The slots of one producer's ids in a table.

    Attributes:
        slots: of ids 0 to `known` - 1; longer than that.
        known: how many ids are defined.
        is_plain: each id is its own slot, as it is with one producer.
        ended: offset of the batch after which they are not used any more; 0: they are in use.
        changed: since the full state was written.
        counts: since when how many are defined; kept only for who writes the full state.
    """

    slots: Slots
    known: int = 0
    is_plain: bool = True
    ended: int = 0
    changed: bool = True
    counts: list[Count] = field(default_factory=list)

    def define(self, first: int, slots: Slots) -> None:
        """Let ids from `first` on mean these slots; those that are known mean them already."""
        end = first + slots.size
        if end <= self.known:
            return
        self.changed = True
        if end > self.slots.size:
            grown = np.zeros(max(end, 2 * self.slots.size), dtype=np.int64)
            grown[: self.known] = self.slots[: self.known]
            self.slots = grown
        self.slots[first:end] = slots
        self.known = end
        self.is_plain = self.is_plain and bool((slots == np.arange(first, end)).all())

    def count(self, offset: int) -> None:
        """Note how many ids there are after the batch of an offset."""
        if not self.counts or self.counts[-1].ids < self.known:
            if self.counts and self.counts[-1].offset == offset:
                self.counts.pop()
            self.counts.append(Count(self.known, offset))

    def forget_counts(self, cut: int) -> None:
        """Drop what no reader needs that begins at `cut` or later."""
        while len(self.counts) > 1 and self.counts[1].offset <= cut:
            del self.counts[0]


class Table:
    """Keys to numbers, in arrays by slot.

    Attributes:
        values: float64 or int64 by slot; 0 where `present` is not set. Longer than there are slots.
        timestamps: int64 by slot, 0 where none was given; None until one is.
        present: which slots hold a value.
        nodes: node -> incarnation -> the slots of its ids.
        floors: block -> offset up to which the block held everything when it was loaded.
        dirty: blocks that changed since `clean()`; None where they are not tracked.
        revision: grows with every chunk that changed something, and with every load.
    """

    def __init__(self, key: TableKey, *, tracks: bool = False) -> None:
        self.key = key
        self.index: NameIndex | NumberIndex = NameIndex() if key.is_named else NumberIndex()
        self.dtype = np.dtype("<f8" if key.is_float else "<i8")
        self.record = np.dtype([("key", "<u8"), ("value", self.dtype), ("timestamp", "<i8")])
        self.values: Column = np.zeros(BLOCK_SLOTS, dtype=self.dtype)
        self.timestamps: npt.NDArray[np.int64] | None = None
        self.present = np.zeros(BLOCK_SLOTS, dtype=np.bool_)
        self.nodes: dict[str, dict[int, NodeIds]] = {}
        self.floors: npt.NDArray[np.int64] | None = None
        self.dirty: npt.NDArray[np.bool_] | None = np.zeros(1, np.bool_) if tracks else None
        self.written_keys = 0
        self.revision = next_revision()
        self._missing = 0
        self._last_keys: U64s = np.zeros(0, dtype=np.uint64)
        self._last_slots: Slots = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        """How many keys have a value."""
        return len(self.index) - self._missing

    # -- ids --------------------------------------------------------------------------------------

    def slots_of_ids(self, node: str, incarnation: int) -> Slots:
        """Return the slots of the ids that a producer has defined and may use."""
        ids = self.nodes.get(node, {}).get(incarnation)
        return NO_SLOTS if ids is None or ids.ended else ids.slots[: ids.known]

    def producers(self) -> Iterator[tuple[str, int, NodeIds]]:
        """Yield node, incarnation and ids of each producer."""
        for node, held in self.nodes.items():
            for incarnation, ids in held.items():
                yield node, incarnation, ids

    def define(self, one: TableDefine, node: str, incarnation: int, offset: int) -> None:
        """Give ids to keys; from 0 on, it ends those of the node's other incarnations."""
        assert isinstance(self.index, NameIndex)  # noqa: S101 - only such tables have ids
        held = self.nodes.setdefault(node, {})
        if not one.first:
            for number, ids in [*held.items()]:
                if not ids.ended and number != incarnation:
                    ids.ended, ids.changed = offset, True
                    if self.dirty is None:
                        # Only who writes the full state has to delete their fields.
                        del held[number]
        slots = self._add_keys(self.index, one.keys)
        mine = held.get(incarnation)
        if mine is None or mine.ended:
            mine = held[incarnation] = NodeIds(slots[:0])
        mine.define(one.first, slots)
        if self.dirty is not None:
            mine.count(offset)

    def forget_ids(self, offset: int) -> None:
        """Drop the ids that ended at or before an offset."""
        kept: dict[str, dict[int, NodeIds]] = {}
        for node, incarnation, ids in self.producers():
            if not ids.ended or ids.ended > offset:
                kept.setdefault(node, {})[incarnation] = ids
        self.nodes = kept

    def _add_keys(self, index: NameIndex | NumberIndex, keys: Any) -> Slots:
        before = len(index)
        slots = index.add(keys)
        count = len(index)
        if count != before:
            self.reserve(count)
            # A block that was loaded early may hold values of keys that come only now.
            self._missing += count - before - int(np.count_nonzero(self.present[before:count]))
            if self.dirty is not None:
                # Each block of keys has one of values, so that readers see if one was lost.
                self.dirty[before // BLOCK_SLOTS : -(-count // BLOCK_SLOTS)] = True
        return slots

    def touch_all(self) -> None:
        """Mark everything as changed since the full state was written."""
        self.written_keys = 0
        if self.dirty is not None:
            self.dirty[: -(-len(self.index) // BLOCK_SLOTS)] = True
        for _, _, ids in self.producers():
            ids.changed = True

    def recount(self) -> None:
        """Count the slots that hold nothing."""
        count = len(self.index)
        self._missing = count - int(np.count_nonzero(self.present[:count]))

    def reserve(self, count: int) -> None:
        """Make the arrays long enough for so many slots."""
        size = self.values.size
        if count <= size:
            return
        size = max(2 * size, -(-count // BLOCK_SLOTS) * BLOCK_SLOTS)
        self.values = _grown(self.values, size)
        if self.timestamps is not None:
            self.timestamps = _grown(self.timestamps, size)
        # Last: threads that read single keys check its length.
        self.present = _grown(self.present, size)
        if self.dirty is not None:
            self.dirty = _grown(self.dirty, size // BLOCK_SLOTS)
        if self.floors is not None:
            self.floors = _grown(self.floors, size // BLOCK_SLOTS)

    # -- deltas -----------------------------------------------------------------------------------

    def apply(self, run: TableRun, node: str, incarnation: int, offset: int) -> tuple[int, int]:
        """Apply a run; return how many deltas were superseded and refused."""
        where, given, times = self._columns(run, node, incarnation)
        superseded = 0
        if self.floors is not None:
            where = _as_slots(where)
            above = self.floors[where // BLOCK_SLOTS] < offset
            superseded = int(above.size - np.count_nonzero(above))
            if superseded:
                where, given = where[above], given[above]
                times = None if times is None else times[above]
        refused = _EFFECTS[op_of_part(run.op).name](self, where, given, times)
        if self.dirty is not None:
            if isinstance(where, slice):
                self.dirty[where.start // BLOCK_SLOTS : -(-where.stop // BLOCK_SLOTS)] = True
            else:
                self.dirty[where // BLOCK_SLOTS] = True
        return superseded, refused

    def _columns(
        self, run: TableRun, node: str, incarnation: int
    ) -> tuple[Slots | slice, Column, Column | None]:
        """Return slots, values (of a delete anything) and timestamps of a run."""
        if run.op == OP_RECORDS and isinstance(run.keys, bytes):
            records = np.frombuffer(run.keys, dtype=self.record)
            where = self._slots_of_numbers(np.ascontiguousarray(records["key"]))
            return where, records["value"], records["timestamp"]
        stamps = run.timestamps
        times = None if stamps is None else np.frombuffer(stamps, dtype=_STAMP)
        slots = self._slots(run.keys, node, incarnation)
        if run.values is None:
            return slots, _as_slots(slots), times
        return slots, np.frombuffer(run.values, dtype=self.dtype), times

    def _slots(self, keys: bytes | IdRange, node: str, incarnation: int) -> Slots | slice:
        if isinstance(keys, IdRange):
            ids = self.nodes[node][incarnation]
            first, end = keys.first, keys.first + keys.size
            # Where ids are slots, a range of them is one copy of memory.
            return slice(first, end) if ids.is_plain else ids.slots[first:end]
        if not self.key.is_named:
            return self._slots_of_numbers(np.frombuffer(keys, dtype="<u8"))
        ids = self.nodes[node][incarnation]
        column = np.frombuffer(keys, dtype=_ID)
        return column.astype(np.int64) if ids.is_plain else ids.slots[column]

    def _slots_of_numbers(self, keys: Any) -> Slots:
        assert isinstance(self.index, NumberIndex)  # noqa: S101 - see Table.__init__
        # Most producers write the same keys repeatedly, and slots never change.
        if np.array_equal(keys, self._last_keys):
            return self._last_slots
        slots = self._add_keys(self.index, keys)
        self._last_keys, self._last_slots = keys, slots
        return slots

    def _set(self, where: Slots | slice, values: Column, times: Column | None) -> int:
        # If a key occurs twice, numpy keeps the last, which is the newest.
        self.values[where] = values
        self._stamp(where, times)
        self._hold(where)
        return 0

    def _hold(self, where: Slots | slice) -> None:
        if self._missing:
            slots = _as_slots(where)
            # Not a count of the whole table: that would cost each run as much as the table is long.
            self._missing -= _count_distinct(slots[~self.present[slots]])
            self.present[slots] = True

    def _stamp(self, where: Slots | slice, times: Column | None) -> None:
        if times is not None and self.timestamps is None:
            self.timestamps = np.zeros(self.values.size, dtype=np.int64)
        if self.timestamps is not None:
            self.timestamps[where] = 0 if times is None else times

    def _delete(self, where: Slots | slice, _values: Column, _times: Column | None) -> int:
        slots = _as_slots(where)
        self._missing += _count_distinct(slots[self.present[slots]])
        # First: threads that read single keys check it after they read the value.
        self.present[slots] = False
        self.values[slots] = 0
        if self.timestamps is not None:
            self.timestamps[slots] = 0
        return 0

    def _increment(self, where: Slots | slice, amounts: Column, times: Column | None) -> int:
        slots, refused = _as_slots(where), 0
        # An absent key holds 0, so it counts as 0.
        if self.key.is_float or _stays_small(self.values[slots], amounts):
            # Infinity and NaN are sums like others.
            with np.errstate(over="ignore", invalid="ignore"):
                np.add.at(self.values, slots, amounts)
        else:
            taken = _add_one_by_one(self.values, slots, amounts)
            refused = int(taken.size - np.count_nonzero(taken))
            slots = slots[taken]
            times = None if times is None else times[taken]
        self._stamp(slots, times)
        self._hold(slots)
        return refused


# What the operations do to arrays; each returns how many deltas it refused.
_EFFECTS: dict[Operation, Callable[[Table, Slots | slice, Column, Column | None], int]] = {
    "set": Table._set,  # noqa: SLF001 - its own
    "delete": Table._delete,  # noqa: SLF001
    "increment": Table._increment,  # noqa: SLF001
}


def _grown(column: Any, size: int) -> Any:
    grown = np.zeros(size, dtype=column.dtype)
    grown[: column.size] = column
    return grown


def _as_slots(where: Slots | slice) -> Slots:
    return np.arange(where.start, where.stop) if isinstance(where, slice) else where


def _count_distinct(slots: Slots) -> int:
    return int(np.unique(slots).size) if slots.size else 0


def _stays_small(values: Column, amounts: Column) -> bool:
    """Whether no order of additions can leave int64."""
    most = np.abs(values.astype(np.float64)).max(initial=0.0)
    return bool(most + np.abs(amounts.astype(np.float64)).sum() < INT64_SAFE)


def _add_one_by_one(values: Column, slots: Slots, amounts: Column) -> npt.NDArray[np.bool_]:
    """Add with Python's own integers; return which additions stayed within int64."""
    taken = np.ones(slots.size, dtype=np.bool_)
    pairs = zip(slots.tolist(), amounts.tolist(), strict=True)
    for n, (slot, amount) in enumerate(pairs):
        total = int(values[slot]) + amount
        if INT64_MIN <= total <= INT64_MAX:
            values[slot] = total
        else:
            taken[n] = False
    return taken
