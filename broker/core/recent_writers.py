"""Which nodes wrote the values that a shard received last. No I/O; bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from broker.protocol.messages import Chunk
from broker.protocol.operations import OP_SET

KEPT_KEYS: Final = 2_000  # of a shard


class RecentWriters:
    """The nodes of the last chunks, to name who wrote a value that cannot be read.

    A shard does not remember who wrote each key: that would cost as much memory as small values do.
    """

    def __init__(self) -> None:
        self._runs: deque[tuple[str, list[str]]] = deque()
        self._keys = 0

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Note the sets of chunks; the oldest are forgotten."""
        for chunk in chunks:
            for run in chunk.runs:
                if run.op == OP_SET:
                    self._runs.append((chunk.node, run.keys))
                    self._keys += len(run.keys)
        while self._keys > KEPT_KEYS and len(self._runs) > 1:
            self._keys -= len(self._runs.popleft()[1])

    def clear(self) -> None:
        """Forget all: another history may have other writers."""
        self._runs.clear()
        self._keys = 0

    def node_of(self, key: str) -> str | None:
        """Return the node that set a key last; None if that was too long ago. On any thread."""
        for node, keys in reversed(tuple(self._runs)):
            if key in keys:
                return node
        return None
