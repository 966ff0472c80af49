"""Flush workers are interchangeable; several may run at once and any may crash."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from itertools import pairwise
from typing import Any

import redis

from broker import Inspector, Producer, Replica
from broker.aio import Producer as AsyncProducer
from broker.backend.replies import Drained, DrainLimits
from broker.backend.stored import INTAKE_HEAD, intake_head
from broker.protocol.messages import Batch, Heartbeat
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.raw_subscriber import Channel
from tests.integration.running_workers import NewServing, joined, write_snapshots
from workers.flush import FlushWorker


def test_several_workers_at_once_keep_the_order(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """Four workers in four threads publish each delta once, in one chain of offsets and ids."""
    for _ in range(4):
        serving(server.url, namespace, max_age=0.001, max_count=5)
    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace, node="one") as one,
        Producer(server.url, namespace=namespace, node="two") as two,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        for number in range(500):
            one.set("one", number)
            two.set("two", number)
            one.increment("n")
            if number % 10 == 0:
                one.flush(10)
        for producer in (one, two):
            replica.wait_for(producer.flush(10), 10)
        eventually(lambda: sum(batch.deltas for batch in channel.batches) == 1500)
        batches = channel.batches
        assert [batch.offset for batch in batches] == list(range(1, len(batches) + 1))
        for before, after in pairwise(batches):
            assert after.previous_id == before.id
        changes.close()
        reported = list(changes)
        for node in ("one", "two"):
            assert [c.value for c in reported if c.key == node] == list(range(500))
        assert replica["n"] == 500
        assert replica.stats().batches_applied == len(batches)
        assert replica.stats().gaps == 0


def test_workers_killed_one_after_the_other_change_nothing(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Every delta counts once while workers are killed and replaced."""
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        stop = threading.Event()

        def has_passed(number: int) -> bool:
            return bool(replica.get("n", 0) > number)

        def write() -> None:
            while not stop.is_set():
                producer.increment("n")
                producer.increment("x", 0.5)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            seen = 0
            for _ in range(8):
                worker = serving(server.url, namespace, max_age=0.001)
                eventually(partial(has_passed, seen))
                worker.kill()
                seen = replica["n"]
        finally:
            stop.set()
            writer.join()
        serving(server.url, namespace)
        replica.wait_for(producer.flush(10), 10)
        total = producer.stats().accepted // 2
        assert (replica["n"], replica["x"]) == (total, total / 2)


def test_a_wake_up_taken_by_a_dead_worker_is_found(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A wake-up taken by a dead worker delays its batch by one heartbeat interval at most."""
    heartbeat = 0.5
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        redis.Redis.from_url(server.url, client_name="thief") as client,
    ):
        stolen = []
        thief = threading.Thread(target=lambda: stolen.append(client.blpop([keys.ready], 20)))
        thief.start()

        def is_blocked() -> bool:
            listed: Any = raw.client_list()
            return any(one["name"] == "thief" and "b" in one["flags"] for one in listed)

        # The one who blocked first gets the wake-up.
        eventually(is_blocked)
        serving(server.url, namespace, heartbeat=heartbeat, max_age=0.01)
        # The worker's first look at the shard must be over.
        eventually(lambda: replica.stats().packets >= 3)
        started = time.monotonic()
        producer.set("key", 1)
        token = producer.flush(10)
        thief.join(10)
        assert stolen == [(keys.ready.encode(), b"1")]
        replica.wait_for(token, 10)
        assert time.monotonic() - started < heartbeat + 0.5


def test_a_late_worker_finds_what_is_waiting(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A new worker publishes at once what was accepted without one."""
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        for number in range(100):
            producer.set("key", number)
            producer.flush(10)
        token = producer.flush(10)
        serving(server.url, namespace, heartbeat=5.0)
        replica.wait_for(token, 2)
        assert replica["key"] == 99


def test_a_batch_has_a_size_and_the_rest_follows_at_once(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """More than one batch's worth is published as several batches, each within the limit."""
    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace, chunk_bytes=1024, compress=0) as producer,
    ):
        for number in range(400):
            producer.set(f"k{number}", "x" * 100)
        producer.set("large", "x" * 50_000)
        producer.set("after", 1)
        producer.flush(10)
        serving(server.url, namespace, limits=DrainLimits(batch_bytes=10_000, batch_chunks=20))
        eventually(lambda: sum(batch.deltas for batch in channel.batches) == 402)
        sizes = [sum(map(len, batch.chunks)) for batch in channel.batches]
        large = [size for size in sizes if size > 10_000]
        assert len(large) == 1, "a single larger chunk goes alone"
        assert len(sizes) > 4
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_live(10)
            assert len(replica) == 402


