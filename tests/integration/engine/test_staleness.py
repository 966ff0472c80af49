"""A replica is live and knows its lag, or shows another status within the bound."""

from __future__ import annotations

import asyncio
import time

import pytest

from broker import Producer, Replica, Status
from broker.aio import Replica as AioReplica
from broker.runtime import clock
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.manual_flush import ManualFlush
from tests.integration.running_workers import NewServing

HEARTBEAT = 0.1
BOUND = 0.5
# Most that a loaded machine may need to run a timer.
LATE = 0.5


def test_without_workers_a_replica_is_stale_within_the_bound(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Without workers a replica is stale within the bound, and live when one returns."""
    workers = serving(server.url, namespace, heartbeat=HEARTBEAT)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        producer.set("key", 1)
        replica.wait_for(producer.flush(10), 10)
        for death in range(2):
            replica.wait_live(10)
            workers.kill()
            died_at = time.monotonic()
            eventually(lambda: replica.status is Status.STALE)
            assert time.monotonic() - died_at < BOUND * 1.25 + LATE
            assert replica["key"] == 1, "what is known stays readable"
            with pytest.raises(TimeoutError, match=r"it is (stale|catching_up); is a flush worker"):
                replica.wait_live(0.01)
            eventually(lambda: replica.lag > BOUND)
            workers = serving(server.url, namespace, heartbeat=HEARTBEAT)
            replica.wait_live(5)
            assert replica.lag < HEARTBEAT + LATE, death


def test_a_stale_replica_never_looks_live_while_nothing_publishes(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Without a worker, repeated reconnects never make the status live."""
    workers = serving(server.url, namespace, heartbeat=HEARTBEAT)
    with Replica(server.url, namespace=namespace, staleness_bound=0.2) as replica:
        replica.wait_live(10)
        workers.kill()
        eventually(lambda: replica.status is Status.STALE)
        before = replica.stats().reconnects

        def has_tried_again() -> bool:
            assert replica.status is not Status.LIVE
            return bool(replica.stats().reconnects >= before + 5)

        eventually(has_tried_again)


def test_while_live_the_lag_is_small(server: Server, namespace: str, serving: NewServing) -> None:
    """A live replica's lag stays below a heartbeat interval plus the delivery time."""
    serving(server.url, namespace, heartbeat=HEARTBEAT)
    with Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
        assert replica.lag > 0
        replica.wait_live(10)
        beats = replica.stats().packets
        worst = 0.0
        while replica.stats().packets < beats + 10:
            worst = max(worst, replica.lag)
            assert replica.status is Status.LIVE
        assert HEARTBEAT / 2 < worst < HEARTBEAT + LATE


def test_a_new_replica_is_not_live_before_a_worker_was(server: Server, namespace: str) -> None:
    """Without a worker a new replica is stale: full state and log do not prove the present."""
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        producer.set("key", 1)
        producer.flush(10)
        eventually(lambda: replica.status is Status.STALE)
        assert dict(replica.items()) == {}


def test_one_silent_shard_makes_the_replica_stale(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """While one of two shards is silent, the replica is never live."""
    workers = serving(server.url, namespace, shards=2, heartbeat=HEARTBEAT)
    with Replica(server.url, namespace=namespace, staleness_bound=0.3) as replica:
        replica.wait_live(10)
        (flusher,) = workers.flushers

        def is_noticed() -> bool:
            # The worker forgets its second shard; a heartbeat under way sets the time once more.
            flusher._shards[1].heartbeat_at = flusher._shards[1].drain_at = 1e9
            return replica.status is not Status.LIVE

        eventually(is_noticed, 0.3 * 1.25 + LATE)
        before = replica.stats().reconnects

        def has_tried_again() -> bool:
            assert replica.status is not Status.LIVE
            return bool(replica.stats().reconnects >= before + 3)

        eventually(has_tried_again)


def test_packets_that_prove_nothing_do_not_keep_a_replica_live(
    server: Server, namespace: str
) -> None:
    """Repeated old packets do not keep a replica live."""
    with (
        ManualFlush(server.url, namespace) as flusher,
        Producer(server.url, namespace=namespace, local_delta_max_count=1) as producer,
    ):
        flusher.beat()
        with Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
            producer.set("key", 1)
            producer.flush(10)
            flusher.drain()
            flusher.beat()
            replica.wait_live(10)
            beaten_at = time.monotonic()

            def is_stale() -> bool:
                flusher.publish(flusher.logged(1))
                return replica.status is Status.STALE

            eventually(is_stale)
            assert time.monotonic() - beaten_at < BOUND * 1.25 + LATE
            assert replica.stats().batches_duplicate > 1


def test_a_paused_server_makes_the_replica_stale(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A hanging server makes the replica stale; it is live again once the server resumes."""
    serving(server.url, namespace, heartbeat=HEARTBEAT)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        replica.wait_live(10)
        server.pause()
        try:
            eventually(lambda: replica.status is not Status.LIVE, BOUND * 1.25 + LATE)
            producer.set("key", 1)
        finally:
            server.resume()
        replica.wait_for(producer.flush(10), 10)
        replica.wait_live(10)
        assert replica["key"] == 1


def test_the_asyncio_replica_says_the_same(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """wait_live of the asyncio replica times out with the fix in its message."""
    workers = serving(server.url, namespace, heartbeat=HEARTBEAT)

    async def scenario() -> None:
        async with AioReplica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
            await replica.wait_live(10)
            await asyncio.to_thread(workers.kill)
            await asyncio.to_thread(
                eventually, lambda: replica.status is not Status.LIVE, BOUND * 1.25 + LATE
            )
            with pytest.raises(TimeoutError, match=r"is not live after 0.01 s.*statebroker status"):
                await replica.wait_live(0.01)

    asyncio.run(scenario())


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_after_a_suspension_a_replica_is_stale_at_once(
    server: Server, namespace: str, serving: NewServing, face: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept longer than the bound finds its replica stale, then live again."""
    serving(server.url, namespace, heartbeat=HEARTBEAT)
    awake = clock.now

    def sleep() -> None:
        # Nothing else of the process runs in between, as after a real suspension.
        monkeypatch.setattr(clock, "now", lambda: awake() + 20)

    if face == "sync":
        with Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
            replica.wait_live(10)
            server.pause()
            try:
                sleep()
                assert replica.status is Status.STALE
                assert replica.lag > 20 - LATE
                assert not replica.health.ok
            finally:
                server.resume()
            replica.wait_live(10)
        return

    async def scenario() -> None:
        async with AioReplica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
            await replica.wait_live(10)
            sleep()
            assert replica.status is Status.STALE
            await replica.wait_live(10)

    asyncio.run(scenario())
