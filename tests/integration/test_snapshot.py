"""The full state in Redis: incremental, fenced, exact, and the log behind it cut in time."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from broker import BackendError, FencedError, Inspector, Producer, Replica, reads
from broker.aio.session import Session
from broker.codec import unpack_fields
from broker.keys import ShardKeys
from broker.model import Heartbeat, Notice, Packet
from tests.integration.channel import Channel
from tests.integration.content import packed
from tests.integration.serving import (
    NewServing,
    joined,
    snapshot_worker,
    unique,
    write_snapshots,
)
from tests.servers import Server
from tests.waiting import eventually
from workers.snapshot import SnapshotWorker, Written


class World:
    """A served namespace with one producer, and schedulers made by hand."""

    def __init__(self, url: str, namespace: str, producer: Producer, inspector: Inspector) -> None:
        self.url = url
        self.namespace = namespace
        self.producer = producer
        self.inspector = inspector

    def publish(self) -> None:
        """Let everything written so far be in the log."""
        self.producer.flush(10)
        eventually(lambda: self.shard["pending_deltas"] == 0)

    @property
    def shard(self) -> dict[str, Any]:
        """What the status says of the only shard."""
        found: dict[str, Any] = self.inspector.status()["shards"][0]
        return found

    def write(self, **settings: Any) -> Written | None:
        """Bring the full state up to the head."""
        return write_snapshots(self.url, self.namespace, **settings)[0]

    def run(self, scenario: Callable[[Session], Awaitable[None]]) -> None:
        """Run a scenario on the workers' own level."""

        async def run() -> None:
            async with joined(self.url, self.namespace) as session:
                await scenario(session)

        asyncio.run(run())

    def agree(self) -> dict[str, Any]:
        """Check that full state, log and a fresh replica say the same, and return it."""
        state = self.inspector.state()
        assert packed(self.inspector.folded()) == packed(state)
        with Replica(self.url, namespace=self.namespace) as replica:
            replica.wait_live(10)
            assert packed(replica) == packed(state)
        return state


