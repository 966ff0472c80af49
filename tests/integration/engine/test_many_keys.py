"""A replica starts with a million keys in the state while writes continue."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from broker import Inspector, Producer, Replica, Status
from broker.testing.server import REDIS, REDIS_8, VALKEY, Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing

KEYS = {VALKEY: 1_000_000, REDIS: 200_000, REDIS_8: 200_000}
PER_CALL = 10_000


@pytest.mark.parametrize("kind", [pytest.param(VALKEY, marks=pytest.mark.slow), REDIS, REDIS_8])
@pytest.mark.timeout(360)  # a million keys take a while on a small machine
def test_a_late_subscriber_of_a_large_state_goes_live(
    kind: str, own_server: Callable[..., Server], namespace: str, serving: NewServing
) -> None:
    """The replica is complete and live, although writes and full states continue."""
    server, keys = own_server(kind=kind), KEYS[kind]
    serving(server.url, namespace, interval=1.0, max_age=0.02, heartbeat=0.5)
    with (
        Producer(server.url, namespace=namespace, node="filler") as filler,
        Producer(server.url, namespace=namespace, node="writer") as writer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        for first in range(0, keys, PER_CALL):
            filler.set_many({f"key/{n}": n for n in range(first, first + PER_CALL)})
        filler.flush(60)
        eventually(lambda: inspector.status().shards[0].state_keys == keys, 200)

        stop = threading.Event()
        rounds = 0

        def write() -> None:
            nonlocal rounds
            while not stop.is_set():
                rounds += 1
                writer.set_many({f"key/{n}": -rounds for n in range(rounds, keys, 5000)})
                writer.delete(f"key/{rounds * 7}")
                writer.set(f"new/{rounds}", rounds)
                writer.increment("rounds")
                writer.flush(10)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            with Replica(server.url, namespace=namespace) as late:
                began = rounds
                eventually(lambda: late.status is Status.LIVE, 100)
                assert len(late) > keys - rounds, "live before it was complete"
                assert late.stats().loads == 1
                assert rounds > began, "nothing was written while it loaded"
                stop.set()
                thread.join()
                late.wait_for(writer.flush(10), 10)
                assert late["rounds"] == rounds
                assert late[f"new/{rounds}"] == rounds
                content, (position,) = late.snapshot()
                truth, at = inspector._thread.call(inspector._engine.folded_shard(0, None))
                assert at == position
                assert len(content) == len(truth)
                assert content == truth
        finally:
            stop.set()
            thread.join()
