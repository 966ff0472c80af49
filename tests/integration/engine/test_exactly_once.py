"""Every accepted delta takes effect once, whatever is repeated, lost or taken over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import redis

from broker import FencedError, FlushTimeoutError, Inspector, Producer, Replica
from broker.backend.replies import Accepted, Busy, Missing
from broker.backend.session import Session
from broker.backend.stored import NodeRecord, node_record
from broker.core.sent_chunks import Packed
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import EPOCH_BYTES
from broker.protocol.messages import Chunk, Run
from broker.protocol.names import ShardKeys
from broker.protocol.operations import OP_INCREMENT
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.lossy_proxy import Proxy, sha_of
from tests.integration.running_workers import NewServing, joined

NODE, TOKEN = "node", b"01234567"


class Writer:
    """A producer whose chunk numbers the test chooses."""

    def __init__(self, session: Session, token: bytes = TOKEN) -> None:
        self._session = session
        self._keys = session.keys[0]
        self._token = token
        self.incarnation = 0

    async def open(self, incarnation: int | None = None, chunk: int = 0, deltas: int = 0) -> None:
        """Open the node name, or continue with it."""
        opened = await self._session.commands.open(
            self._keys,
            NODE,
            incarnation,
            self._token,
            chunk=chunk,
            deltas=deltas,
            epoch=b"e" * EPOCH_BYTES,
        )
        self.incarnation = opened.incarnation

    async def append(
        self, number: int, amount: int = 1, pending_limit: int = 1 << 20
    ) -> Accepted | Missing | Busy:
        """Append a chunk of one increment."""
        run = Run(OP_INCREMENT, ["n"], [amount])
        chunk = encode_chunk(Chunk(NODE, self.incarnation, number, 0, [run]))
        (reply,) = await self._session.commands.append(
            *(self._keys, NODE, self.incarnation, self._token),
            [Packed(number, 1, number, 0.0, 0, chunk)],
            now=0.0,
            max_age_ms=None,
            max_count=None,
            pending_limit=pending_limit,
        )
        return reply


def with_session(url: str, namespace: str, scenario: Callable[[Session], Awaitable[None]]) -> None:
    """Run a scenario on the Lua commands."""

    async def run() -> None:
        async with joined(url, namespace) as session:
            await scenario(session)

    asyncio.run(run())


def folded(url: str, namespace: str) -> dict[str, Any]:
    """Return the state after everything pending is published."""
    with Inspector(url, namespace=namespace) as inspector:
        eventually(
            lambda: all(one.pending_deltas == 0 for one in inspector.status().shards),
            message=lambda: str(inspector.status()),
        )
        return inspector.folded()


def test_a_repeated_chunk_counts_once(server: Server, namespace: str, serving: NewServing) -> None:
    """A repeated chunk is acknowledged and not applied, before and after its publication."""
    serving(server.url, namespace)

    async def scenario(session: Session) -> None:
        writer = Writer(session)
        await writer.open()
        first = await writer.append(1, 5)
        assert isinstance(first, Accepted)
        assert not first.duplicate
        for _ in range(3):
            again = await writer.append(1, 5)
            assert isinstance(again, Accepted)
            assert (again.append, again.epoch, again.duplicate) == (first.append, first.epoch, True)
        second = await writer.append(2, 7)
        assert isinstance(second, Accepted)
        assert second.append > first.append
        await asyncio.to_thread(folded, server.url, namespace)
        older = await writer.append(1, 5)
        assert isinstance(older, Accepted)
        assert older.duplicate
        # Its token must not come before the chunk that it acknowledges.
        assert first.append <= older.append <= second.append

    with_session(server.url, namespace, scenario)
    assert folded(server.url, namespace) == {"n": 12}


def test_a_hole_in_the_chunk_numbers_is_refused(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A chunk after a missing number is refused; the reply names where to resume."""
    serving(server.url, namespace)

    async def scenario(session: Session) -> None:
        writer = Writer(session)
        await writer.open()
        assert await writer.append(2) == Missing(1, 0)
        await writer.append(1)
        await writer.append(2)
        assert await writer.append(4) == Missing(3, 2)
        assert await writer.append(9) == Missing(3, 2)
        assert isinstance(await writer.append(3), Accepted)

    with_session(server.url, namespace, scenario)
    assert folded(server.url, namespace) == {"n": 3}


