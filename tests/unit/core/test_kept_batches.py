"""Batches that wait for the end of a read."""

from __future__ import annotations

from broker.core.kept_batches import KEPT_BYTES, KeptBatches
from broker.protocol.messages import Batch


def batch(offset: int) -> Batch:
    """Return an empty batch."""
    return Batch(0, b"epoch--1", offset, b"batch--1", b"batch--0", 0, 0)


def test_batches_come_out_once_in_the_order_of_their_arrival() -> None:
    """After that none is kept."""
    kept = KeptBatches()
    for offset in (3, 4, 6):
        kept.add(batch(offset), 10)
    assert kept.bytes == 30
    assert [one.offset for one in kept.take()] == [3, 4, 6]
    assert (kept.bytes, kept.take()) == (0, [])


def test_the_oldest_batches_are_dropped_beyond_the_limit() -> None:
    """What stays is within the limit, and the newest."""
    kept = KeptBatches()
    for offset in range(5):
        kept.add(batch(offset), KEPT_BYTES // 3)
    assert kept.bytes <= KEPT_BYTES
    assert [one.offset for one in kept.take()] == [2, 3, 4]
