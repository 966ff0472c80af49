"""The full state in Redis is incremental, fenced and exact; the log is cut behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.backend import page_sizes
from broker.backend.session import Session
from broker.protocol.fields import unpack_fields
from broker.protocol.messages import Heartbeat, Notice, Packet
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.exact_content import packed
from tests.integration.raw_subscriber import Channel
from tests.integration.running_workers import (
    NewServing,
    snapshot_worker,
    unique,
    write_snapshots,
)
from tests.integration.watched_shard import WatchedShard, first_logged
from workers.snapshot import SnapshotWorker


def test_only_what_changed_is_written(watched_shard: WatchedShard) -> None:
    """The second full state writes what changed since the first, each key once; the third none."""
    watched_shard.producer.set_many({f"k{number}": number for number in range(500)})
    watched_shard.publish()
    first = watched_shard.write()
    assert first is not None
    assert (first.sets, first.deletes) == (500, 0)
    for number in range(50):
        watched_shard.producer.set("k1", number)
        watched_shard.producer.increment("k2")
    watched_shard.producer.delete("k3")
    watched_shard.producer.set("new", 1)
    watched_shard.publish()
    second = watched_shard.write()
    assert second is not None
    assert (second.sets, second.deletes) == (3, 1)
    assert watched_shard.write() is None
    state = watched_shard.agree()
    assert (state["k1"], state["k2"], "k3" in state, state["new"]) == (49, 52, False, 1)
    assert len(state) == 500


def test_every_field_carries_its_offset(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Each field of the hash has the offset up to which it was folded."""
    watched_shard.producer.set("old", 1)
    watched_shard.publish()
    watched_shard.write()
    watched_shard.producer.set("young", 1)
    watched_shard.publish()
    watched_shard.write()
    content: Any = raw.hgetall(keys.state)
    offsets, values = unpack_fields([b"old", b"young"], [content[b"old"], content[b"young"]])
    assert (offsets, values) == ([1, 2], [1, 1])


def test_deletes_reach_the_full_state(watched_shard: WatchedShard) -> None:
    """Deleted keys are removed from the hash, and return when set again."""
    watched_shard.producer.set_many({"a": 1, "b": 1, "c": 1})
    watched_shard.publish()
    watched_shard.write()
    watched_shard.producer.delete("a")
    watched_shard.producer.delete("b")
    watched_shard.producer.set("b", 2)
    watched_shard.producer.set("d", 1)
    watched_shard.producer.delete("d")
    watched_shard.producer.delete("never")
    watched_shard.producer.delete("c")
    watched_shard.producer.increment("c", 5)
    watched_shard.publish()
    watched_shard.write()
    assert watched_shard.agree() == {"b": 2, "c": 5}


