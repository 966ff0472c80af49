"""Workers that are halted, and go on later with a backlog."""

from __future__ import annotations

import signal
import time

from broker import Producer, Replica, Status
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.acceptance_oracle import Oracle, writing
from tests.processes.conftest import Serve

BOUND = 1.0
# Each takes a batch of its own, so that the backlog needs many.
PADDING = "x" * 300_000


def test_a_worker_that_was_stopped_proves_nothing_before_its_backlog_is_published(
    valkey: Server, namespace: str, serve: Serve
) -> None:
    """SIGSTOP and SIGCONT of `serve` under load: no replica is live without old writes."""
    worker = serve(valkey.url, namespace, "--heartbeat-interval", "100ms")
    with (
        Producer(valkey.url, namespace=namespace, node="big") as big,
        Producer(valkey.url, namespace=namespace) as producer,
        Replica(valkey.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        oracle = Oracle(producer, BOUND)
        replica.wait_live(10)
        for _ in range(2):
            worker.send_signal(signal.SIGSTOP)
            try:
                for number in range(100):
                    big.set(f"big/{number}", PADDING)
                with writing(oracle):
                    ends = time.monotonic() + 2 * BOUND
                    while time.monotonic() < ends:
                        oracle.look(replica)
                assert oracle.look(replica) is not Status.LIVE
            finally:
                worker.send_signal(signal.SIGCONT)
            with writing(oracle):
                eventually(lambda: oracle.look(replica) is Status.LIVE, 20)
            token = producer.flush(10)
            replica.wait_for(token, 10)
            replica.wait_live(10)
