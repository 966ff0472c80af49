"""Every kind of process is killed repeatedly, and the sums stay exact."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from typing import Any

import pytest

from broker import Inspector, Replica
from broker.stats import NamespaceStatus
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.processes.conftest import NewProgram
from tests.processes.programs import START_SECONDS, Program, needs_proc

CHAOS_SECONDS = 10.0
# How long after one kill the next one comes; seconds.
PAUSE = (0.1, 0.5)
# Short, so that a killed scheduler's lease is the only thing that takes long.
INTERVAL = ("--global-data-update-interval", "200ms")
KINDS = ("flush", "schedule", "subscriber", "producer")

# Counts how often it counted, on keys of its own and on common ones. Every line says, before the
# deltas are written, how many there will be at most, or after a flush how many Redis has taken.
PRODUCER = """
import random, signal, sys
from broker import Producer

url, namespace, node = sys.argv[1:]
# Before there are threads: all of them leave it to the loop below.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with Producer(url, namespace=namespace, node=node) as producer:
    written = 0
    # All these processes share few cores; without a pause this one would have them all.
    while signal.sigtimedwait({signal.SIGTERM}, 0.01) is None:
        burst = random.randrange(1, 400)
        print("at most", written + burst, flush=True)
        for _ in range(burst):
            written += 1
            producer.increment(f"count.{node}")
            producer.increment(f"sum.{written % 7}", 2)
            producer.set(f"last.{written % 100}", f"{node} {written}")
            producer.delete(f"last.{(written + 50) % 100}")
        if random.random() < 0.5:
            producer.flush(30)
            print("at least", written, flush=True)
    producer.flush(30)
    print("at least", written, flush=True)
"""

# Follows until SIGTERM, then waits for a position and tells all it holds.
SUBSCRIBER = """
import json, signal, sys, threading
from broker import Replica

url, namespace = sys.argv[1:]
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
with Replica(url, namespace=namespace) as replica:
    print("following", flush=True)
    for change in replica.changes():
        # A reader that also looks, as a service does.
        replica.get(change.key)
        if done.is_set():
            break
    done.wait()
    replica.wait_live(30)
    print(json.dumps({"state": dict(replica), "stats": replica.stats().as_dict()}), flush=True)
"""


class Fleet:
    """Producers, workers and subscribers of one namespace, each replaceable."""

    def __init__(self, url: str, namespace: str, start: NewProgram) -> None:
        self.url = url
        self.namespace = namespace
        self.producers: dict[str, Program] = {}
        self._start = start
        self._place = {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}
        self._numbers = itertools.count()
        self.running = {kind: [self.new(kind) for _ in range(2)] for kind in KINDS}

    def new(self, kind: str) -> Program:
        """Start another process of a kind."""
        if kind in ("flush", "schedule"):
            options = INTERVAL if kind == "schedule" else ()
            return self.run(kind, *options)
        if kind == "subscriber":
            return self._start.script(SUBSCRIBER, self.url, self.namespace)
        node = f"p{next(self._numbers)}"
        program = self._start.script(PRODUCER, self.url, self.namespace, node)
        self.producers[node] = program
        return program

    def run(self, *arguments: str) -> Program:
        """Start `statebroker` for this namespace."""
        return self._start(*arguments, **self._place)

    def works(self) -> bool:
        """Whether all processes have printed that they work."""
        return all(program.out or "serving" in program.err for program in self.all())

    def all(self) -> list[Program]:
        """Return the processes that were not killed."""
        return [program for programs in self.running.values() for program in programs]

    def replace_one(self, kind: str) -> None:
        """SIGKILL one process of a kind and start another."""
        victim = self.running[kind].pop(0)
        assert victim.is_running, victim.err
        victim.kill()
        self.running[kind].append(self.new(kind))


def reported(program: Program, words: str) -> int:
    """Return the last number that a producer printed after these words, else 0."""
    numbers = [
        int(line.removeprefix(words))
        for line in program.out.splitlines(keepends=True)
        if line.startswith(words) and line.endswith("\n")
    ]
    return max(numbers, default=0)


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killing_everything_changes_nothing(
    server: Server, namespace: str, start: NewProgram
) -> None:
    """Every accepted delta counts once and all copies are equal, whatever is killed."""
    fleet = Fleet(server.url, namespace, start)
    eventually(fleet.works, START_SECONDS)
    rng = random.Random(namespace)
    end = time.monotonic() + CHAOS_SECONDS
    while time.monotonic() < end:
        for kind in rng.sample(KINDS, len(KINDS)):
            fleet.replace_one(kind)
            time.sleep(rng.uniform(*PAUSE))

    eventually(fleet.works, START_SECONDS)
    for producer in fleet.running["producer"]:
        producer.send_signal(signal.SIGTERM)
        assert producer.wait(60) == 0, producer.err
    with (
        Inspector(server.url, namespace=namespace) as inspector,
        Replica(server.url, namespace=namespace) as replica,
    ):

        def is_complete() -> bool:
            (shard,) = inspector.status().shards
            return not shard.pending_deltas and shard.snapshot_offset == shard.offset

        eventually(is_complete, 60, lambda: str(inspector.status()))
        status, state = inspector.status(), inspector.state()
        assert state == inspector.folded()
        eventually(lambda: dict(replica) == state, message="a fresh replica equals the full state")

    assert_accounted(fleet, status, state)
    for subscriber in fleet.running["subscriber"]:
        # A last change wakes it from waiting for one.
        subscriber.send_signal(signal.SIGTERM)
    assert fleet.run("set", "end", "true").wait() == 0
    for subscriber in fleet.running["subscriber"]:
        assert subscriber.wait(60) == 0, subscriber.err
        held: dict[str, Any] = json.loads(subscriber.out.splitlines()[-1])
        held["state"].pop("end")
        assert held["state"] == state
        assert held["stats"]["deltas_refused"] == held["stats"]["chunks_skipped"] == 0
    for program in fleet.running["flush"] + fleet.running["schedule"]:
        assert program.stop() >= 0
        assert "Traceback" not in program.err


def assert_accounted(fleet: Fleet, status: NamespaceStatus, state: dict[str, Any]) -> None:
    """Check that every producer's accepted deltas count exactly once."""
    counts = {node: state.get(f"count.{node}", 0) for node in fleet.producers}
    for node, program in fleet.producers.items():
        assert reported(program, "at least ") <= counts[node] <= reported(program, "at most "), node
    (shard,) = status.shards
    accepted = {node.node: node.deltas for node in status.nodes}
    assert shard.accepted == shard.published == sum(accepted.values())
    for node, deltas in accepted.items():
        # Four deltas in turn, of which the last may be missing where it was killed.
        assert counts[node] == -(-deltas // 4), node
    sums = sum(state.get(f"sum.{n}", 0) for n in range(7))
    assert sums == 2 * sum((deltas + 2) // 4 for deltas in accepted.values())
    assert sum(counts.values()) > 1000
