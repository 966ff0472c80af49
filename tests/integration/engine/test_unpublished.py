"""No replica is live without what Redis accepted longer ago than the staleness bound."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import redis

from broker import Inspector, Producer, Replica, Status
from broker.aio import Replica as AioReplica
from broker.backend.replies import DrainLimits
from broker.core.transitions import Event
from broker.protocol.names import shard_of
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.acceptance_oracle import SLACK, Oracle, writing
from tests.integration.manual_flush import ManualFlush
from tests.integration.running_workers import NewServing

HEARTBEAT = 0.1
BOUND = 0.5
NEVER = 3600


def test_a_full_log_without_a_scheduler_ends_live(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Heartbeats go on, but tell since when something is pending; with room it is live again."""
    serving(server.url, namespace, heartbeat=HEARTBEAT, limits=DrainLimits(log_bytes=4000))
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        oracle = Oracle(producer, BOUND)
        replica.wait_live(10)
        with writing(oracle):
            eventually(lambda: oracle.look(replica) is Status.STALE)
            ends = time.monotonic() + 4 * BOUND
            while time.monotonic() < ends:
                assert oracle.look(replica) is Status.STALE
        (reason,) = replica.health.reasons
        assert "because of unpublished" in reason
        assert "is the log full" in reason
        assert replica.lag > 3 * BOUND
        with Inspector(server.url, namespace=namespace) as inspector:
            (shard,) = inspector.status().shards
            assert shard.pending_ms is not None
            assert shard.pending_ms > 3000 * BOUND
        with pytest.raises(TimeoutError, match="it is stale"):
            replica.wait_live(0.01)
        packets = replica.stats().packets
        eventually(lambda: replica.stats().packets > packets + 2)
        assert replica.stats().reconnects == 0, "the connection is not to blame"
        token = producer.flush(10)
        serving(server.url, namespace, heartbeat=HEARTBEAT, interval=0.1, log_limit=4000)
        replica.wait_for(token, 10)
        replica.wait_live(10)
        assert oracle.look(replica) is Status.LIVE


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_the_first_heartbeat_after_a_halt_is_no_proof(
    server: Server, namespace: str, face: str
) -> None:
    """While a backlog is pending, heartbeats do not make a replica live; its last batch does."""

    def halted(flusher: ManualFlush, oracle: Oracle) -> None:
        oracle.write()
        time.sleep(BOUND + 2 * SLACK)
        flusher.beat()

    with (
        ManualFlush(server.url, namespace) as flusher,
        Producer(server.url, namespace=namespace, local_delta_max_age=0.001) as producer,
    ):
        flusher.beat()
        oracle = Oracle(producer, BOUND)

        async def scenario() -> None:
            async with AioReplica(
                server.url, namespace=namespace, staleness_bound=BOUND
            ) as replica:
                await replica.wait_live(10)
                await asyncio.to_thread(halted, flusher, oracle)
                ends = time.monotonic() + BOUND
                while time.monotonic() < ends:
                    assert oracle.look(replica) is not Status.LIVE
                    await asyncio.to_thread(flusher.beat)
                assert "unpublished" in str(replica.health.reasons)
                await asyncio.to_thread(flusher.drain)
                await asyncio.to_thread(flusher.beat)
                await replica.wait_live(10)
                assert replica["n"] == 1

        if face == "aio":
            asyncio.run(scenario())
            return
        with Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica:
            replica.wait_live(10)
            halted(flusher, oracle)
            ends = time.monotonic() + BOUND
            while time.monotonic() < ends:
                assert oracle.look(replica) is not Status.LIVE
                flusher.beat()
            assert "unpublished" in str(replica.health.reasons)
            flusher.drain()
            flusher.beat()
            replica.wait_live(10)
            assert replica["n"] == 1


def test_a_backlog_that_drains_is_reported_batch_by_batch(server: Server, namespace: str) -> None:
    """A batch of which something old stays pending is applied, and is no proof."""
    with (
        ManualFlush(server.url, namespace) as flusher,
        Producer(
            server.url, namespace=namespace, local_delta_max_count=1, local_delta_max_age=NEVER
        ) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        flusher.beat()
        replica.wait_live(10)
        oracle = Oracle(producer, BOUND)
        for _ in range(3):
            oracle.write()
        time.sleep(BOUND + 2 * SLACK)
        for number in (1, 2, 3):
            flusher.drain(chunks=1)
            eventually(lambda: replica.get("n") == number)  # noqa: B023 - called at once
            # The status follows in the same step of the replica's loop.
            assert oracle.look(replica) is (Status.LIVE if number == 3 else Status.STALE)


def test_a_cut_subscription_does_not_double_the_bound(
    server: Server, namespace: str, raw: redis.Redis
) -> None:
    """What catching up reads is no proof either, while something is pending."""
    with (
        ManualFlush(server.url, namespace) as flusher,
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        oracle = Oracle(producer, BOUND)
        flusher.beat()
        replica.wait_live(10)
        for _ in range(5):
            oracle.write()
            cut_at = time.monotonic() + 0.6 * BOUND
            ends, is_cut = cut_at + 2 * BOUND, False
            while (now := time.monotonic()) < ends:
                oracle.look(replica)
                if now > cut_at and not is_cut:
                    is_cut = raw.client_kill_filter(_type="pubsub") > 0
            flusher.drain()
            flusher.beat()
            replica.wait_live(10)


def test_one_shard_that_stands_still_is_reported(
    server: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst shard decides, and the reason names it."""
    workers = serving(server.url, namespace, shards=2, heartbeat=HEARTBEAT)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, staleness_bound=BOUND) as replica,
    ):
        replica.wait_live(10)
        (flusher,) = workers.flushers
        drain = flusher._drain

        async def drain_the_other(shard: Any) -> None:
            if shard.number == 1:
                # Its heartbeats go on.
                shard.drain_at, shard.is_woken = None, False
            else:
                await drain(shard)

        monkeypatch.setattr(flusher, "_drain", drain_the_other)
        key = next(key for key in map(str, range(100)) if shard_of(key, 2) == 1)
        oracle = Oracle(producer, BOUND, key)
        oracle.write()
        eventually(lambda: oracle.look(replica) is Status.STALE)
        (reason,) = replica.health.reasons
        assert "because of unpublished of shard 1" in reason
        change = next(iter(replica.statuses()))
        assert (change.reason, change.shard) == (Event.UNPUBLISHED, 1)
