"""The fast way into a producer's buffer: plain sets gather without a lock, and move on in bulk.

`Producer.set` is called a million times a second, from any thread. A plain delta (a short ASCII
key, a number, bool, None or short ASCII text) is put behind the others in one step of the
interpreter, and nothing else happens. The buffer takes what gathered, under its lock, whenever
order or counts matter to anybody.

Invariants:
1. Room for as many as `limit` allows was taken from the buffer before: they always fit.
2. `limit` is 0 unless the lane's open columns hold a delta. So the first delta of a chunk goes the
   exact way, which notes when it came and wakes the sender; whoever finds 0 goes that way.
3. Who sets `limit` to 0 takes the items after; who added an item looks at `limit` after. One of the
   two sees the other, so no item is forgotten.
"""

from __future__ import annotations

from typing import Any, Final

from broker.protocol.values import HEAD_BYTES, SCALAR_BYTES

SHORT: Final = 64
PLAIN_BYTES: Final = 2 * SHORT + HEAD_BYTES + SCALAR_BYTES  # at most, as `plain_size` counts
MAX_KNOWN: Final = 1 << 16  # keys of which it is remembered that they are plain, and of which lane
MAX_PLAIN: Final = 256  # deltas between two looks at the lock

PLAIN_TYPES: Final = frozenset((float, bool, type(None)))  # of any value


class Intake:
    """Plain sets of one lane that are not in its columns yet.

    Attributes:
        items: key, value, key, value ...
        limit: so many items may be there; 0: none may be added.
    """

    __slots__ = ("items", "limit")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.limit = 0

    def take(self) -> tuple[list[str], list[Any]]:
        """Take all out, as columns; the caller holds the buffer's lock."""
        items = self.items
        # Others may add behind these meanwhile.
        count = len(items)
        keys, values = items[0:count:2], items[1:count:2]
        del items[:count]
        return keys, values


def plain_size(keys: list[str], values: list[Any]) -> int:
    """Return an upper bound of the packed size of plain keys and values in bytes."""
    size = sum(map(len, keys)) + (HEAD_BYTES + SCALAR_BYTES) * len(keys)
    if str in set(map(type, values)):
        size += sum(len(value) for value in values if value.__class__ is str)
    return size
