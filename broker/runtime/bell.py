"""What one thread waits for, and others ring, also from a signal handler."""

from __future__ import annotations

from queue import SimpleQueue


class Bell:
    """Wakes one waiting thread; if it rang before, the thread does not wait.

    Unlike an Event's set(), `ring` is safe in a signal handler that interrupts `wait`.
    """

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        """Wake it; any thread, and any number of times."""
        # One signal is enough: the thread reads everything. A slow reader must not collect them.
        if self._rung.empty():
            self._rung.put(None)

    def wait(self) -> None:
        """Wait until it was rung since the last time."""
        self._rung.get()
