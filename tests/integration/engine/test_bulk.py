"""Large chunks, and several chunks in flight, reach replicas: each delta once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import redis

from broker import FlushTimeoutError, Producer, Replica, Status
from broker.backend.replies import Accepted, Busy, Missing
from broker.backend.session import Session
from broker.core.sent_chunks import Packed
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import BULK_BYTES, EPOCH_BYTES
from broker.protocol.messages import Chunk, Run
from broker.protocol.names import ShardKeys
from broker.protocol.operations import OP_INCREMENT, OP_SET
from broker.testing import FaultProxy
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.engine.test_exactly_once import folded, with_session
from tests.integration.lossy_proxy import Proxy, sha_of
from tests.integration.running_workers import NewServing
from tests.integration.watched_shard import WatchedShard
from tests.noise import noise

LARGE = 150_000
NODE = "n"
TOKEN = b"01234567"
LIMITS: dict[str, Any] = {"now": 0.0, "max_age_ms": None, "max_count": None}


@cache
def text(number: int, size: int = LARGE) -> str:
    """Return a value large enough for a bulk chunk, different for each number."""
    return f"{number}:" + noise(number, size)


def follows(replica: Replica, content: dict[str, Any]) -> None:
    """Wait until a replica is live with this content."""
    eventually(
        lambda: replica.status is Status.LIVE and dict(replica.items()) == content,
        20,
        lambda: f"{replica.status} {replica.stats()}",
    )


def test_large_and_small_values_are_seen_in_the_order_of_the_calls(
    watched_shard: WatchedShard,
) -> None:
    """Existing and new replicas, full state and log show them in the order of the calls."""
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        changes = replica.changes()
        for number in range(8):
            watched_shard.producer.set("large", text(number))
            watched_shard.producer.increment("n")
            if number % 3:
                watched_shard.producer.flush(10)
        replica.wait_for(watched_shard.producer.flush(10), 10)
        content = {"large": text(7), "n": 8}
        follows(replica, content)
        seen = [next(changes) for _ in range(16)]
        assert [change.value for change in seen if change.key == "large"] == [*map(text, range(8))]
        assert replica.stats().gaps == 0
        assert replica.verify().is_equal
        assert watched_shard.inspector.folded() == content
        assert watched_shard.write() is not None
        assert watched_shard.agree() == content
        # Again, on a full state and with a log behind it.
        watched_shard.producer.set("large", text(9))
        watched_shard.producer.increment("n", 10)
        replica.wait_for(watched_shard.producer.flush(10), 10)
        with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
            late.wait_live(10)
            assert dict(late.items()) == {"large": text(9), "n": 18}


def test_bulk_chunks_that_got_lost_are_read_from_the_log(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A replica that misses some or all messages of a batch is live only after it read them."""
    serving(server.url, namespace)
    with (
        FaultProxy(server.url, seed=3) as proxy,
        Producer(server.url, namespace=namespace) as producer,
        Replica(proxy.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        proxy.faults.drop_messages = 0.3
        proxy.faults.repeat_messages = 0.2
        proxy.faults.reorder_messages = 0.2
        for number in range(40):
            producer.set("large", text(number))
            producer.set("other", text(-number))
            producer.increment("n")
            producer.flush(10)
        proxy.heal()
        follows(replica, {"large": text(39), "other": text(-39), "n": 40})
        assert replica.stats().packets_unreadable > 0
        assert replica.verify().is_equal


def test_a_lost_reply_to_a_large_chunk_counts_once(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A chunk whose reply was lost is pushed again, recognised and removed."""
    serving(server.url, namespace)
    with Proxy(server) as proxy:
        proxy.lose_replies_to, proxy.lose_every = sha_of("append"), 3
        with Producer(proxy.url, namespace=namespace, linger=0) as producer:
            for number in range(30):
                producer.increment("n")
                producer.set("large", text(number))
                producer.flush(10)
            stats = producer.stats()
        assert proxy.lost >= 5
        assert stats.duplicates > 0
        assert (stats.accepted, stats.lost, stats.resent) == (60, 0, 0)
    assert folded(server.url, namespace) == {"n": 30, "large": text(29)}
    assert not raw.exists(keys.stage(producer.node), keys.queue)


def test_a_server_that_forgot_the_scripts_is_reported_them_before_it_is_given_a_chunk(
    server: Server, namespace: str, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Every pushed chunk is appended; no unaccepted one stays on the stage."""
    with Producer(server.url, namespace=namespace, linger=0) as producer:
        for number in range(5):
            raw.script_flush()
            producer.set("large", text(number))
            producer.flush(10)
            assert raw.llen(keys.queue) == 2 * (number + 1)
            assert not raw.exists(keys.stage(producer.node))
        assert producer.stats().retries == 0


def test_large_chunks_wait_for_memory(
    kind: str, own_server: Callable[..., Server], namespace: str, serving: NewServing
) -> None:
    """At maxmemory nothing is pushed; later each chunk is there once."""
    server = own_server(kind=kind)
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        redis.Redis.from_url(server.url) as raw,
    ):
        producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        raw.config_set("maxmemory", 1)
        producer.set("large", text(1))
        producer.increment("n")
        with pytest.raises(FlushTimeoutError):
            producer.flush(0.3)
        assert raw.llen(ShardKeys.of(namespace, 0, 1).stage(producer.node)) == 0
        raw.config_set("maxmemory", 0)
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == {"n": 2, "large": text(1)}


def test_whose_name_was_taken_leaves_nothing_behind(
    server: Server, namespace: str, raw: redis.Redis, keys: ShardKeys
) -> None:
    """A fenced producer's chunk is removed; the newer producer's stays."""
    first = Producer(server.url, namespace=namespace, node=NODE)
    with Producer(server.url, namespace=namespace, node=NODE) as second:
        second.set("large", text(2))
        second.flush(10)
        before = raw.lrange(keys.queue, 0, -1)
        first.set("large", text(1))
        with pytest.raises(Exception, match="another process took the node name"):
            first.flush(10)
        assert raw.lrange(keys.queue, 0, -1) == before
        assert not raw.exists(keys.stage(NODE))
    with pytest.raises(Exception, match="another process took the node name"):
        first.close()


# -- several at once ------------------------------------------------------------------------------


def packed(incarnation: int, number: int, amount: int, size: int = 0) -> Packed:
    """Return a chunk that adds to a key, with padding."""
    runs = [Run(OP_INCREMENT, ["n"], [amount])]
    if size:
        runs.append(Run(OP_SET, ["pad"], ["x" * size]))
    data = encode_chunk(Chunk(NODE, incarnation, number, 0, runs))
    return Packed(number, len(runs), 0, 0.0, 0, data)


@pytest.mark.parametrize("sizes", [[0, 0, 0], [BULK_BYTES, 0, BULK_BYTES], [BULK_BYTES] * 3])
def test_chunks_in_one_go_are_taken_in_their_order(
    server: Server, namespace: str, serving: NewServing, sizes: list[int]
) -> None:
    """Each chunk counts once; repeats are recognised chunk by chunk."""

    async def scenario(session: Session) -> None:
        keys, commands = session.keys[0], session.commands
        opened = await commands.open(
            keys, NODE, None, TOKEN, chunk=0, deltas=0, epoch=b"e" * EPOCH_BYTES
        )
        chunks = [packed(opened.incarnation, n, 10**n, size) for n, size in enumerate(sizes, 1)]
        place = (keys, NODE, opened.incarnation, TOKEN)
        for part, duplicates in ((chunks[:2], [False] * 2), (chunks, [True, True, False])):
            replies = await commands.append(*place, part, **LIMITS, pending_limit=1 << 30)
            assert [isinstance(one, Accepted) and one.duplicate for one in replies] == duplicates
            assert all(isinstance(one, Accepted) for one in replies)
        beyond = [packed(opened.incarnation, n, 1, size) for n, size in enumerate(sizes, 5)]
        replies = await commands.append(*place, beyond, **LIMITS, pending_limit=1 << 30)
        assert replies == [Missing(4, sum(chunk.deltas for chunk in chunks))] * 3

    with_session(server.url, namespace, scenario)
    serving(server.url, namespace)
    assert folded(server.url, namespace)["n"] == 1110


@pytest.mark.parametrize("size", [0, BULK_BYTES])
def test_behind_a_chunk_that_is_put_off_none_is_taken(
    server: Server, namespace: str, size: int
) -> None:
    """After a BUSY chunk no later one is taken, even if it would fit."""

    async def scenario(session: Session) -> None:
        keys, commands = session.keys[0], session.commands
        opened = await commands.open(
            keys, NODE, None, TOKEN, chunk=0, deltas=0, epoch=b"e" * EPOCH_BYTES
        )
        place = (keys, NODE, opened.incarnation, TOKEN)
        chunks = [packed(opened.incarnation, n, 1, size) for n in (1, 2, 3)]
        limit = len(chunks[0].data) + 1
        first, second, third = await commands.append(*place, chunks, **LIMITS, pending_limit=limit)
        assert isinstance(first, Accepted)
        assert second == Busy(len(chunks[0].data), 0)
        assert isinstance(third, Missing)
        assert await session.client.llen(keys.queue) == 2  # type: ignore[misc]

    with_session(server.url, namespace, scenario)


def test_a_backlog_goes_out_several_chunks_at_a_time(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """A backlog needs far fewer round trips than chunks; every delta once, in order."""
    serving(server.url, namespace)

    def trips() -> int:
        """Count the transactions with several chunks: each loads the script first."""
        found: Any = raw.info("commandstats")
        return int(found.get("cmdstat_script|load", {"calls": 0})["calls"])

    with Producer(server.url, namespace=namespace, chunk_bytes=4096) as producer:
        producer.set("last", -1)
        producer.flush(10)
        before = trips()
        for number in range(12_000):
            producer.increment("n")
            producer.set("last", number)
        producer.flush(20)
        stats = producer.stats()
        assert 1 <= trips() - before < stats.chunks / 2
    assert stats.chunks > 50
    assert folded(server.url, namespace) == {"n": 12_000, "last": 11_999}


def test_several_on_their_way_survive_cuts_and_a_full_server(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Sums are exact when connections break and Redis answers BUSY in between."""
    serving(server.url, namespace)
    with (
        Proxy(server) as proxy,
        Producer(
            proxy.url,
            namespace=namespace,
            chunk_bytes=80_000,
            buffer_bytes=900_000,
            pending_bytes=200_000,
        ) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        for number in range(1200):
            producer.increment("n")
            producer.set(f"k{number % 9}", text(number, 15_000))
            if number % 60 == 59:
                # By now the buffer is full, and its front is on its way.
                proxy.cut()
        more = 0
        while not producer.stats().retries:
            # At none of the cuts was anything on its way: Redis was BUSY, and the sender paused.
            producer.increment("more")
            proxy.cut()
            more += 1
        replica.wait_for(producer.flush(30), 30)
        stats = producer.stats()
        expected = {f"k{number % 9}": text(number, 15_000) for number in range(1191, 1200)}
        if more:
            expected["more"] = more  # type: ignore[assignment]
        assert dict(replica) == {"n": 1200, **expected}
        assert stats.busy > 0
        assert (stats.accepted, stats.lost, stats.pending) == (2400 + more, 0, 0)
    assert folded(server.url, namespace) == {"n": 1200, **expected}
