"""A namespace with running workers, and commands for it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from broker import Inspector, Producer
from broker.testing.waiting import eventually
from tests.processes.programs import Program, Result


class Start(Protocol):
    """Starts `statebroker` with these arguments and environment variables."""

    def __call__(self, *arguments: str, **settings: str) -> Program:
        """Start it."""


class ServedNamespace:
    """A namespace with running workers, and `statebroker` commands for it.

    Attributes:
        url, namespace: where it is.
        workers: `statebroker serve`.
    """

    def __init__(self, url: str, namespace: str, workers: Program, start: Start) -> None:
        self.url = url
        self.namespace = namespace
        self.workers = workers
        self._start = start

    def start(self, *arguments: str, **settings: str) -> Program:
        """Start a command for this namespace."""
        place = {"STATEBROKER_URL": self.url, "STATEBROKER_NAMESPACE": self.namespace}
        return self._start(*arguments, **place, **settings)

    def run(self, *arguments: str, **settings: str) -> Result:
        """Run a command for this namespace to its end."""
        return self.start(*arguments, **settings).result()

    def write(self, *arguments: str) -> Result:
        """Run a command that writes, and wait until its deltas are visible."""
        result = self.run(*arguments)
        assert result.code == 0, result
        self.publish()
        return result

    def publish(self) -> None:
        """Wait until nothing is pending."""
        with Inspector(self.url, namespace=self.namespace) as inspector:
            eventually(lambda: not any(s.pending_deltas for s in inspector.status().shards), 30)

    def producer(self) -> Producer:
        """Return a producer of this namespace."""
        return Producer(self.url, namespace=self.namespace)


@contextmanager
def writing(place: ServedNamespace) -> Iterator[Producer]:
    """Change a few keys continuously, on a thread."""
    done = threading.Event()
    with place.producer() as producer:

        def write() -> None:
            while not done.wait(0.001):
                producer.set_many({f"k{n}": random.random() for n in range(50)})

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield producer
        finally:
            done.set()
            writer.join()
