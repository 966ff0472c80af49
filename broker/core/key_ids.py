"""Ids of text keys: a producer's chunks have to define an id before they use it. No I/O.

An id means the same key for as long as the producer lives, so defining it again does no harm. That
is done when Redis lost chunks that are no longer kept: kept chunks may use ids that they defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from broker.protocol.messages import TableDefine, TableKey, TableOp
from broker.protocol.table_codec import HEAD_BYTES
from broker.protocol.values import admit_key

# Of a define beside its keys, and of a chunk that carries nothing else.
DEFINE_BYTES: Final = HEAD_BYTES + 100

# How many ids of each table are defined.
Defined = Mapping[TableKey, int]


class LaneNames:
    """The text keys of one shard's tables that this producer used.

    Attributes:
        defined: table -> how many ids were packed into chunks.
        waiting_bytes: upper bound of the packed size of the others.
    """

    def __init__(self) -> None:
        self.defined: Defined = {}
        self.waiting_bytes = 0
        self._keys: dict[TableKey, list[str]] = {}
        # Chunks that define ids, by their numbers: what was defined before each.
        self._chunks: list[tuple[int, Defined]] = []

    def head_bytes(self, table: TableKey) -> int:
        """Return what the next new key of a table needs beside its own bytes."""
        waits = len(self._keys.get(table, ())) > self.defined.get(table, 0)
        return 0 if waits else DEFINE_BYTES

    def add(self, table: TableKey, key: str, size: int) -> int:
        """Give the next id to a key; `size` is what it needs in bytes, beside `head_bytes`."""
        self.waiting_bytes += size + self.head_bytes(table)
        keys = self._keys.setdefault(table, [])
        keys.append(key)
        return len(keys) - 1

    def take(self, number: int, max_bytes: int) -> tuple[list[TableOp], int]:
        """Return defines of what waits, about so many bytes of it, and their bytes.

        Args:
            number: of the chunk that they are for.
            max_bytes: no key is begun beyond.
        """
        everything = {table: len(keys) for table, keys in self._keys.items()}
        waiting, before = self.waiting_bytes, self.defined
        defines, self.defined = self._some(before, everything, max_bytes)
        if defines:
            self._chunks.append((number, before))
        self.waiting_bytes = self._bytes_beyond(self.defined)
        return defines, waiting - self.waiting_bytes

    def requeue(self, number: int) -> int:
        """Queue the ids again that chunks from a number on defined; return their size in bytes."""
        waiting, self.defined = self.waiting_bytes, self._before(number)
        self._chunks = [one for one in self._chunks if one[0] < number]
        self.waiting_bytes = self._bytes_beyond(self.defined)
        return self.waiting_bytes - waiting

    def again(
        self, number: int, end: int, until: Defined, max_bytes: int
    ) -> list[tuple[int, list[TableOp], Defined]]:
        """Return the defines of chunks `number` to `end`, to be sent under their last numbers.

        Args:
            number: of the first chunk that is lost.
            end: of the last.
            until: what is defined before the chunk after it.
            max_bytes: of one of the chunks, about.

        Returns:
            number, defines and what is defined before, for each chunk to be made.
        """
        known, groups = self._before(number), list[tuple[list[TableOp], Defined]]()
        while any(known.get(table, 0) < count for table, count in until.items()):
            defines, then = self._some(known, until, max_bytes)
            groups.append((defines, known))
            known = then
        made = [
            (at, *group)
            for at, group in zip(range(end + 1 - len(groups), end + 1), groups, strict=True)
        ]
        self._chunks = [
            *(one for one in self._chunks if one[0] < number),
            *((at, before) for at, _, before in made),
            *(one for one in self._chunks if one[0] > end),
        ]
        return made

    def _before(self, number: int) -> Defined:
        """Return what chunks before a number define."""
        return next((before for at, before in self._chunks if at >= number), self.defined)

    def _some(
        self, known: Defined, until: Defined, max_bytes: int
    ) -> tuple[list[TableOp], Defined]:
        """Return defines of ids from `known` to `until`, and what is defined with them."""
        defines: list[TableOp] = []
        size = 0
        for table, stop in until.items():
            keys, first = self._keys[table], known.get(table, 0)
            end = first
            while end < stop and size < max_bytes:
                size += admit_key(keys[end])
                end += 1
            if end > first:
                defines.append(TableDefine(table, first, keys[first:end]))
                # Not changed in place: packed chunks refer to the ids defined before them.
                known = {**known, table: end}
        return defines, known

    def _bytes_beyond(self, known: Defined) -> int:
        return sum(_bytes_of(keys[known.get(table, 0) :]) for table, keys in self._keys.items())


def _bytes_of(keys: Iterable[str]) -> int:
    size = sum(map(admit_key, keys))
    return size + DEFINE_BYTES if size else 0
