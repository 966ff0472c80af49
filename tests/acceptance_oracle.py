"""What a live replica must show, by the clock of a writer that saw it accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from broker import Producer, Replica, Status
from broker.aio import Replica as AioReplica

# A look at a replica takes a moment, and threads of a loaded machine wait for their turn.
SLACK: Final = 0.15


class Oracle:
    """Writes a counter, and notes when each value of it was accepted.

    Args:
        producer: it is flushed after each write.
        bound: staleness bound of the replicas.
        key: of the counter.
    """

    def __init__(self, producer: Producer, bound: float, key: str = "n") -> None:
        self.key = key
        self._bound = bound
        self._producer = producer
        self._accepted: list[float] = []

    def write(self) -> None:
        """Write the next value; it is accepted when this returns."""
        self._producer.set(self.key, len(self._accepted) + 1)
        self._producer.flush(10)
        self._accepted.append(time.monotonic())

    def look(self, replica: Replica | AioReplica) -> Status:
        """Look at a replica; fail if it is live and lacks what was accepted before the bound."""
        began = time.monotonic()
        lag, status = replica.lag, replica.status
        held = replica.get(self.key, 0)
        owed = sum(at < began - self._bound - SLACK for at in list(self._accepted))
        if status is Status.LIVE:
            assert held >= owed, f"live with {held} of {owed}, lag {lag:.2f}"
        told = sum(at < began - lag - SLACK for at in list(self._accepted))
        assert held >= told, f"lag {lag:.2f} with {held} of {told}"
        return status


@contextmanager
def writing(oracle: Oracle) -> Iterator[None]:
    """Write all the time, on a thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.005):
            oracle.write()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
