"""What wakes a thread that waits for a reader's items."""

from __future__ import annotations

from threading import Thread

from broker.runtime.bell import Bell


def test_who_waits_after_the_ring_does_not_wait() -> None:
    """A ring before the wait counts, and many rings wake once."""
    bell = Bell()
    for _ in range(3):
        bell.ring()
    bell.wait()
    waiting = Thread(target=bell.wait, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    bell.ring()
    waiting.join(10)
    assert not waiting.is_alive()
