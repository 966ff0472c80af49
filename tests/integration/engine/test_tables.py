"""Tables on real servers: every replica shows what was written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import redis

from broker import BackendError, EncodeError, FencedError, Producer, Replica, aio
from broker.backend import queries
from broker.backend.replies import DrainLimits
from broker.backend.session import Session
from broker.engine.table_view import TableView
from broker.protocol.names import ShardKeys
from broker.protocol.sums import with_head, without_head
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing, snapshot_worker
from tests.integration.watched_shard import WatchedShard, folded_by

Content = dict[Any, tuple[float, int]]
KINDS: list[tuple[type, type]] = [(str, float), (str, int), (int, float), (int, int)]


def content(view: TableView) -> Content:
    """Return key -> (value, timestamp) of one moment."""
    copy = view.copy()
    keys = copy.keys if isinstance(copy.keys, list) else copy.keys.tolist()
    pairs = zip(copy.values.tolist(), copy.timestamps.tolist(), strict=True)
    return dict(zip(keys, pairs, strict=True))


def tables_of(replica: Replica) -> list[Content]:
    """Return the table `t` of each kind."""
    return [content(replica.table("t", keys=keys, values=values)) for keys, values in KINDS]


def fill(producer: Producer, first: int, count: int, base: int) -> None:
    """Apply every operation to keys of all kinds of table; each base has its own numbers."""
    for keys, values in KINDS:
        table = producer.table("t", keys=keys, values=values)
        numbers = [*range(first, first + count)]
        names = [f"k{n}" for n in numbers] if keys is str else numbers
        table.set_many(names, np.arange(count) + base, [base] * count)
        table.increment_many(names[::3], 10)
        table.delete_many(names[::5])
        table.increment(names[5], 7, timestamp=base)
        if keys is int:
            layout = [("key", "<u8"), ("value", "<f8" if values is float else "<i8")]
            record = np.array([(first, base, -1)], dtype=[*layout, ("timestamp", "<i8")])
            table.set_records(record)


def expected(first: int, count: int, base: int, keys: type, values: type) -> Content:
    """The content after `fill`, computed independently."""
    found: Content = {}
    for n in range(count):
        value, stamp = n + base, base
        if n % 3 == 0:
            value, stamp = value + 10, 0
        if n % 5 == 0:
            continue
        found[first + n] = values(value), stamp
    found[first + 5] = values(7), base
    if keys is int:
        found[first] = values(base), -1
    return {f"k{n}" if keys is str else n: pair for n, pair in found.items()}


def all_expected(first: int, count: int, base: int) -> list[Content]:
    """The same for each kind of table."""
    return [expected(first, count, base, keys, values) for keys, values in KINDS]


@pytest.mark.parametrize("shards", [1, 3])
def test_every_kind_and_operation_arrives(
    server: Server, namespace: str, serving: NewServing, shards: int
) -> None:
    """All kinds arrive as columns, single keys and records, in existing and new replicas."""
    serving(server.url, namespace, shards=shards, interval=0.1)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        fill(producer, 0, 2000, 100)
        producer.set("object", 1)
        token = producer.flush(10)
        replica.wait_for(token, 10)
        right = all_expected(0, 2000, 100)
        assert tables_of(replica) == right
        assert dict(replica.items()) == {"object": 1}
        fill(producer, 1500, 2000, 300)
        replica.wait_for(producer.flush(10), 10)
        right = [
            {key: pair for key, pair in one.items() if int(str(key).strip("k")) < 1500} | more
            for one, more in zip(right, all_expected(1500, 2000, 300), strict=True)
        ]
        assert tables_of(replica) == right
        view = replica.table("t", keys=int, values=int)
        assert view[2] == right[3][2][0]
        assert (len(view), set(view)) == (len(right[3]), set(right[3]))
        assert len(view.parts) == shards
        assert replica.verify().is_equal
    with Replica(server.url, namespace=namespace) as newcomer:
        newcomer.wait_live(10)
        assert tables_of(newcomer) == right


def test_both_faces_write_and_show_the_same(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The asyncio and the threaded API write and show the same."""
    serving(server.url, namespace)

    async def scenario() -> None:
        async with (
            aio.Producer(server.url, namespace=namespace) as producer,
            aio.Replica(server.url, namespace=namespace) as replica,
        ):
            table = producer.table("price")
            keys = await table.keys(["a", "b", "c"])
            await table.set_many(keys, [1.0, 2.0, 3.0], 5)
            await table.increment_many(keys, 0.5)
            await table.delete("b")
            await table.set("d", 4, timestamp=6)
            await table.increment("d")
            await table.delete_many(["c"])
            await producer.table("n", keys=int, values=int).set_records(
                np.array([7, 8, 9], "<i8").tobytes()
            )
            await replica.wait_for(await producer.flush(10), 10)
            assert content(replica.table("price")) == {"a": (1.5, 0), "d": (5.0, 0)}
            assert content(replica.table("n", keys=int, values=int)) == {7: (8, 9)}

    asyncio.run(scenario())


