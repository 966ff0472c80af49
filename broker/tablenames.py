"""Ids of text keys: what a producer's chunks have to say before they use one. No I/O.

An id means the same key for as long as the producer lives, so defining it again does no harm. That
is done when Redis lost chunks that are no longer kept: theirs may be the definitions of what is.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker.model import TableDefine, TableKey, TablePart
from broker.values import admit_key


class LaneNames:
    """The text keys of one shard's tables, as far as this producer used them.

    Attributes:
        defined: table -> how many ids were packed into chunks.
        waiting_bytes: upper bound of the packed size of the others.
    """

    def __init__(self) -> None:
        self.defined: dict[TableKey, int] = {}
        self.waiting_bytes = 0
        self._keys: dict[TableKey, list[str]] = {}

    def add(self, table: TableKey, key: str, size: int) -> int:
        """Give the next id to a key; `size` is what it needs in bytes."""
        keys = self._keys.setdefault(table, [])
        keys.append(key)
        self.waiting_bytes += size
        return len(keys) - 1

    def take(
        self, most_bytes: int, until: Mapping[TableKey, int] | None = None
    ) -> tuple[list[TablePart], int]:
        """Return defines of what waits, about so many bytes of it, and their bytes.

        Args:
            most_bytes: no key is begun beyond.
            until: table -> how many ids to define at most; None: all.
        """
        defines: list[TablePart] = []
        size = 0
        for table, keys in self._keys.items():
            first = end = self.defined.get(table, 0)
            stop = len(keys) if until is None else until.get(table, 0)
            while end < stop and size < most_bytes:
                size += admit_key(keys[end])
                end += 1
            if end > first:
                defines.append(TableDefine(table, first, keys[first:end]))
                # Not changed in place: packed chunks hold on to what was defined before them.
                self.defined = self.defined | {table: end}
        self.waiting_bytes -= size
        return defines, size

    def forget(self, known: Mapping[TableKey, int]) -> int:
        """Let only so many ids count as defined; return by how many bytes more waits."""
        size = sum(
            sum(map(admit_key, keys[known.get(table, 0) : self.defined.get(table, 0)]))
            for table, keys in self._keys.items()
        )
        self.defined = dict(known)
        self.waiting_bytes += size
        return size