def test_an_older_incarnation_is_fenced(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """After a newer process opened a node, chunks of the older one are refused."""
    serving(server.url, namespace)

    async def scenario(session: Session) -> None:
        older, newer = Writer(session), Writer(session, b"76543210")
        await older.open()
        await older.append(1)
        await newer.open()
        assert newer.incarnation > older.incarnation
        for number in (1, 2, 3):
            with pytest.raises(FencedError, match="'node'"):
                await older.append(number, 100)
        with pytest.raises(FencedError):
            await older.open(older.incarnation, chunk=1, deltas=1)
        await newer.append(1)

    with_session(server.url, namespace, scenario)
    assert folded(server.url, namespace) == {"n": 2}


def test_two_claims_of_one_incarnation_are_reported_apart(server: Server, namespace: str) -> None:
    """After Redis lost a node, only one of two processes can hold one incarnation number."""

    async def scenario(session: Session) -> None:
        one, two = Writer(session), Writer(session, b"76543210")
        await one.open(5)
        two.incarnation = 5
        with pytest.raises(FencedError):
            await two.append(1)
        with pytest.raises(FencedError):
            await two.open(5)
        assert isinstance(await one.append(1), Accepted)

    with_session(server.url, namespace, scenario)


def test_a_chunk_above_the_pending_limit_is_put_off(server: Server, namespace: str) -> None:
    """At the limit of pending bytes the answer is BUSY and nothing is taken, on a retry too."""

    async def scenario(session: Session) -> None:
        writer = Writer(session)
        await writer.open()
        # A single chunk larger than the limit still gets through: else it never could.
        assert isinstance(await writer.append(1, pending_limit=1), Accepted)
        reply = await writer.append(2, pending_limit=1)
        assert isinstance(reply, Busy)
        assert reply.pending_bytes > 0
        # What Redis has is acknowledged also when there is no room.
        assert isinstance(await writer.append(1, pending_limit=1), Accepted)
        assert isinstance(await writer.append(2), Accepted)

    with_session(server.url, namespace, scenario)


@pytest.mark.parametrize("is_writing", [True, False])
def test_a_second_producer_fences_the_first(
    server: Server, namespace: str, serving: NewServing, *, is_writing: bool
) -> None:
    """A producer whose node name another one opened gets FencedError, also when idle."""
    serving(server.url, namespace)
    first = Producer(server.url, namespace=namespace, node="n")
    first.increment("n", 1)
    first.flush(10)
    with Producer(server.url, namespace=namespace, node="n") as second:
        if is_writing:
            first.increment("n", 100)
            with pytest.raises(FencedError, match=r"another process took the node name 'n'"):
                first.flush(10)

        def refused() -> bool:
            try:
                first.set("n", "refused")
            except FencedError:
                return True
            return False

        eventually(refused, 5)
        for call in (
            lambda: first.increment("n"),
            lambda: first.delete("n"),
            lambda: first.set_many({"n": 0}),
            lambda: first.flush(1),
            first.close,
        ):
            with pytest.raises(FencedError):
                call()
        first.close()
        second.increment("n", 10)
        second.flush(10)
        if is_writing:
            assert folded(server.url, namespace) == {"n": 11}


@pytest.mark.parametrize("claim", ["a newer incarnation", "the same number"])
def test_an_idle_producer_detects_that_its_name_was_taken(
    server: Server, namespace: str, raw: redis.Redis, keys: ShardKeys, claim: str
) -> None:
    """An idle producer checks regularly, and detects it also after Redis lost the node."""
    producer = Producer(server.url, namespace=namespace, node="n")
    producer.increment("n", 1)
    producer.flush(10)
    stored: Any = raw.hget(keys.intake, "n")
    record = node_record(keys.intake, "n", stored)
    number = record.incarnation + (claim == "a newer incarnation")
    other = replace(record, incarnation=number, token=b"76543210")
    raw.hset(keys.intake, "n", other.packed())
    sender = producer._engine.sender
    eventually(lambda: sender.stopped is not None, 5)
    with pytest.raises(FencedError, match="'n'"):
        producer.close()


def test_a_fenced_producer_sends_nothing_more_in_any_shard(
    server: Server, namespace: str, raw: redis.Redis
) -> None:
    """Not even the probe, in shards where nobody took its name."""
    producer = Producer(server.url, namespace=namespace, node="n", shards=2)
    producer.set_many({f"k{n}": n for n in range(20)})
    producer.flush(10)
    sender = producer._engine.sender
    keys = ShardKeys.of(namespace, 0, 2)
    raw.hset(keys.intake, "n", NodeRecord(99999999999999, b"76543210", 1, 1).packed())
    eventually(lambda: sender.stopped is not None, 5)
    eventually(lambda: all(task.done() for task in sender._tasks), 5)
    with pytest.raises(FencedError, match="'n'"):
        producer.close()


def test_a_lost_reply_counts_once(server: Server, namespace: str, serving: NewServing) -> None:
    """A chunk whose reply was lost is sent again and counts once."""
    serving(server.url, namespace)
    with Proxy(server) as proxy:
        proxy.lose_replies_to, proxy.lose_every = sha_of("append"), 3
        with (
            Producer(proxy.url, namespace=namespace, linger=0) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            for number in range(1, 61):
                producer.increment("n")
                producer.increment("x", 0.5)
                producer.set("last", number)
                token = producer.flush(10)
                replica.wait_for(token, 10)
                assert (replica["n"], replica["last"]) == (number, number)
            stats = producer.stats()
            assert proxy.lost >= 10
            assert stats.duplicates == proxy.lost
            assert (stats.accepted, stats.lost, stats.resent) == (180, 0, 0)
        assert folded(server.url, namespace) == {"n": 60, "x": 30.0, "last": 60}


def test_connections_cut_at_any_moment_change_nothing(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Sums are exact while the connections of two nodes are killed again and again."""
    serving(server.url, namespace)
    with (
        Proxy(server) as proxy,
        Producer(proxy.url, namespace=namespace, node="one", linger=0) as one,
        Producer(proxy.url, namespace=namespace, node="two", linger=0) as two,
        Replica(proxy.url, namespace=namespace) as replica,
    ):
        for number in range(600):
            one.increment("n")
            two.increment("n", 1000)
            if number % 40 == 0:
                proxy.cut()
        for producer in (one, two):
            replica.wait_for(producer.flush(20), 20)
        assert replica["n"] == 600 * 1001
        assert one.stats().retries + two.stats().retries > 0
    assert folded(server.url, namespace) == {"n": 600 * 1001}


def test_an_unreachable_server_loses_nothing(
    kind: str, own_server: Callable[..., Server], namespace: str, serving: NewServing
) -> None:
    """While the server hangs, flush() times out and keeps all; later it is accepted."""
    server = own_server(kind=kind)
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.increment("n")
        producer.flush(10)
        server.pause()
        producer.increment("n")
        with pytest.raises(FlushTimeoutError, match=r"has not accepted 1 deltas within 0\.2 s"):
            producer.flush(0.2)
        producer.increment("n")
        server.resume()
        replica.wait_for(producer.flush(10), 10)
        assert replica["n"] == 3


def test_a_wiped_writers_record_is_made_again(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """After Redis lost the node's record, the producer continues and sends again what it kept."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("key", 1)
        producer.flush(10)
        raw.hdel(keys.intake, producer.node)
        producer.set("key", 2)
        producer.flush(10)
        assert producer.stats().resent == 1
        assert producer.stats().lost == 0
    assert folded(server.url, namespace) == {"key": 2}


def test_a_wipe_while_a_record_is_written_again_loses_nothing(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """What was damaged may be gone by then: the producer asks before it says what was accepted."""
    with Producer(server.url, namespace=namespace, node="EWR") as producer:
        for number in range(3):
            producer.set(f"k{number}", number)
            producer.flush(10)
        raw.hset(keys.intake, mapping={"EWR": b"garbage", ":head": b"garbage"})
        producer.set("k3", 3)
        eventually(lambda: producer.stats().retries >= 2)
        raw.delete(*raw.scan_iter(match=f"{keys.prefix}*"))
        serving(server.url, namespace)
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_live(10)
            replica.wait_for(producer.flush(10), 10)
            assert dict(replica) == {f"k{number}": number for number in range(4)}
        assert producer.stats().lost == 0


@pytest.mark.parametrize("what", ["another type", "gone"])
def test_records_that_others_deleted_make_nothing_count_twice(  # noqa: PLR0917 - fixtures
    server: Server,
    namespace: str,
    serving: NewServing,
    raw: redis.Redis,
    keys: ShardKeys,
    what: str,
) -> None:
    """The heartbeat tells that only records are gone, so a producer writes its own again."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace, node="EWR") as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        for _ in range(3):
            producer.increment("n")
            producer.flush(10)
        # Until the heartbeat made it anew, the answer to a producer is that it is damaged.
        if what == "gone":
            raw.delete(keys.intake)
        else:
            raw.set(keys.intake, "x")
        eventually(lambda: raw.hget(keys.meta, "records_lost"))
        producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        assert replica["n"] == 4
        assert producer.stats().lost == 0


def test_records_that_a_server_lost_are_not_taken_for_deleted_ones(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """What was accepted behind the mark is not there: it is sent again."""
    with Producer(server.url, namespace=namespace, node="EWR") as producer:
        for _ in range(3):
            producer.increment("n")
            producer.flush(10)
        head = raw.hget(keys.intake, ":head")
        raw.delete(keys.intake, keys.queue)
        raw.hset(keys.intake, ":head", head)  # type: ignore[arg-type]
        raw.hset(keys.meta, "records_lost", producer_append(producer) - 1)
        raw.hset(keys.meta, "epoch", head[:8])  # type: ignore[index]
        serving(server.url, namespace)
        producer.increment("n")
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_live(10)
            replica.wait_for(producer.flush(10), 10)
            assert replica["n"] == 4


def producer_append(producer: Producer) -> int:
    """Return the append number of the last chunk that was accepted."""
    ((_, append),) = producer.flush(10).marks.values()
    return append