def test_one_call_becomes_visible_at_once(watched_shard: WatchedShard) -> None:
    """In each shard one call is visible at once; `read` returns arrays of one moment."""
    count = 5000
    names = [f"k{n}" for n in range(count)]
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        table, view = watched_shard.producer.table("t"), replica.table("t")
        keys = table.keys(names)

        def looked(shown: TableView) -> set[float]:
            return {float(one) for part in shown.parts for one in np.unique(part.values)}

        for number in range(1, 30):
            table.set_many(keys, float(number))
            found = view.read(looked)
            assert len(found) <= 1
        replica.wait_for(watched_shard.producer.flush(10), 10)
        assert view.read(looked) == {29.0}


def test_int64_that_would_leave_its_range_is_refused_and_counted(
    watched_shard: WatchedShard,
) -> None:
    """Every replica and the full state refuse the same deltas."""
    table = watched_shard.producer.table("n", values=int)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        table.set("most", (1 << 63) - 1)
        table.increment("most")
        table.increment("most", -1)
        replica.wait_for(watched_shard.producer.flush(10), 10)
        view = replica.table("n", values=int)
        assert content(view) == {"most": ((1 << 63) - 2, 0)}
        assert replica.stats().deltas_refused == 1
    watched_shard.write()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as newcomer:
        newcomer.wait_live(10)
        assert newcomer.table("n", values=int)["most"] == (1 << 63) - 2