def test_sets_and_deletes_share_pages(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the pages end, each key is written or deleted once, and counted in the digest."""
    state = {f"k{number}": number for number in range(20)}
    watched_shard.producer.set_many(state)
    watched_shard.publish()
    watched_shard.write()
    for size in (1, 4, 6, 7, 100):
        monkeypatch.setattr(page_sizes, "KEYS", size)
        for number in range(9):
            watched_shard.producer.delete(f"k{number}")
            watched_shard.producer.set(f"k{number + 10}", -size)
        watched_shard.producer.set_many({f"{size}/{number}": number for number in range(5)})
        watched_shard.producer.delete("never")
        watched_shard.publish()
        written = watched_shard.write()
        assert written is not None
        assert (written.sets, written.deletes) == (14, 9)
        assert watched_shard.inspector.altered() == {}
        assert "k0" not in watched_shard.agree()
        watched_shard.producer.set_many(state)
        watched_shard.publish()
        watched_shard.write()


def test_increments_go_on_from_the_full_state(watched_shard: WatchedShard) -> None:
    """Increments add exactly to the hash's values and to each other across batches."""
    expected: dict[str, Any] = {"float": 0.1, "int": 2**62, "text": "x"}
    watched_shard.producer.set_many(expected)
    generator = random.Random(7)
    for _ in range(6):
        for number in range(30):
            amount = generator.choice([0.1, 1e-17, -1e16, 3.3, 1e300, -1e300])
            expected["float"] += amount
            watched_shard.producer.increment("float", amount)
            expected["int"] += 7
            watched_shard.producer.increment("int", 7)
            watched_shard.producer.increment("text", 1)
            if number % 10 == 9:
                watched_shard.publish()
        watched_shard.write()
    assert packed(watched_shard.agree()) == packed(expected)


def test_the_log_is_kept_for_its_retention(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Within the retention nothing is cut, however many full states are written."""

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session, log_retention=60)
        for number in range(4):
            await asyncio.to_thread(watched_shard.producer.set, "key", number)
            await asyncio.to_thread(watched_shard.publish)
            await worker.write_once()
        await worker.release()

    watched_shard.run(scenario)
    assert (first_logged(raw, keys), watched_shard.shard.log_entries) == (1, 4)


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_the_log_is_cut_by_age_while_nothing_is_written(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, *, is_taken_over: bool
) -> None:
    """An idle log is emptied after its retention, also by a later scheduler; then all is quiet."""

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session, log_retention=0.2)
        await asyncio.to_thread(watched_shard.producer.set, "key", 1)
        await asyncio.to_thread(watched_shard.publish)
        assert await worker.write_once() is not None
        if is_taken_over:
            await worker.release()
            worker = snapshot_worker(session, log_retention=0.2)
        assert await worker.write_once() is None
        assert watched_shard.shard.log_entries == 1
        for _ in range(60):
            if await worker.write_once() is not None:
                break
            await asyncio.sleep(0.05)
        assert watched_shard.shard.log_entries == 0
        await asyncio.sleep(0.3)
        assert await worker.write_once() is None
        await worker.release()

    watched_shard.run(scenario)
    assert raw.xlen(keys.log) == 0


@pytest.mark.parametrize("why", ["age", "size"])
def test_the_log_is_cut_behind_the_full_state(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, why: str
) -> None:
    """By age or by size the log is cut, never beyond what the full state holds."""
    settings: dict[str, Any] = {"log_retention": 0} if why == "age" else {"log_limit": 1000}

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session, **settings)
        for number in range(8):
            await asyncio.to_thread(watched_shard.producer.set, f"k{number}", "x" * 300)
            await asyncio.to_thread(watched_shard.publish)
            await worker.write_once()
            snapshot = watched_shard.shard.snapshot_offset
            assert snapshot == 2 * number + 1
            # What comes after the full state has to be in the log, for nobody else has it.
            await asyncio.to_thread(watched_shard.producer.set, "after", number)
            await asyncio.to_thread(watched_shard.publish)
            assert 0 < first_logged(raw, keys) <= snapshot + 1
        await worker.release()

    watched_shard.run(scenario)
    assert first_logged(raw, keys) != 1
    logged: Any = raw.xrange(keys.log)
    assert watched_shard.shard.log_bytes == sum(len(fields[b"b"]) for _, fields in logged)
    assert len(watched_shard.inspector.folded()) == 9
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == watched_shard.inspector.folded()


class Interrupted(SnapshotWorker):
    """A slow scheduler: something happens between its reading and its writing."""

    meanwhile: Callable[[], None]

    async def _write_pages(self, folded: Any) -> tuple[int, int]:
        await asyncio.to_thread(self.meanwhile)
        return await super()._write_pages(folded)


@pytest.mark.parametrize("why", ["age", "size"])
def test_what_came_while_it_was_written_stays_in_the_log(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, why: str
) -> None:
    """Batches that are published while a full state is written are not cut with it."""

    def write() -> None:
        for _ in range(4):
            watched_shard.producer.increment("n")
            watched_shard.publish()

    async def scenario(session: Session) -> None:
        worker = Interrupted(
            session,
            0,
            unique("s"),
            lease_ttl=5.0,
            log_retention=0.0 if why == "age" else 60.0,
            log_limit=1 if why == "size" else 1 << 30,
        )
        worker.meanwhile = write
        for _ in range(3):
            await worker.write_once()
            shard = watched_shard.shard
            assert shard.offset == shard.snapshot_offset + 4
            assert 0 < first_logged(raw, keys) <= shard.snapshot_offset + 1
            assert watched_shard.inspector.folded()["n"] == shard.offset
        await worker.release()

    write()
    watched_shard.run(scenario)
    assert first_logged(raw, keys) > 1


def test_a_notice_tells_of_the_full_state(watched_shard: WatchedShard, keys: ShardKeys) -> None:
    """A committed full state is announced with its position, also if only the log was cut."""
    with Channel(watched_shard.url, keys) as channel:
        for number in range(3):
            watched_shard.producer.set("key", number)
            watched_shard.publish()
        eventually(lambda: len(channel.batches) == 3)
        batch = channel.batches[-1]
        assert watched_shard.write(log_limit=1 << 30) is not None
        # Nothing is new, but the log is too large for this one.
        assert watched_shard.write(log_limit=1) is not None

        def notices() -> list[Packet]:
            return [one.packet for one in channel.seen if isinstance(one.packet, Notice)]

        eventually(lambda: len(notices()) == 2)
        for notice in notices():
            assert (notice.position, notice.previous_id) == (batch.position, batch.previous_id)
        eventually(lambda: isinstance(channel.seen[-1].packet, Heartbeat))
        assert channel.seen[-1].packet.position == batch.position


def test_the_scheduler_writes_every_interval(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A running scheduler writes the full state regularly, and once more when it stops."""
    workers = serving(server.url, namespace, shards=2, interval=0.1)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):

        def has_written(number: int) -> bool:
            return inspector.state().get("k7") == number

        for number in range(5):
            producer.set_many({f"k{n}": number for n in range(50)})
            producer.flush(10)
            eventually(partial(has_written, number))
        producer.set("last", 1)
        producer.flush(10)
        eventually(lambda: inspector.folded().get("last") == 1)
        workers.stop()
        assert inspector.state() == inspector.folded()
        assert [one.lease for one in inspector.status().shards] == [None, None]
        assert inspector.state()["last"] == 1


def test_state_of_many_pages(server: Server, namespace: str, serving: NewServing) -> None:
    """Thousands of keys over many pages and shards arrive in the full state, deletes included."""
    serving(server.url, namespace, shards=2)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        producer.set_many({f"k{number}": number for number in range(12_000)})
        producer.flush(10)
        for number in range(0, 12_000, 3):
            producer.delete(f"k{number}")
        producer.flush(10)
        eventually(lambda: sum(s.pending_deltas for s in inspector.status().shards) == 0)
        write_snapshots(server.url, namespace)
        expected = {f"k{number}": number for number in range(12_000) if number % 3}
        assert inspector.state() == inspector.folded() == expected


@pytest.mark.slow
def test_renewing_the_lease_writes_nothing(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """The full state is written once an interval, however often the lease is renewed meanwhile."""
    scheduler = serving(server.url, namespace, interval=60.0).scheduler
    assert scheduler is not None
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
        redis.Redis.from_url(server.url, protocol=2) as raw,
    ):
        # The first round comes at once, with the lease.
        eventually(lambda: raw.get(keys.lease) and not scheduler._is_writing)
        producer.set("late", 1)
        producer.flush(10)
        eventually(lambda: inspector.folded() == {"late": 1})
        left = [raw.pttl(keys.lease)]

        def is_renewed() -> bool:
            left.append(raw.pttl(keys.lease))
            return left[-1] > left[-2]

        for _ in range(3):
            eventually(is_renewed)
        assert inspector.state() == {}
