"""The server's history is wiped, rolled back or restarted; all parts agree in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis

from broker import (
    BackendError,
    DataLostError,
    FencedError,
    Inspector,
    Producer,
    Replica,
    Status,
)
from broker.backend import queries
from broker.protocol.names import ShardKeys, config_key
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.lossy_proxy import Proxy
from tests.integration.running_workers import NewServing, joined, snapshot_worker

OwnServer = Callable[..., Server]


@pytest.fixture
def own(kind: str, own_server: OwnServer) -> Server:
    """Give a server of each kind that a test may wipe and kill."""
    return own_server(kind=kind)


@pytest.fixture
def admin(own: Server) -> Iterator[redis.Redis]:
    """Give a plain client of that server."""
    with redis.Redis.from_url(own.url) as client:
        yield client


def agree(url: str, namespace: str, *replicas: Replica, content: dict[str, Any]) -> None:
    """Wait until all replicas are live with this content, and Redis itself says the same."""
    eventually(
        lambda: all(
            replica.status is Status.LIVE and dict(replica.items()) == content
            for replica in replicas
        ),
        15,
        lambda: f"{content}: {[(r.status, dict(r.items())) for r in replicas]}",
    )
    with Inspector(url, namespace=namespace) as inspector:
        assert inspector.folded() == content
    with Replica(url, namespace=namespace) as newcomer:
        newcomer.wait_live(10)
        assert newcomer.snapshot() == replicas[0].snapshot()


def test_flushes_without_writes_do_not_hide_a_loss(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """An idle producer that flushes detects a loss and sends again."""
    serving(own.url, namespace)
    with Producer(own.url, namespace=namespace, node="one") as producer:
        producer.set("key", 1)
        producer.flush(10)
        admin.flushall()

        def is_sent_again() -> bool:
            producer.flush(10)
            return producer.stats().resent == 1

        eventually(is_sent_again, 10, lambda: str(producer.stats()))


@pytest.mark.parametrize("shards", [1, 4])
def test_a_wiped_server_is_filled_again(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing, shards: int
) -> None:
    """After FLUSHALL producers send again what they kept, without a new write; sums are exact."""
    serving(own.url, namespace, shards=shards, interval=0.2)
    with (
        Producer(own.url, namespace=namespace, node="one") as one,
        Producer(own.url, namespace=namespace, node="two") as two,
        Replica(own.url, namespace=namespace) as replica,
    ):
        for number in range(50):
            one.set(f"one{number % 20}", number)
            two.set(f"two{number % 20}", number)
            one.increment("n")
            two.increment("n", 100)
        one.delete("one7")
        tokens = [producer.flush(10) for producer in (one, two)]
        for token in tokens:
            replica.wait_for(token, 10)
        content, before = replica.snapshot()
        assert len(content) == 40
        admin.flushall()
        eventually(lambda: one.stats().resent + two.stats().resent == 201, 10)
        eventually(
            lambda: all(
                new.epoch != old.epoch
                for new, old in zip(replica.positions, before, strict=True)
                if old.offset
            )
        )
        agree(own.url, namespace, replica, content=content)
        assert one.stats().lost + two.stats().lost == 0
        with pytest.raises(TimeoutError, match="does not show the token"):
            replica.wait_for(tokens[0], 0.05)
        one.increment("n")
        replica.wait_for(one.flush(10), 10)
        assert replica["n"] == content["n"] + 1


def test_a_wiped_namespace_keeps_its_shards(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """After FLUSHALL new parts find the namespace with its former number of shards."""
    workers = serving(own.url, namespace, shards=4)
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        producer.set_many({f"k{number}": number for number in range(40)})
        replica.wait_for(producer.flush(10), 10)
        # The workers would make it again, but a producer may be the first to notice.
        workers.stop()
        admin.flushall()
        producer.set("k0", 0)
        producer.flush(10)
        with Producer(own.url, namespace=namespace) as newcomer:
            newcomer.set_many({f"k{number}": -number for number in range(40, 80)})
            newcomer.flush(10)
        serving(own.url, namespace)
        eventually(lambda: producer.stats().resent == 40)
        expected = {f"k{number}": number if number < 40 else -number for number in range(80)}
        agree(own.url, namespace, replica, content=expected)


def test_a_wipe_is_reported_to_readers_of_changes(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """If lost data cannot be sent again, the replica removes and reports each key."""
    serving(own.url, namespace)
    with Replica(own.url, namespace=namespace) as replica:
        with Producer(own.url, namespace=namespace) as producer:
            producer.set_many({"a": 1, "b": 2})
            replica.wait_for(producer.flush(10), 10)
        changes = replica.changes()
        admin.flushall()
        agree(own.url, namespace, replica, content={})
        changes.close()
        assert sorted((one.key, one.operation, one.value, one.resync) for one in changes) == [
            ("a", "delete", None, True),
            ("b", "delete", None, True),
        ]


def test_what_was_not_kept_is_reported_lost_by_count(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """A producer that keeps nothing reports once how many deltas a wipe lost, and continues."""
    serving(own.url, namespace)
    with (
        Producer(own.url, namespace=namespace, keep_bytes=0) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        for number in range(7):
            producer.set(f"k{number}", number)
        replica.wait_for(producer.flush(10), 10)
        admin.flushall()
        producer.set("after", 1)
        with pytest.raises(DataLostError, match="7 accepted deltas were lost") as caught:
            producer.flush(10)
        assert caught.value.lost == 7
        replica.wait_for(producer.flush(10), 10)
        eventually(lambda: admin.exists(config_key(namespace)))
        agree(own.url, namespace, replica, content={"after": 1})
        assert producer.stats().lost == 7


def test_a_rollback_is_made_good(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """After a restart from an older dump later deltas are sent again and count once."""
    serving(own.url, namespace, interval=0.2)
    with (
        Producer(own.url, namespace=namespace, node="one") as one,
        Producer(own.url, namespace=namespace, node="two") as two,
        Replica(own.url, namespace=namespace) as first,
        Replica(own.url, namespace=namespace) as second,
    ):
        producers = (one, two)

        def write(times: int) -> None:
            for number in range(times):
                for producer in producers:
                    producer.increment("n")
                    producer.increment("x", 0.25)
                    producer.set(producer.node, number)
                    producer.flush(10)

        write(20)
        admin.save()
        write(30)
        for producer in producers:
            first.wait_for(producer.flush(10), 10)
        own.kill()
        for producer in producers:
            producer.increment("n", 1000)
        own.start()
        for producer in producers:
            producer.flush(20)
        content = {"n": 2100, "x": 25.0, "one": 29, "two": 29}
        agree(own.url, namespace, first, second, content=content)
        assert sum(producer.stats().resent for producer in producers) >= 180
        assert sum(producer.stats().lost for producer in producers) == 0


def test_a_rollback_while_nobody_writes_is_made_good(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """An idle producer detects that its last write was lost, and sends it again."""
    serving(own.url, namespace)
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        admin.save()
        producer.increment("n", 10)
        producer.set("last", 1)
        replica.wait_for(producer.flush(10), 10)
        own.kill()
        own.start()
        eventually(lambda: producer.stats().resent == 2, 15)
        agree(own.url, namespace, replica, content={"n": 11, "last": 1})


@pytest.mark.parametrize("how", ["wiped", "rolled back"])
def test_a_full_state_of_a_history_that_is_gone_is_not_written(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing, how: str
) -> None:
    """A scheduler interrupted between reading and writing writes no outdated state."""
    serving(own.url, namespace)
    keys = ShardKeys.of(namespace, 0, 1)

    async def scenario() -> None:
        async with joined(own.url, namespace) as session:
            worker = snapshot_worker(session)
            assert await worker.renew()
            head = (await queries.log_page(session.client, keys, 0, 0)).head
            assert head is not None
            folded, _ = await worker._fold(head.snapshot, head)
            if how == "wiped":
                admin.flushall()
            else:
                own.kill()
                own.start()
            # The lease can be had again, as at the end of a long fold.
            while True:
                with suppress(BackendError):
                    assert await worker.renew()
                    break
            with pytest.raises((FencedError, BackendError)):
                await worker._write_pages(folded)

    admin.save()
    with Producer(own.url, namespace=namespace) as producer:
        with Replica(own.url, namespace=namespace) as replica:
            producer.increment("n", 7)
            replica.wait_for(producer.flush(10), 10)
        asyncio.run(scenario())
    content: Any = admin.hgetall(keys.state)
    assert content == {}


def test_a_rewritten_offset_is_not_taken_for_the_old_one(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """Replicas with rolled-back offsets follow when other deltas get the same offsets."""
    workers = serving(own.url, namespace)
    with Replica(own.url, namespace=namespace) as replica:
        with Producer(own.url, namespace=namespace) as producer:
            producer.set("key", "kept")
            replica.wait_for(producer.flush(10), 10)
            admin.save()
            for number in range(5):
                producer.set("key", f"old {number}")
                producer.set("gone", number)
                replica.wait_for(producer.flush(10), 10)
        old = replica.position
        workers.stop()
        own.kill()
        own.start()
        with Producer(own.url, namespace=namespace) as producer:
            for number in range(5):
                producer.set("key", f"new {number}")
                token = producer.flush(10)
            serving(own.url, namespace)
            with Replica(own.url, namespace=namespace) as other:
                other.wait_for(token, 10)
            agree(own.url, namespace, replica, content={"key": "new 4"})
            assert replica.position.epoch == old.epoch
            assert replica.position.batch_id != old.batch_id


def test_a_token_of_after_a_rollback_is_not_shown_by_what_came_before(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """A replica that missed a rollback does not mistake a new write for an old one."""
    workers = serving(own.url, namespace)
    with (
        Proxy(own) as proxy,
        Replica(proxy.url, namespace=namespace, staleness_bound=60) as replica,
    ):
        admin.save()
        with Producer(own.url, namespace=namespace) as producer:
            for number in range(5):
                producer.set("key", f"old {number}")
                producer.flush(10)
            replica.wait_for(producer.flush(10), 10)
        proxy.is_closed = True
        proxy.cut()
        workers.stop()
        own.kill()
        own.start()
        with Producer(own.url, namespace=namespace) as producer:
            producer.set("key", "new")
            token = producer.flush(10)
            try:
                replica.wait_for(token, 0.2)
            except TimeoutError:
                pass
            else:
                assert replica["key"] == "new"
            proxy.is_closed = False
            serving(own.url, namespace)
            replica.wait_for(token, 10)
            assert replica["key"] == "new"


def test_a_clean_restart_costs_nothing(
    kind: str, own_server: OwnServer, namespace: str, serving: NewServing
) -> None:
    """After a restart without loss nothing is sent or loaded again."""
    own = own_server("--appendonly", "yes", kind=kind)
    serving(own.url, namespace)
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        for number in range(20):
            producer.set(f"k{number}", number)
            producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        own.restart()
        producer.increment("n")
        replica.wait_for(producer.flush(20), 20)
        content = {f"k{number}": number for number in range(20)} | {"n": 21}
        agree(own.url, namespace, replica, content=content)
        assert (producer.stats().resent, producer.stats().lost) == (0, 0)
        assert replica.stats().loads == 1


def test_while_the_server_is_away_nobody_storms(
    own: Server, namespace: str, serving: NewServing
) -> None:
    """Reconnects back off, and all parts recover soon after the server."""
    workers = serving(own.url, namespace)
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        producer.set("key", 1)
        replica.wait_for(producer.flush(10), 10)
        own.kill()
        killed_at = time.monotonic()
        producer.set("key", 2)
        eventually(lambda: time.monotonic() > killed_at + 2, message="two seconds without server")
        # 20 ms, doubled each time, with jitter from one half: at most 8 or so in 2 seconds.
        assert replica.stats().reconnects <= 20
        assert producer.stats().retries <= 20
        own.start()
        replica.wait_for(producer.flush(10), 10)
        replica.wait_live(10)
        assert replica["key"] == 2
        workers.stop()


def test_an_older_holder_of_a_name_is_fenced_again(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """After the start of the newer one was lost: what each wrote counts once, and the older ends.

    Until the newer one has looked the older one is the holder to Redis.
    """
    serving(own.url, namespace)
    where: dict[str, Any] = {"namespace": namespace, "node": "one"}
    with Replica(own.url, namespace=namespace) as replica:
        older = Producer(own.url, **where)
        older.increment("n")
        replica.wait_for(older.flush(10), 10)
        admin.save()
        with Producer(own.url, **where) as newer:
            newer.increment("n", 10)
            newer.flush(10)
            own.kill()
            own.start()

            def is_fenced() -> bool:
                try:
                    older.increment("n", 100)
                    older.flush(10)
                except FencedError:
                    return True
                return False

            eventually(is_fenced, 10, pause=0.05)
            accepted = older.stats().accepted - 1
            with suppress(FencedError):
                older.close()
            replica.wait_for(newer.flush(10), 10)
            assert replica["n"] == 11 + 100 * accepted
            newer.set("last", 1)
            replica.wait_for(newer.flush(10), 10)
            assert replica["last"] == 1
