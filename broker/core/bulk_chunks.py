"""Bulk chunks that came on a channel of their own and wait for their batch. No I/O."""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.protocol.constants import MAX_CHUNK_BYTES

MAX_BYTES: Final = 4 * MAX_CHUNK_BYTES


class BulkChunks:
    """What came since the last packet of a shard; bounded, for the log has what is dropped."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._bytes = 0

    def add(self, chunk: bytes) -> None:
        """Keep one; too many: the oldest go."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        while self._bytes > MAX_BYTES:
            self._bytes -= len(self._chunks.popleft())

    def take(self) -> list[bytes]:
        """Return all, in the order in which they came, and keep none."""
        chunks = list(self._chunks)
        self._chunks.clear()
        self._bytes = 0
        return chunks
