"""The tree of histories of a server, as a witness read them.

A server that loses data and continues creates a fork: batches with new ids at offsets used before.
Each position is on one branch (`_line`), which begins at offset 0 of an epoch or at a fork.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgpack

from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk
from broker.protocol.constants import INT_MAX, INT_MIN, NO_ID
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Chunk
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.testing.records import Applied, Logged, ShardPosition

Shard = dict[str, Any]


class Lineage:
    """Knows the order of all batches that the witness read, and of those that replicas applied.

    A server that is lost takes batches with it that the witness did not read yet.

    Args:
        logged: the batches that the witness read, in any order; duplicates are allowed.
        applied: those that replicas applied, likewise.
    """

    def __init__(self, logged: Iterable[Logged], applied: Iterable[Applied] = ()) -> None:
        self.batches = {batch.place: batch for batch in logged}
        self._previous = {batch.place: batch.previous for batch in applied}
        self._previous |= {place: batch.previous for place, batch in self.batches.items()}
        self._children: dict[ShardPosition, list[ShardPosition]] = defaultdict(list)
        self._line: dict[ShardPosition, int] = {}
        # For each branch the last position shared with its parent; None for a root.
        self._fork: list[ShardPosition | None] = []
        # Batches that the witness read go before others: what it read is one branch.
        known = sorted(self._previous, key=lambda place: (place.offset, place not in self.batches))
        for place in known:
            self._children[self.before(place)].append(place)
        for place in known:
            self._join(place)

    def _join(self, place: ShardPosition) -> None:
        before = self.before(place)
        is_first = self._children[before][0] == place
        if before in self._line and is_first:
            self._line[place] = self._line[before]
            return
        self._fork.append(before if before in self._line else None)
        self._line[place] = len(self._fork) - 1

    def before(self, place: ShardPosition) -> ShardPosition:
        """Return the position before a batch."""
        return ShardPosition(place.shard, place.epoch, place.offset - 1, self._previous[place])

    def contains(self, later: ShardPosition, earlier: ShardPosition) -> bool:
        """Whether the history up to `later` contains the whole history up to `earlier`."""
        if (later.shard, later.epoch) != (earlier.shard, earlier.epoch):
            return False
        if earlier.offset == 0 or later == earlier:
            return True
        if later not in self._line or earlier not in self._line:
            return False
        at: ShardPosition | None = later
        while at is not None and at.offset >= earlier.offset:
            if self._line[at] == self._line[earlier]:
                return True
            at = self._fork[self._line[at]]
        return False

    def chain(self, place: ShardPosition) -> list[Logged]:
        """Return the recorded batches up to a position, in order."""
        found = []
        while place in self.batches:
            found.append(self.batches[place])
            place = self.before(place)
        return found[::-1]

    def states(self, wanted: Iterable[ShardPosition]) -> Iterator[tuple[ShardPosition, Shard]]:
        """Yield the content of the shard at each wanted position: key -> value."""
        asked = set(wanted)
        for place in asked:
            if place.offset == 0:
                yield place, {}
        roots = [
            place
            for place, batch in self.batches.items()
            if place.offset == 1 and batch.previous == NO_ID
        ]
        open_ends: list[tuple[ShardPosition, Shard]] = [(root, {}) for root in roots]
        while open_ends:
            place, state = open_ends.pop()
            while True:
                for chunk in readable(self.batches[place].chunks):
                    apply(state, chunk)
                if place in asked:
                    yield place, {key: _value(cell) for key, cell in state.items()}
                children = [one for one in self._children[place] if one in self.batches]
                if not children:
                    break
                open_ends += [(child, dict(state)) for child in children[1:]]
                place = children[0]


_FRAMES: Final = FrameReader()


def readable(chunks: Iterable[bytes]) -> Iterator[Chunk]:
    """Yield the valid chunks."""
    for data in chunks:
        try:
            yield decode_chunk(data, _FRAMES)
        except DecodeError:
            continue


def apply(state: Shard, chunk: Chunk) -> None:
    """Apply a chunk as PROTOCOL.md specifies, independently of the code under test.

    Raises:
        ValueError: it has an operation that is not implemented here.
    """
    for run in chunk.runs:
        if run.op == OP_DELETE:
            for key in run.keys:
                state.pop(key, None)
        elif run.op == OP_SET:
            state.update(zip(run.keys, run.values or (), strict=True))
        elif run.op == OP_INCREMENT:
            for key, amount in zip(run.keys, run.values or (), strict=True):
                total = _sum(state.get(key, 0), amount)
                if total is not None:
                    state[key] = total
        else:
            raise ValueError(f"apply() does not implement operation {run.op}; add it")


def _value(cell: Any) -> Any:
    """Unpack what is packed, independently of the code under test too."""
    return msgpack.unpackb(cell, timestamp=3) if type(cell) is bytes else cell


def _sum(value: Any, amount: Any) -> int | float | None:
    if type(value) not in (int, float):
        return None
    if isinstance(value, float) or isinstance(amount, float):
        return float(value) + float(amount)
    total: int = value + amount
    return total if INT_MIN <= total <= INT_MAX else None