def test_definitions_that_need_a_batch_of_their_own_are_published(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A batch without deltas is published like any other."""
    serving(server.url, namespace, limits=DrainLimits(batch_chunks=1))
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        table = producer.table("t")
        names = [f"{n:0>100}" for n in range(2000)]
        table.set_many(names, 1.0)
        replica.wait_for(producer.flush(10), 10)
        assert set(content(replica.table("t"))) == set(names)
        assert replica.positions[0].offset > 1


def test_calls_that_cannot_be_sent_leave_no_trace(watched_shard: WatchedShard) -> None:
    """A call is checked as a whole before anything is buffered."""
    table = watched_shard.producer.table("t")
    for bad in (["x"], [[1.0]], np.ones(3)):
        with pytest.raises(EncodeError):
            table.set_many(["a", "b"], bad)
    with pytest.raises(EncodeError, match="split them"):
        table.set_many([f"k{n}" for n in range(600_000)], 0.0)
    other = watched_shard.producer.table("other")
    with pytest.raises(EncodeError, match="look them up with its own"):
        table.set_many(other.keys(["a"]), 1.0)
    assert watched_shard.producer.stats().buffered == 0


# -- the full state -------------------------------------------------------------------------------


@pytest.fixture
def watched(watched_shard: WatchedShard) -> Iterator[Replica]:
    """Give a replica that saw everything from the beginning."""
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        yield replica


def test_a_newcomer_holds_what_others_hold(watched_shard: WatchedShard, watched: Replica) -> None:
    """A new replica is right from the full state, with the log, and after another scheduler."""
    for base in (0, 1000, 2500):
        fill(watched_shard.producer, base, 1500, base + 1)
        watched_shard.publish()
        watched.wait_for(watched_shard.producer.flush(10), 10)
        for _ in range(2):
            with Replica(watched_shard.url, namespace=watched_shard.namespace) as newcomer:
                newcomer.wait_live(10)
                assert tables_of(newcomer) == tables_of(watched)
                assert newcomer.verify().is_equal
            watched_shard.write()


@pytest.mark.parametrize("pages", [1, 3, 6, 9, 100])
def test_a_scheduler_that_dies_between_pages_leaves_no_trace(
    watched_shard: WatchedShard, watched: Replica, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """With one field a page, replicas and the next scheduler still hold the history."""
    monkeypatch.setattr("broker.backend.page_sizes.BYTES", 1)
    fill(watched_shard.producer, 0, 700, 1)
    watched_shard.publish()
    watched_shard.write()
    fill(watched_shard.producer, 300, 900, 500)
    watched_shard.publish()

    async def die(session: Session) -> None:
        worker = snapshot_worker(session)
        assert await worker.renew()
        write, left = session.commands.snapshot_page, pages

        async def some(*arguments: Any, **options: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise BackendError("killed")
            await write(*arguments, **options)

        session.commands.snapshot_page = some  # type: ignore[method-assign]
        folded = await folded_by(worker, session)
        if pages < 100:
            with pytest.raises(BackendError, match="killed"):
                await worker._write_pages(folded)
        else:
            await worker._write_pages(folded)
        # As if it had expired: a short time to live would also end while the pages are written.
        await session.client.delete(session.keys[0].lease)

    watched_shard.run(die)
    watched.wait_for(watched_shard.producer.flush(10), 10)
    for _ in range(3):
        with Replica(watched_shard.url, namespace=watched_shard.namespace) as newcomer:
            newcomer.wait_live(10)
            assert tables_of(newcomer) == tables_of(watched)
            assert newcomer.verify().is_equal
        fill(watched_shard.producer, 100, 50, 900)
        watched_shard.publish()
        watched.wait_for(watched_shard.producer.flush(10), 10)
        eventually(lambda: watched_shard.write() is not None)


def test_ids_of_a_node_that_left_go_with_the_log(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, watched: Replica
) -> None:
    """Ids of a node that returned under the same name stay."""

    def ids() -> list[str]:
        names: Any = raw.hkeys(keys.tables)
        return sorted(name.decode().rsplit(":", 1)[1] for name in names if b":d:" in name)

    with Producer(
        watched_shard.url, namespace=watched_shard.namespace
    ) as passing:  # a name of its own: it leaves
        passing.table("t").set_many(["a", "b"], [1.0, 2.0])
        passing.flush(10)
    watched_shard.producer.table("t").set("c", 3.0)
    watched_shard.publish()

    async def scenario(session: Session) -> None:
        # The first leaves the log as it is, the second cuts it at once.
        for log_limit, left in ((1 << 30, 2), (1, 1)):
            worker = snapshot_worker(session, log_limit=log_limit)
            for _ in range(4):
                await asyncio.to_thread(watched_shard.producer.table("t").increment, "c")
                await asyncio.to_thread(watched_shard.publish)
                assert await worker.write_once() is not None
            assert len(ids()) == left
            await worker.release()

    watched_shard.run(scenario)
    watched.wait_for(watched_shard.producer.flush(10), 10)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as newcomer:
        newcomer.wait_live(10)
        assert content(newcomer.table("t")) == content(watched.table("t"))
        watched_shard.producer.table("t").increment("c")
        newcomer.wait_for(watched_shard.producer.flush(10), 10)
        assert newcomer.table("t")["c"] == 12.0


def test_ids_stay_while_a_chunk_of_who_left_is_pending(
    watched_shard: WatchedShard,
    raw: redis.Redis,
    keys: ShardKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was accepted of a process that left may name its ids: they end once it is published."""
    with Producer(watched_shard.url, namespace=watched_shard.namespace) as passing:
        passing.table("t").set_many(["a", "b"], [1.0, 2.0])
        passing.flush(10)
    watched_shard.producer.table("t").set("c", 3.0)
    watched_shard.publish()
    ask = queries.gone_nodes

    async def with_more_pending(*arguments: Any) -> dict[str, int]:
        found = await ask(*arguments)
        return {name: append + 3_600_000_000 for name, append in found.items()}

    async def scenario(session: Session) -> None:
        for look, left in ((with_more_pending, 2), (ask, 1)):
            monkeypatch.setattr(queries, "gone_nodes", look)
            worker = snapshot_worker(session, log_limit=1)
            for _ in range(4):
                await asyncio.to_thread(watched_shard.producer.table("t").increment, "c")
                await asyncio.to_thread(watched_shard.publish)
                assert await worker.write_once() is not None
            names: Any = raw.hkeys(keys.tables)
            assert sum(b":d:" in name for name in names) == left
            await worker.release()

    watched_shard.run(scenario)


def test_a_node_that_comes_back_while_a_scheduler_looks_keeps_its_ids(
    watched_shard: WatchedShard, watched: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that returns before the scheduler reads the log keeps its new ids."""
    url, namespace = watched_shard.url, watched_shard.namespace
    back: list[Producer] = []

    def leave(node: str) -> None:
        one = Producer(url, namespace=namespace, node=node)
        one.table("t").set("a", 1.0)
        one.flush(10)
        one.close()

    def come_back(node: str) -> None:
        back.append(Producer(url, namespace=namespace, node=node))
        back[0].table("t").set_many(["b", "a"], [2.0, 3.0])
        back[0].flush(10)
        watched_shard.publish()

    async def scenario(session: Session) -> None:
        await asyncio.to_thread(leave, "n")
        await asyncio.to_thread(watched_shard.publish)
        worker = snapshot_worker(session)
        assert await worker.write_once() is not None
        assert await session.client.hdel(session.keys[0].intake, "n") == 1

        ask = queries.gone_nodes

        async def then_it_is_back(*arguments: Any) -> dict[str, int]:
            found = await ask(*arguments)
            assert "n" in found
            await asyncio.to_thread(come_back, "n")
            return found

        monkeypatch.setattr(queries, "gone_nodes", then_it_is_back)
        assert await worker.write_once() is not None
        monkeypatch.setattr(queries, "gone_nodes", ask)
        await worker.release()

    watched_shard.run(scenario)
    try:
        with Replica(url, namespace=namespace) as newcomer:
            newcomer.wait_live(10)
            back[0].table("t").increment("b", 40.0)
            token = back[0].flush(10)
            for replica in (newcomer, watched):
                replica.wait_for(token, 10)
                assert content(replica.table("t")) == {"a": (3.0, 0), "b": (42.0, 0)}
    finally:
        back[0].close()


def test_another_process_that_takes_the_name_has_ids_of_its_own(
    watched_shard: WatchedShard, watched: Replica
) -> None:
    """The former holder is fenced, and log and full state hold the deltas of both."""
    url, namespace = watched_shard.url, watched_shard.namespace
    right = {"a": (7.0, 0), "b": (20.0, 0), "c": (4.0, 0)}
    seen: list[Content] = []
    with (
        suppress(FencedError),
        Producer(url, namespace=namespace, node="n") as first,
        Producer(url, namespace=namespace, node="other") as other,
    ):
        table = first.table("t")
        table.set_many(["a", "b"], [1.0, 2.0])
        first.flush(10)
        with Producer(url, namespace=namespace, node="n") as second:
            second.table("t").set_many(["c", "b"], [3.0, 20.0])
            second.flush(10)

            def is_fenced() -> bool:
                try:
                    table.set("a", 9.0)
                    first.flush(10)
                except FencedError:
                    return True
                return False

            eventually(is_fenced)
            watched_shard.publish()
            watched_shard.write()
            second.table("t").increment_many(["c", "a"], 1.0)
            other.table("t").increment("a", 5.0)
            tokens = [second.flush(10), other.flush(10)]
            with Replica(url, namespace=namespace) as newcomer:
                newcomer.wait_live(10)
                for replica in (watched, newcomer):
                    for token in tokens:
                        replica.wait_for(token, 10)
                    seen.append(content(replica.table("t")))
    assert seen == [right, right]


# -- proof ----------------------------------------------------------------------------------------


def spoil_value(table: Any) -> None:
    """Alter a number."""
    table.values[3] = -1


def spoil_stamp(table: Any) -> None:
    """Alter a timestamp."""
    table.timestamps[3] = -1


def spoil_presence(table: Any) -> None:
    """Remove a key."""
    table.present[3] = False


@pytest.mark.parametrize("spoil", [spoil_value, spoil_stamp, spoil_presence])
def test_a_replica_that_differs_is_found_and_mends_itself(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]
) -> None:
    """Differences in values, timestamps and keys are reported, and repaired."""
    monkeypatch.setattr("broker.engine.replication.NOTICE_WAIT", 0.01)
    table = watched_shard.producer.table("t", keys=int)
    table.set_many([*range(600)], np.arange(600), 5)
    watched_shard.publish()
    watched_shard.write()
    table.increment_many([*range(10)], 1.0, 6)
    watched_shard.publish()
    url, namespace = watched_shard.url, watched_shard.namespace
    with (
        Replica(url, namespace=namespace, self_check_interval=0) as replica,
        Replica(url, namespace=namespace, self_check_interval=0.05) as careful,
    ):
        for one in (replica, careful):
            one.wait_live(10)
        right = content(replica.table("t", keys=int))
        for one in (replica, careful):
            shard = one._engine._follower.shards[0]
            (held,) = shard.tables.tables.values()
            spoil(held)
        found = replica.verify()
        (difference,) = found.differences
        assert difference.key == "t[3]"
        assert difference.history == (4.0, 6)
        assert difference.replica != difference.history
        eventually(lambda: careful.stats().keys_repaired >= 1)
        eventually(lambda: content(careful.table("t", keys=int)) == right)
        assert careful.verify().is_equal


def test_a_tables_hash_that_another_hand_altered_is_found(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, watched: Replica
) -> None:
    """The row is named, and who followed the history is proved right, or names it too."""
    table = watched_shard.producer.table("t", keys=int)
    table.set_many([*range(600)], np.arange(600))
    watched_shard.publish()
    watched_shard.write()
    watched.wait_for(watched_shard.producer.flush(10), 10)
    assert watched.verify().is_equal
    name = "t:u64-f64:v:1"
    field: Any = raw.hget(keys.tables, name)
    offset, content = without_head(name.encode(), field)
    altered = content.replace(np.array([520.0]).tobytes(), np.array([-1.0]).tobytes())
    raw.hset(keys.tables, name, with_head(name.encode(), offset, altered))
    assert watched.verify().is_equal
    (doubt,) = watched_shard.inspector.damaged_tables()
    assert doubt.startswith("table t (u64-f64) rows 512, 513, ")
    assert doubt.endswith(" of shard 0: not what schedulers wrote")
    table.set(1, 5.0)
    watched.wait_for(watched_shard.producer.flush(10), 10)
    found = watched.verify()
    assert [(one.key, one.replica, one.history) for one in found.differences] == [
        ("t[520]", (520.0, 0), (-1.0, 0))
    ]
    assert found.damaged == (doubt,)
