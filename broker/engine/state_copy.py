"""A copy of a shard's keys and cells at one moment, to compare with Redis while batches go on."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from broker.backend.page_sizes import SLICE_KEYS
from broker.protocol.digest import Digest, range_of
from broker.protocol.fields import content_of
from broker.protocol.messages import Cell


class StateCopy:
    """Keys and cells in two columns: a dict of as many keys takes twice the memory.

    What goes through all of it does so a slice at a time, so that other tasks can run.

    Args:
        values: by key; may change afterwards.
    """

    __slots__ = ("_cells", "_keys")

    def __init__(self, values: Mapping[str, Cell]) -> None:
        self._keys = list(values)
        self._cells = list(values.values())

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._keys)

    async def digest(self) -> Digest:
        """Return the digest of all."""
        digest = Digest()
        for at in range(0, len(self), SLICE_KEYS):
            part = slice(at, at + SLICE_KEYS)
            digest.add_all(
                [key.encode() for key in self._keys[part]],
                [content_of(cell) for cell in self._cells[part]],
            )
            await asyncio.sleep(0)
        return digest

    async def part(self, ranges: Collection[int]) -> dict[str, Cell]:
        """Return the keys that are in key ranges, and their cells."""
        found: dict[str, Cell] = {}
        for at in range(0, len(self), SLICE_KEYS):
            part = slice(at, at + SLICE_KEYS)
            found.update(
                (key, cell)
                for key, cell in zip(self._keys[part], self._cells[part], strict=True)
                if range_of(key) in ranges
            )
            await asyncio.sleep(0)
        return found