def test_many_nodes_come_and_go(server: Server, namespace: str, serving: NewServing) -> None:
    """Nodes unknown to a worker are drained in the order of acceptance."""
    serving(server.url, namespace)
    nodes = 40
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_live(10)
        changes = replica.changes("last")
        for number in range(nodes):
            with Producer(server.url, namespace=namespace, node=f"n{number}") as producer:
                producer.set("last", number)
                producer.increment("n")
                token = producer.flush(10)
        replica.wait_for(token, 10)
        assert replica["n"] == nodes
        changes.close()
        assert [change.value for change in changes] == list(range(nodes))


def test_a_batch_by_age_is_looked_for_before_it_is_due(server: Server, namespace: str) -> None:
    """The poll is one millisecond before a batch is due by age, whatever the last one took."""

    async def look() -> None:
        async with joined(server.url, namespace) as session:
            worker = FlushWorker(session, "w", heartbeat_interval=10.0, max_age=30.0)
            await worker.poll()
            async with AsyncProducer(server.url, namespace=namespace) as producer:
                await producer.set("key", 1)
                await producer.flush(10)
            (shard,) = worker._shards
            shard.is_woken = True
            asked, before = redis_ms(server), time.monotonic()
            await worker.poll()
            head = intake_head(await session.client.hget(session.keys[0].intake, INTAKE_HEAD))
            assert head is not None
            assert shard.drain_at is not None
            assert shard.drain_at <= before + (head.due_ms - asked) / 1000

    asyncio.run(look())


def redis_ms(server: Server) -> int:
    """Return the server's time in whole milliseconds, as its scripts read it."""
    with redis.Redis.from_url(server.url) as client:
        seconds, micros = client.time()  # type: ignore[misc]
    return int(seconds) * 1000 + int(micros) // 1000


def test_one_heartbeat_a_shard_however_many_workers(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """An idle shard has one heartbeat per interval, whatever the number of workers."""
    heartbeat = 0.2
    for _ in range(4):
        serving(server.url, namespace, heartbeat=heartbeat)
    with Channel(server.url, keys) as channel:
        eventually(lambda: len(channel.seen) >= 11)
        assert all(isinstance(seen.packet, Heartbeat) for seen in channel.seen)
        first, *_, last = channel.seen[:11]
        # Each one is at least an interval after the one before.
        assert last.packet.time_ms - first.packet.time_ms >= 10 * heartbeat * 1000
        assert last.at - first.at < 10 * heartbeat + 1.5


def test_a_worker_stops_in_order(server: Server, namespace: str, serving: NewServing) -> None:
    """A stopped worker ends within 2 s under load, and leaves nothing half done."""
    workers = serving(server.url, namespace, max_age=0.001, interval=0.1)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        for number in range(20_000):
            producer.increment(f"k{number % 1000}")
        started = time.monotonic()
        workers.stop()
        assert time.monotonic() - started < 2.0
        producer.flush(10)
        (shard,) = inspector.status().shards
        assert shard.snapshot_offset == shard.offset
        assert shard.accepted == shard.published + shard.pending_deltas == 20_000
        serving(server.url, namespace)
        eventually(lambda: inspector.status().shards[0].pending_deltas == 0)
        assert sum(inspector.folded().values()) == 20_000
        write_snapshots(server.url, namespace)
        assert sum(inspector.state().values()) == 20_000


def test_scripts_that_the_server_forgot_are_loaded_again(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """SCRIPT FLUSH at any moment has no visible effect."""
    serving(server.url, namespace, interval=0.1)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        for number in range(30):
            raw.script_flush()
            producer.increment("n")
            replica.wait_for(producer.flush(10), 10)
            assert replica["n"] == number + 1
        eventually(lambda: inspector.state() == {"n": 30})


def test_a_batch_names_everything_a_reader_needs(
    server: Server, namespace: str, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A drained batch is on the channel and in the log, byte for byte the same."""

    async def drain() -> None:
        async with joined(server.url, namespace) as session:
            limits = DrainLimits()
            reply = await session.commands.drain(keys, 0, b"8 bytes!", limits)
            assert isinstance(reply, Drained)

    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace, node="n", local_delta_max_count=1) as producer,
    ):
        producer.set("key", 1)
        token = producer.flush(10)
        asyncio.run(drain())
        logged: Any = raw.xrange(keys.log)
        ((entry, fields),) = logged
        eventually(lambda: channel.batches)
        assert entry == b"1-0"
        assert fields[b"b"] == channel.seen[-1].data
        (batch,) = channel.batches
        assert isinstance(batch, Batch)
        assert (batch.id, batch.previous_id, batch.deltas) == (b"8 bytes!", bytes(8), 1)
        assert (batch.shard, batch.offset) == (0, 1)
        assert token.marks == {0: (batch.epoch, batch.covered)}
