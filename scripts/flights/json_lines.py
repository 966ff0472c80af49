"""Messages between the demo's processes: JSON lines, orders on stdin and reports on stdout."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

from broker import BrokerError
from scripts.flights.records import InputError


def report(kind: str, **fields: object) -> None:
    """Send one report to the orchestrator."""
    print(json.dumps({"kind": kind, **fields}), flush=True)


def orders() -> Iterator[dict[str, Any]]:
    """Yield the orchestrator's orders, until it closes the pipe."""
    for line in sys.stdin:
        yield json.loads(line)


def orders_queue() -> SimpleQueue[dict[str, Any]]:
    """Return a queue of orders that a thread fills; when the pipe closes, this process ends."""
    queue: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read() -> None:
        for order in orders():
            queue.put(order)
        # The orchestrator is gone: nothing else would stop this process.
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=read, name="orders", daemon=True).start()
    return queue


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with the message of an error of the broker or the file, without a traceback."""
    try:
        yield
    except (BrokerError, InputError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


class Throttle:
    """Limits how often something happens, such as a report.

    Args:
        interval_s: seconds between two, at least.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.next_at = 0.0

    def is_due(self) -> bool:
        """Return whether the interval has passed; if so, the next one begins."""
        now = monotonic()
        if now < self.next_at:
            return False
        self.next_at = now + self.interval_s
        return True