@pytest.fixture
def world(server: Server, namespace: str, serving: NewServing) -> Iterator[World]:
    """Give a namespace with a flush worker and no scheduler."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        yield World(server.url, namespace, producer, inspector)


async def half_written(session: Session) -> None:
    """Do what a scheduler does until it is killed between its pages and its commit."""
    worker = snapshot_worker(session, lease_ttl=0.05)
    assert await worker.renew()
    await worker._write_pages(await folded_by(worker, session))


async def folded_by(worker: SnapshotWorker, session: Session) -> Any:
    """Return the net changes that a scheduler would write now."""
    head = (await reads.log_page(session.client, session.keys[0], 0, 0)).head
    assert head is not None
    return (await worker._fold(head.snapshot, head.position.offset))[0]


def test_only_what_changed_is_written(world: World) -> None:
    """The second full state writes what changed since the first, each key once; the third none."""
    world.producer.set_many({f"k{number}": number for number in range(500)})
    world.publish()
    first = world.write()
    assert first is not None
    assert (first.sets, first.deletes) == (500, 0)
    for number in range(50):
        world.producer.set("k1", number)
        world.producer.increment("k2")
    world.producer.delete("k3")
    world.producer.set("new", 1)
    world.publish()
    second = world.write()
    assert second is not None
    assert (second.sets, second.deletes) == (3, 1)
    assert world.write() is None
    state = world.agree()
    assert (state["k1"], state["k2"], "k3" in state, state["new"]) == (49, 52, False, 1)
    assert len(state) == 500


def test_every_field_carries_its_offset(world: World, raw: redis.Redis, keys: ShardKeys) -> None:
    """A field of the hash says up to which offset it was folded."""
    world.producer.set("old", 1)
    world.publish()
    world.write()
    world.producer.set("young", 1)
    world.publish()
    world.write()
    content: Any = raw.hgetall(keys.state)
    offsets, values = unpack_fields([content[b"old"], content[b"young"]])
    assert (offsets, values) == ([1, 2], [1, 1])


def test_deletes_reach_the_full_state(world: World) -> None:
    """Deleted keys leave the hash; set again they stay; set and deleted they never come."""
    world.producer.set_many({"a": 1, "b": 1, "c": 1})
    world.publish()
    world.write()
    world.producer.delete("a")
    world.producer.delete("b")
    world.producer.set("b", 2)
    world.producer.set("d", 1)
    world.producer.delete("d")
    world.producer.delete("never")
    world.producer.delete("c")
    world.producer.increment("c", 5)
    world.publish()
    world.write()
    assert world.agree() == {"b": 2, "c": 5}


def test_increments_go_on_from_the_full_state(world: World) -> None:
    """Increments are added to what the hash holds, over many full states, to the last bit."""
    expected: dict[str, Any] = {"float": 0.1, "int": 2**62, "text": "x"}
    world.producer.set_many(expected)
    dice = random.Random(7)
    for _ in range(6):
        for _ in range(30):
            amount = dice.choice([0.1, 1e-17, -1e16, 3.3, 1e300, -1e300])
            expected["float"] += amount
            world.producer.increment("float", amount)
            expected["int"] += 7
            world.producer.increment("int", 7)
            world.producer.increment("text", 1)
        world.publish()
        world.write()
    assert packed(world.agree()) == packed(expected)


def test_only_the_holder_of_the_lease_writes(world: World) -> None:
    """Of two schedulers one writes; the other does nothing until the lease is given back."""
    world.producer.set("key", 1)
    world.publish()

    async def scenario(session: Session) -> None:
        one, two = snapshot_worker(session), snapshot_worker(session)
        assert await one.write_once() is not None
        assert not await two.renew()
        await asyncio.to_thread(world.producer.set, "key", 2)
        await asyncio.to_thread(world.publish)
        assert await two.write_once() is None
        assert world.shard["lease"] == one.holder
        await one.release()
        assert await two.write_once() is not None
        assert two.fence > one.fence
        await two.release()

    world.run(scenario)
    assert world.agree() == {"key": 2}


def test_who_lost_the_lease_cannot_write(world: World, raw: redis.Redis, keys: ShardKeys) -> None:
    """A scheduler that slept through the end of its lease is refused, page and commit alike."""
    world.producer.set("key", 1)
    world.publish()

    async def scenario(session: Session) -> None:
        sleeper = snapshot_worker(session, lease_ttl=0.05)
        other = snapshot_worker(session, lease_ttl=30)
        assert await sleeper.renew()
        folded = await folded_by(sleeper, session)
        await asyncio.to_thread(eventually, lambda: not raw.exists(keys.lease))
        await asyncio.to_thread(world.producer.set, "key", 2)
        await asyncio.to_thread(world.publish)
        assert await other.write_once() is not None
        with pytest.raises(FencedError, match="lease"):
            await sleeper._write_pages(folded)
        with pytest.raises(FencedError, match="lease"):
            await sleeper._commit(folded, pressed=False)
        await sleeper.release()
        assert world.shard["lease"] == other.holder, "only the holder can give it back"

    world.run(scenario)
    assert world.shard["snapshot_offset"] == world.shard["offset"]
    assert world.agree() == {"key": 2}


def test_a_lease_that_was_lost_and_taken_again_is_another_one(
    world: World, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Fencing numbers only grow: nothing begun under an older lease ends under a newer."""
    world.producer.set("key", 1)
    world.publish()

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
            await session.commands.snapshot_page(session.keys[0], holder, fence, [], ["key"])

    world.run(scenario)


class Sleeper(SnapshotWorker):
    """A scheduler that falls asleep while it reads the log, and is killed before it commits."""

    meanwhile: Callable[[], None]

    async def _fold_batch(self, folded: Any, data: bytes, nodes: list[str]) -> None:
        await super()._fold_batch(folded, data, nodes)
        await asyncio.to_thread(self.meanwhile)

    async def _commit(self, folded: Any, *, pressed: bool) -> None:  # noqa: ARG002
        raise BackendError("killed")


