"""A command whose output goes into a pipe that nobody reads: `| less`, or a log that hangs."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from broker import Producer, Replica, Status
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.processes.conftest import NewServed
from tests.processes.programs import STOP_SECONDS, WORKERS, environment
from tests.processes.served_namespace import ServedNamespace

F_SETPIPE_SZ = 1031  # on Linux
PIPE_BYTES = 4096


class Paused:
    """`statebroker` with stdout and stderr in one small pipe, which is read only when asked.

    Args:
        place: of the namespace.
        arguments: of the command.
    """

    def __init__(self, place: tuple[str, str], *arguments: str) -> None:
        self._read, written = os.pipe()
        fcntl.fcntl(written, F_SETPIPE_SZ, PIPE_BYTES)
        url, namespace = place
        self.process = subprocess.Popen(
            [*WORKERS, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            env=environment({"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}),
        )
        os.close(written)

    @property
    def waiting(self) -> int:
        """How many bytes are in the pipe."""
        counted = fcntl.ioctl(self._read, 0x541B, b"\0" * 4)  # FIONREAD
        return int.from_bytes(counted, "little")

    @property
    def is_full(self) -> bool:
        """Whether the program waits for the reader."""
        assert self.process.poll() is None, "it ended"
        return self.waiting > PIPE_BYTES - 300

    def stop(self, number: signal.Signals) -> float:
        """Send a signal; return the seconds until it ended with status 0."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(30) in (0, 1)
        return time.monotonic() - began

    def read(self) -> bytes:
        """Return the rest of what was written."""
        with os.fdopen(os.dup(self._read), "rb") as rest:
            return rest.read()

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        os.close(self._read)


NewPaused = Callable[..., Paused]


@pytest.fixture
def paused() -> Iterator[NewPaused]:
    """Give a factory of paused commands, killed at the end."""
    made: list[Paused] = []

    def make(*given: object) -> Paused:
        made.append(Paused(*given))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_workers_work_on_while_nobody_reads_their_log(
    valkey: Server, namespace: str, paused: NewPaused
) -> None:
    """Replicas stay live, whatever `--verbose` logs; what was dropped is counted."""
    workers = paused((valkey.url, namespace), "serve", "--verbose", "--heartbeat-interval", "100ms")
    with (
        Producer(valkey.url, namespace=namespace, local_delta_max_count=1) as producer,
        Replica(valkey.url, namespace=namespace, staleness_bound=1) as replica,
    ):
        eventually(lambda: workers.waiting, 20, "it logs")
        replica.wait_live(20)
        for number in range(12_000):
            producer.set("k", number)
            if number % 100 == 0 or workers.is_full:
                replica.wait_for(producer.flush(10), 10)
            if number > 300 and workers.is_full:
                break
        assert workers.is_full
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            producer.set("k", 0)
            replica.wait_for(producer.flush(10), 10)
            assert replica.status is Status.LIVE
    assert workers.stop(signal.SIGTERM) < STOP_SECONDS
    assert b"published" in workers.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--initial",)])
def test_watch_ends_while_nobody_reads(
    new_served: NewServed, paused: NewPaused, number: signal.Signals, options: tuple[str, ...]
) -> None:
    """`watch | less` ends on Ctrl-C and SIGTERM while less waits for a key."""
    place = new_served()
    fill(place)
    watch = paused((place.url, place.namespace), "watch", *options)
    with place.producer() as producer:
        while not watch.is_full:
            producer.set_many({f"k{n}": time.monotonic() for n in range(100)})
            place.publish()
        assert watch.stop(number) < STOP_SECONDS
        assert watch.process.returncode == 0


@pytest.mark.parametrize("command", [("get",), ("get", "--json"), ("tables", "t")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_long_output_ends_while_nobody_reads(
    new_served: NewServed, paused: NewPaused, command: tuple[str, ...], number: signal.Signals
) -> None:
    """`get | less` too: nothing waits in a buffer that would have to be written at the end."""
    place = new_served()
    fill(place)
    program = paused((place.url, place.namespace), *command)
    eventually(lambda: program.is_full, 20, "the pipe is full")
    began = time.monotonic()
    program.process.send_signal(number)
    assert program.process.wait(10) != 0
    assert time.monotonic() - began < STOP_SECONDS


def fill(place: ServedNamespace) -> None:
    """Write more than the pipe holds."""
    with place.producer() as producer:
        producer.set_many({f"k{n}": "x" * 100 for n in range(500)})
        producer.table("t").set_many([f"k{n}" for n in range(2000)], 1.5)
        producer.flush(10)
    place.publish()
