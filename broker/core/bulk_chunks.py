"""Bulk chunks that arrived on their own channel and wait for their batch. No I/O."""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.protocol.constants import MAX_CHUNK_BYTES

MAX_BYTES: Final = 4 * MAX_CHUNK_BYTES


class BulkChunks:
    """The bulk chunks since a shard's last packet; bounded, as the log has the dropped ones."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._bytes = 0

    def add(self, chunk: bytes) -> None:
        """Keep a chunk; beyond `MAX_BYTES` drop the oldest."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        while self._bytes > MAX_BYTES:
            self._bytes -= len(self._chunks.popleft())

    def take(self) -> list[bytes]:
        """Remove and return all chunks, in the order of their arrival."""
        chunks = list(self._chunks)
        self._chunks.clear()
        self._bytes = 0
        return chunks