@pytest.mark.parametrize("is_cut", [False, True])
def test_who_lost_the_lease_and_finds_it_free_begins_anew(
    world: World, raw: redis.Redis, keys: ShardKeys, *, is_cut: bool
) -> None:
    """A scheduler whose lease another one had meanwhile does not finish what it had begun."""
    world.producer.set_many({"n": 1, "gone": 1})
    world.publish()
    naps: list[Written | None] = []

    def nap() -> None:
        raw.delete(keys.lease)
        world.producer.increment("n", 10)
        world.publish()
        world.producer.delete("gone")
        world.publish()
        naps.append(world.write(log_limit=1 if is_cut else 1 << 30))

    async def scenario(session: Session) -> None:
        sleeper = Sleeper(session, 0, unique("s"), lease_ttl=5.0, log_retention=60, log_limit=1)
        sleeper.meanwhile = nap
        with pytest.raises((FencedError, BackendError)):
            await sleeper.write_once()
        assert len(naps) == 1
        assert naps[0] is not None
        await sleeper.release()

    world.run(scenario)
    assert world.inspector.folded() == {"n": 11}
    world.producer.increment("n", 100)
    world.publish()
    world.write()
    assert world.agree() == {"n": 111}


def test_a_half_written_full_state_is_finished_by_another(world: World) -> None:
    """Killed between pages and commit: readers are right at once, the next scheduler after."""
    world.producer.set_many({"n": 10, "f": 0.1, "gone": 1, "same": "x"})
    world.publish()
    world.write()
    for _ in range(5):
        world.producer.increment("n")
        world.producer.increment("f", 0.1)
    world.producer.delete("gone")
    world.publish()
    world.run(half_written)
    expected = {"n": 15, "f": 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1, "same": "x"}
    assert world.inspector.folded() == expected
    with Replica(world.url, namespace=world.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == expected
        assert replica.stats()["deltas_superseded"] > 0
    world.producer.increment("n")
    world.producer.increment("gone", 3)
    world.publish()
    eventually(lambda: world.write() is not None)
    assert world.agree() == expected | {"n": 16, "gone": 3}


@pytest.mark.parametrize("deaths", [1, 3])
def test_schedulers_may_die_again_and_again(world: World, deaths: int) -> None:
    """However many schedulers die half way, sums stay exact."""
    for death in range(deaths):
        for _ in range(10):
            world.producer.increment("n")
            world.producer.increment(f"of{death}", 2)
        world.publish()
        eventually(lambda: world.shard["lease"] is None)
        world.run(half_written)
    eventually(lambda: world.write() is not None)
    assert world.agree() == {"n": deaths * 10} | {f"of{death}": 20 for death in range(deaths)}


def test_a_rewritten_shard_refuses_the_commit(
    world: World, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A full state folded from a history that is gone cannot be committed onto the new one."""
    world.producer.set("key", 1)
    world.publish()

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session)
        assert await worker.renew()
        folded = await folded_by(worker, session)
        meta: Any = raw.hgetall(keys.meta)
        raw.hset(keys.meta, "id", b"another!")
        with pytest.raises(FencedError):
            await worker._commit(folded, pressed=False)
        raw.hset(keys.meta, mapping={"id": meta[b"id"], "offset": 0})
        with pytest.raises(FencedError):
            await worker._commit(folded, pressed=False)
        raw.delete(keys.meta)
        with pytest.raises(FencedError):
            await worker._commit(folded, pressed=False)
        raw.hset(keys.meta, mapping={**meta, b"epoch": b"newepoch"})
        with pytest.raises(FencedError):
            await worker._commit(folded, pressed=False)
        found: Any = raw.hmget(keys.meta, "snap_offset", "snap_at")
        assert found == [None, None]
        raw.hset(keys.meta, mapping=meta)
        await worker._commit(folded, pressed=False)
        await worker.release()

    world.run(scenario)
    assert world.shard["snapshot_offset"] == 1


def first_logged(raw: redis.Redis, keys: ShardKeys) -> int:
    """Return the offset of the oldest batch in the log; 0 if it is empty."""
    entries: Any = raw.xrange(keys.log, count=1)
    return int(entries[0][0].partition(b"-")[0]) if entries else 0


def test_the_log_is_kept_for_its_retention(world: World, raw: redis.Redis, keys: ShardKeys) -> None:
    """Within the retention nothing is cut, however many full states are written."""

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session, log_retention=60)
        for number in range(4):
            await asyncio.to_thread(world.producer.set, "key", number)
            await asyncio.to_thread(world.publish)
            await worker.write_once()
        await worker.release()

    world.run(scenario)
    assert (first_logged(raw, keys), world.shard["log_entries"]) == (1, 4)


@pytest.mark.parametrize("why", ["age", "size"])
def test_the_log_is_cut_behind_the_full_state(
    world: World, raw: redis.Redis, keys: ShardKeys, why: str
) -> None:
    """By age or by size the log is cut, never beyond what the full state holds."""
    settings: dict[str, Any] = {"log_retention": 0} if why == "age" else {"log_limit": 1000}

    async def scenario(session: Session) -> None:
        worker = snapshot_worker(session, **settings)
        for number in range(8):
            await asyncio.to_thread(world.producer.set, f"k{number}", "x" * 300)
            await asyncio.to_thread(world.publish)
            await worker.write_once()
            snapshot = world.shard["snapshot_offset"]
            assert snapshot == 2 * number + 1
            # What comes after the full state has to be in the log, for nobody else has it.
            await asyncio.to_thread(world.producer.set, "after", number)
            await asyncio.to_thread(world.publish)
            assert 0 < first_logged(raw, keys) <= snapshot + 1
        await worker.release()

    world.run(scenario)
    assert first_logged(raw, keys) != 1
    logged: Any = raw.xrange(keys.log)
    assert world.shard["log_bytes"] == sum(len(fields[b"b"]) for _, fields in logged)
    assert len(world.inspector.folded()) == 9
    with Replica(world.url, namespace=world.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == world.inspector.folded()


class Interrupted(SnapshotWorker):
    """A scheduler that is slow: something happens between its reading and its writing."""

    meanwhile: Callable[[], None]

    async def _write_pages(self, folded: Any) -> tuple[int, int]:
        await asyncio.to_thread(self.meanwhile)
        return await super()._write_pages(folded)


@pytest.mark.parametrize("why", ["age", "size"])
def test_what_came_while_it_was_written_stays_in_the_log(
    world: World, raw: redis.Redis, keys: ShardKeys, why: str
) -> None:
    """Batches that are published while a full state is written are not cut with it."""

    def write() -> None:
        for _ in range(4):
            world.producer.increment("n")
            world.publish()

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
            shard = world.shard
            assert shard["offset"] == shard["snapshot_offset"] + 4
            assert 0 < first_logged(raw, keys) <= shard["snapshot_offset"] + 1
            assert world.inspector.folded()["n"] == shard["offset"]
        await worker.release()

    write()
    world.run(scenario)
    assert first_logged(raw, keys) > 1


def test_a_notice_tells_of_the_full_state(world: World, keys: ShardKeys) -> None:
    """A committed full state is announced with its position, also if only the log was cut."""
    with Channel(world.url, keys) as channel:
        for number in range(3):
            world.producer.set("key", number)
            world.publish()
        batch = channel.batches[-1]
        assert world.write(log_limit=1 << 30) is not None
        # Nothing is new, but the log is too large for this one.
        assert world.write(log_limit=1) is not None

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
    """With a scheduler running the full state follows by itself, and is complete when it stops."""
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
        assert [one["lease"] for one in inspector.status()["shards"]] == [None, None]
        assert inspector.state()["last"] == 1


def test_a_second_scheduler_takes_over_at_once_when_the_first_stops(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Two schedulers: one writes; when it stops in order, the other goes on at its next turn."""
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
        assert inspector.status()["shards"][0]["lease"] == second.scheduler.name
        assert second.scheduler.counts["errors"] == 0


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
        eventually(lambda: sum(s["pending_deltas"] for s in inspector.status()["shards"]) == 0)
        write_snapshots(server.url, namespace)
        expected = {f"k{number}": number for number in range(12_000) if number % 3}
        assert inspector.state() == inspector.folded() == expected


def test_whoever_reads_while_it_is_written_sees_one_moment(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Newcomers and inspections in the middle of full states, cuts and writes see a prefix."""
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
        shard = inspector.status()["shards"][0]
        assert 0 < shard["snapshot_offset"]
        assert shard["log_entries"] < shard["offset"], "the log was not cut meanwhile"
