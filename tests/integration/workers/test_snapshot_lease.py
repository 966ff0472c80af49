"""Schedulers that lose their lease, crash or overlap write one consistent full state."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from broker import BackendError, FencedError, Inspector, Producer, Replica
from broker.backend.session import Session
from broker.engine.net_changes import NetChanges
from broker.protocol.cells import cell_of
from broker.protocol.codec import pack_cell
from broker.protocol.digest import Digest
from broker.protocol.messages import LogEntry
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import (
    NewServing,
    snapshot_worker,
    unique,
)
from tests.integration.watched_shard import WatchedShard, folded_by, half_written
from workers.snapshot import SnapshotWorker, Written


def test_only_the_holder_of_the_lease_writes(watched_shard: WatchedShard) -> None:
    """Only one of two schedulers writes, until it releases the lease."""
    watched_shard.producer.set("key", 1)
    watched_shard.publish()

    async def scenario(session: Session) -> None:
        one, two = snapshot_worker(session), snapshot_worker(session)
        assert await one.write_once() is not None
        assert not await two.renew()
        await asyncio.to_thread(watched_shard.producer.set, "key", 2)
        await asyncio.to_thread(watched_shard.publish)
        assert await two.write_once() is None
        assert watched_shard.shard.lease == one.holder
        await one.release()
        assert await two.write_once() is not None
        assert two.fence > one.fence
        await two.release()

    watched_shard.run(scenario)
    assert watched_shard.agree() == {"key": 2}


def test_a_scheduler_that_lost_the_lease_cannot_write(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Page and commit of a scheduler whose lease expired are refused."""
    watched_shard.producer.set("key", 1)
    watched_shard.publish()

    async def scenario(session: Session) -> None:
        sleeper = snapshot_worker(session, lease_ttl=0.5)
        other = snapshot_worker(session, lease_ttl=30)
        assert await sleeper.renew()
        folded = await folded_by(sleeper, session)
        await asyncio.to_thread(eventually, lambda: not raw.exists(keys.lease))
        await asyncio.to_thread(watched_shard.producer.set, "key", 2)
        await asyncio.to_thread(watched_shard.publish)
        assert await other.write_once() is not None
        with pytest.raises(FencedError, match="lease"):
            await sleeper._write_pages(folded)
        with pytest.raises(FencedError, match="lease"):
            await sleeper._commit(folded, pressed=False)
        await sleeper.release()
        assert watched_shard.shard.lease == other.holder, "only the holder can give it back"

    watched_shard.run(scenario)
    assert watched_shard.shard.snapshot_offset == watched_shard.shard.offset
    assert watched_shard.agree() == {"key": 2}


