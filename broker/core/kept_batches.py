"""Batches that arrived during a read and wait for its end. No I/O."""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.protocol.messages import Batch

KEPT_BYTES: Final = 32 << 20


class KeptBatches:
    """The batches since a read began; bounded, as the log has the dropped ones.

    Attributes:
        bytes: their size.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._batches: deque[tuple[Batch, int]] = deque()

    def add(self, batch: Batch, size: int) -> None:
        """Keep a batch; beyond `KEPT_BYTES` drop the oldest."""
        self._batches.append((batch, size))
        self.bytes += size
        while self.bytes > KEPT_BYTES:
            self.bytes -= self._batches.popleft()[1]

    def take(self) -> list[Batch]:
        """Remove and return all batches, in the order of their arrival."""
        batches = [batch for batch, _ in self._batches]
        self._batches.clear()
        self.bytes = 0
        return batches