def test_a_lease_that_was_lost_and_taken_again_is_another_one(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Fencing numbers only grow: a write under an older lease is refused under a newer one."""
    watched_shard.producer.set("key", 1)
    watched_shard.publish()

    async def scenario(session: Session) -> None:
        holder = unique("s")
        before = snapshot_worker(session, holder=holder)
        assert await before.renew()
        fence = before.fence
        raw.delete(keys.lease)
        after = snapshot_worker(session, holder=holder)
        assert await after.renew()
        assert after.fence > fence
        with pytest.raises(FencedError):
            await before._write_pages(await folded_by(before, session))

    watched_shard.run(scenario)


class Sleeper(SnapshotWorker):
    """A scheduler that sleeps while it reads the log, and is killed before it commits."""

    meanwhile: Callable[[], None]

    async def _fold_batch(self, changes: NetChanges, entry: LogEntry) -> None:
        await super()._fold_batch(changes, entry)
        await asyncio.to_thread(self.meanwhile)

    async def _commit(self, folded: Any, *, pressed: bool) -> None:  # noqa: ARG002
        raise BackendError("killed")


@pytest.mark.parametrize("is_cut", [False, True])
def test_who_lost_the_lease_and_finds_it_free_begins_anew(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, *, is_cut: bool
) -> None:
    """A scheduler does not finish a write if another one had the lease meanwhile."""
    watched_shard.producer.set_many({"n": 1, "gone": 1})
    watched_shard.publish()
    naps: list[Written | None] = []

    def nap() -> None:
        raw.delete(keys.lease)
        watched_shard.producer.increment("n", 10)
        watched_shard.publish()
        watched_shard.producer.delete("gone")
        watched_shard.publish()
        naps.append(watched_shard.write(log_limit=1 if is_cut else 1 << 30))

    async def scenario(session: Session) -> None:
        sleeper = Sleeper(session, 0, unique("s"), lease_ttl=5.0, log_retention=60, log_limit=1)
        sleeper.meanwhile = nap
        with pytest.raises((FencedError, BackendError)):
            await sleeper.write_once()
        assert len(naps) == 1
        assert naps[0] is not None
        await sleeper.release()

    watched_shard.run(scenario)
    assert watched_shard.inspector.folded() == {"n": 11}
    watched_shard.producer.increment("n", 100)
    watched_shard.publish()
    watched_shard.write()
    assert watched_shard.agree() == {"n": 111}


def grow_old(raw: redis.Redis, keys: ShardKeys, ms: int) -> None:
    """Return when the lease has so much less time left; blocks the thread."""
    before: Any = raw.pttl(keys.lease)
    eventually(lambda: raw.pttl(keys.lease) <= before - ms)


class SlowScheduler(SnapshotWorker):
    """A scheduler on a slow machine: each batch takes part of the lease time."""

    pause: Callable[[], None]

    async def _fold_batch(self, changes: NetChanges, entry: LogEntry) -> None:
        self.pause()
        await super()._fold_batch(changes, entry)


def test_reading_longer_than_the_lease_lasts(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A scheduler keeps its lease while it reads a long backlog."""
    # Nearly three times the time of the lease in all, a quarter of it between two renewals.
    batches = 90
    for _ in range(batches):
        watched_shard.producer.increment("n")
        watched_shard.publish()

    async def scenario(session: Session) -> None:
        scheduler = SlowScheduler(
            session, 0, unique("s"), lease_ttl=1.0, log_retention=60, log_limit=1 << 30
        )
        scheduler.pause = lambda: grow_old(raw, keys, 30)
        written = await scheduler.write_once()
        assert written is not None
        assert written.batches == batches
        await scheduler.release()

    watched_shard.run(scenario)
    assert watched_shard.agree() == {"n": batches}


@pytest.mark.slow
def test_writing_longer_than_the_lease_lasts(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A scheduler keeps its lease while it writes many pages."""
    count = 12_000
    watched_shard.producer.set_many({f"k{number}": number for number in range(count)})
    watched_shard.publish()

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session, lease_ttl=0.3)
        write_page = session.commands.snapshot_page

        async def slowly(*arguments: Any) -> None:
            await asyncio.to_thread(grow_old, raw, keys, 60)
            await write_page(*arguments)

        session.commands.snapshot_page = slowly  # type: ignore[assignment, method-assign]
        written = await worker.write_once()
        assert written is not None
        assert written.sets == count
        await worker.release()

    watched_shard.run(scenario)
    assert len(watched_shard.agree()) == count


def test_a_half_written_full_state_is_finished_by_another(watched_shard: WatchedShard) -> None:
    """After a kill between pages and commit, readers are right and another scheduler finishes."""
    watched_shard.producer.set_many({"n": 10, "f": 0.1, "gone": 1, "same": "x"})
    watched_shard.publish()
    watched_shard.write()
    for _ in range(5):
        watched_shard.producer.increment("n")
        watched_shard.producer.increment("f", 0.1)
    watched_shard.producer.delete("gone")
    watched_shard.publish()
    watched_shard.run(half_written)
    expected = {"n": 15, "f": 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1, "same": "x"}
    assert watched_shard.inspector.folded() == expected
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == expected
        assert replica.stats().deltas_superseded > 0
    watched_shard.producer.increment("n")
    watched_shard.producer.increment("gone", 3)
    watched_shard.publish()
    eventually(lambda: watched_shard.write() is not None)
    assert watched_shard.agree() == expected | {"n": 16, "gone": 3}


@pytest.mark.parametrize("deaths", [1, 3])
def test_schedulers_may_die_again_and_again(watched_shard: WatchedShard, deaths: int) -> None:
    """Sums stay exact when many schedulers crash during a write."""
    for death in range(deaths):
        for _ in range(10):
            watched_shard.producer.increment("n")
            watched_shard.producer.increment(f"of{death}", 2)
        watched_shard.publish()
        eventually(lambda: watched_shard.shard.lease is None)
        watched_shard.run(half_written)
    eventually(lambda: watched_shard.write() is not None)
    assert watched_shard.agree() == {"n": deaths * 10} | {
        f"of{death}": 20 for death in range(deaths)
    }


def test_a_rewritten_shard_refuses_what_was_folded_before(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A full state folded from a rolled-back history is not written."""
    watched_shard.producer.set("key", 1)
    watched_shard.publish()

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session)
        assert await worker.renew()
        folded = await folded_by(worker, session)
        meta: Any = raw.hgetall(keys.meta)
        others: list[dict[str, Any]] = [{"id": b"another!"}, {"offset": 0}, {"epoch": b"newepoch"}]
        for other in others:
            raw.hset(keys.meta, mapping=other)
            with pytest.raises(FencedError, match="came back with less"):
                await worker._write_pages(folded)
            raw.hset(keys.meta, mapping=meta)
        raw.delete(keys.meta)
        with pytest.raises(FencedError):
            await worker._write_pages(folded)
        raw.hset(keys.meta, mapping=meta)
        assert not raw.exists(keys.state)
        await worker._write_pages(folded)
        raw.hset(keys.meta, mapping={"fold": b"earlier!"})
        with pytest.raises(FencedError):
            await worker._commit(folded, pressed=False)
        assert raw.hmget(keys.meta, "snap_offset", "snap_at") == [None, None]
        await worker._write_pages(folded)
        await worker._commit(folded, pressed=False)
        await worker.release()

    watched_shard.run(scenario)
    assert watched_shard.shard.snapshot_offset == 1


def digest_of(state: dict[str, Any]) -> Digest:
    """Return the digest that a state should have."""
    digest = Digest()
    for key, value in state.items():
        digest.add(key, b"\0" + pack_cell(cell_of(value)[0]))
    return digest


def test_the_digest_is_that_of_what_is_held(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys
) -> None:
    """The digest matches after every operation, an unfinished write and a deleted digest."""

    def digest() -> Digest:
        found: Any = raw.hget(keys.meta, "digest")
        return Digest.of_bytes(found)

    watched_shard.producer.set_many({f"k{n}": n for n in range(2500)})
    watched_shard.publish()
    watched_shard.write()
    assert digest() == digest_of(watched_shard.agree())
    watched_shard.producer.increment("k1", 5)
    watched_shard.producer.delete("k2")
    watched_shard.producer.delete("never")
    watched_shard.producer.set("k3", 3)
    watched_shard.producer.set("k4", [1, {"a": 2.5}])
    watched_shard.publish()
    watched_shard.run(half_written)
    held = digest()
    assert held == digest_of(watched_shard.inspector.state())
    watched_shard.producer.increment("k1", 5)
    watched_shard.publish()
    eventually(lambda: watched_shard.write() is not None)
    assert digest() == digest_of(watched_shard.agree()) != held
    raw.hdel(keys.meta, "digest")
    assert watched_shard.write() is not None
    assert digest() == digest_of(watched_shard.agree())
    assert watched_shard.write() is None


def test_a_backlog_is_written_in_portions(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long backlog is committed in portions, so a crash loses only the last one."""
    monkeypatch.setattr("broker.backend.page_sizes.PORTION_KEYS", 10)
    monkeypatch.setattr("broker.backend.page_sizes.LOG_OF_SCHEDULER", 1)
    for number in range(5):
        watched_shard.producer.set_many({f"k{number}/{n}": n for n in range(10)})
        watched_shard.producer.increment("n")
        watched_shard.publish()
    commits: list[int] = []

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session)
        commit = session.commands.snapshot_commit

        async def noted(*arguments: Any, **options: Any) -> int:
            stays = await commit(*arguments, **options)
            commits.append(watched_shard.shard.snapshot_offset)
            return stays

        session.commands.snapshot_commit = noted  # type: ignore[method-assign]
        assert await worker.write_once() is not None
        await worker.release()

    watched_shard.run(scenario)
    assert commits == [1, 2, 3, 4, 5]
    assert watched_shard.agree()["n"] == 5
    # After a death the first portion reaches as far as the pages of the dead.
    for number in range(3):
        watched_shard.producer.set_many({f"k{number}/{n}": -n for n in range(10)})
        watched_shard.producer.increment("n")
        watched_shard.publish()
    monkeypatch.setattr("broker.backend.page_sizes.PORTION_KEYS", 1000)
    watched_shard.run(half_written)
    monkeypatch.setattr("broker.backend.page_sizes.PORTION_KEYS", 10)
    for _ in range(2):
        watched_shard.producer.increment("n")
        watched_shard.producer.set_many({f"x/{n}": n for n in range(10)})
        watched_shard.publish()
    eventually(lambda: watched_shard.shard.lease is None)
    commits.clear()
    watched_shard.run(scenario)
    assert commits[0] == 8
    assert watched_shard.agree()["n"] == 10


def test_a_second_scheduler_takes_over_at_once_when_the_first_stops(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """When the active scheduler stops in order, the other one writes at its next turn."""
    first = serving(server.url, namespace, interval=0.1)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        producer.set("key", 1)
        producer.flush(10)
        eventually(lambda: inspector.state() == {"key": 1})
        second = serving(server.url, namespace, interval=0.1)
        assert first.scheduler
        assert second.scheduler
        first.stop()
        producer.set("key", 2)
        producer.flush(10)
        eventually(lambda: inspector.state() == {"key": 2}, 5)
        assert inspector.status().shards[0].lease == second.scheduler.name
        assert second.scheduler.stats().errors == 0


def test_whoever_reads_while_it_is_written_sees_one_moment(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """New replicas and inspectors see a consistent prefix at any time."""
    serving(server.url, namespace, max_age=0.002, interval=0.1, log_retention=0.2)
    stop = threading.Event()
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                producer.increment("n")
                producer.set_many({f"k{n}": number for n in range(0, 3000, 3)})
                producer.increment("half", 0.5)
                producer.set(f"only{number}", number)
                producer.delete(f"only{number - 1}")
                producer.flush(10)

        def check(content: dict[str, Any]) -> None:
            number = content.get("k0", 0)
            assert {content.get(f"k{n}", 0) for n in range(0, 3000, 3)} == {number}
            assert content.get("n", 0) - number in (0, 1)
            assert number - content.get("half", 0) * 2 in (0, 1)
            assert len([key for key in content if key.startswith("only")]) <= 2

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(15):
                check(inspector.folded())
                with Replica(server.url, namespace=namespace) as newcomer:
                    newcomer.wait_live(10)
                    check(newcomer.snapshot()[0])
        finally:
            stop.set()
            writer.join()
        shard = inspector.status().shards[0]
        assert 0 < shard.snapshot_offset
        assert shard.log_entries < shard.offset, "the log was not cut meanwhile"
