"""`flush(redis_replicas=, fsynced=)`: its promises, with real replicas and append-only files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from broker import (
    BackendError,
    ConfigError,
    FencedError,
    FlushTimeoutError,
    Inspector,
    NotReplicatedError,
    Producer,
    UnsupportedServerError,
    aio,
)
from broker.backend.stored import node_record
from broker.protocol.names import ShardKeys
from broker.testing.clusters import raw
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.acl_users import RoleUsers
from tests.conftest import OwnServer

SECONDS = 20.0
SHORT = 0.4


@dataclass
class Pair:
    """A primary and its replica."""

    primary: Server
    replica: Server

    def is_linked(self) -> bool:
        """Whether the replica follows, as the primary says."""
        with redis.Redis.from_url(self.primary.url) as client:
            reported: Any = client.info("replication")
        return bool(reported.get("slave0", {}).get("state") == "online")

    def held(self, namespace: str, node: str) -> int:
        """The number of the last chunk of a node that the replica has."""
        with redis.Redis.from_url(self.replica.url) as client:
            key = ShardKeys.of(namespace, 0, 1).intake
            record: Any = client.hget(key, node)
        return node_record(key, node, record).number if record else 0


NewPair = Callable[..., Pair]


def tells_of_disks(server: Server) -> bool:
    """Whether the server has WAITAOF; Redis 7.0 has not."""
    return bool(raw(server, "COMMAND", "INFO", "WAITAOF") != [None])


@pytest.fixture
def new_pair(kind: str, own_server: OwnServer) -> NewPair:
    """Give a function that starts a primary and a replica that follows it."""

    def start(*args: str) -> Pair:
        primary = own_server("--repl-diskless-sync-delay", "0", *args, kind=kind, port=0)
        follow = ("--replicaof", "127.0.0.1", str(primary.port))
        pair = Pair(primary, own_server(*follow, *args, kind=kind, port=0))
        eventually(pair.is_linked, SECONDS, "the replica follows")
        return pair

    return start


@pytest.fixture
def pair(new_pair: NewPair) -> Iterator[Pair]:
    """Give a primary and a replica without append-only files."""
    pair = new_pair()
    yield pair
    if pair.replica.is_running:
        pair.replica.resume()


def test_what_is_on_a_replica_survives_the_primary(pair: Pair, namespace: str) -> None:
    """A confirmed write survives when the primary is killed and the replica takes over."""
    with Producer(pair.primary.url, namespace=namespace, shards=4) as producer:
        producer.set_many({f"k{n}": n for n in range(1000)})
        producer.flush(SECONDS, redis_replicas=1)
        chunks = producer.stats().chunks
        pair.primary.kill()
        with redis.Redis.from_url(pair.replica.url) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
        with Inspector(pair.replica.url, namespace=namespace) as inspector:
            reported = inspector.status()
        assert sum(shard.accepted for shard in reported.shards) == 1000
        assert sum(node.chunks for node in reported.nodes) == chunks
        pair.primary.start()


def test_a_replica_that_hangs_is_reported_and_nothing_is_lost(pair: Pair, namespace: str) -> None:
    """A hanging replica makes the flush time out with its count; a later flush succeeds."""
    with Producer(pair.primary.url, namespace=namespace, node="n1") as producer:
        producer.set("a", 1)
        producer.flush(SECONDS, redis_replicas=1)
        pair.replica.pause()
        producer.set("b", 2)
        with pytest.raises(NotReplicatedError, match="0 of 1 replicas have it in memory") as caught:
            producer.flush(SHORT, redis_replicas=1)
        assert (caught.value.redis_replicas, caught.value.wanted) == (0, 1)
        assert isinstance(caught.value, FlushTimeoutError)
        producer.flush(SECONDS)
        assert producer.stats().pending == 0
        pair.replica.resume()
        producer.flush(SECONDS, redis_replicas=1)
        assert pair.held(namespace, "n1") == 2


def test_more_replicas_than_there_are(pair: Pair, namespace: str) -> None:
    """The error says how many replicas confirmed."""
    with Producer(pair.primary.url, namespace=namespace) as producer:
        producer.set("a", 1)
        # It may still be loading.
        producer.flush(SECONDS, redis_replicas=1)
        with pytest.raises(NotReplicatedError, match="1 of 2 replicas"):
            producer.flush(SHORT, redis_replicas=2)
        with pytest.raises(ConfigError, match="redis_replicas=-1"):
            producer.flush(redis_replicas=-1)


def test_nothing_written_needs_no_replica(own_server: OwnServer, namespace: str, kind: str) -> None:
    """Without a write there is nothing to confirm."""
    server = own_server(kind=kind)
    with Producer(server.url, namespace=namespace) as producer:
        producer.flush(SECONDS, redis_replicas=3)


def test_the_old_name_of_the_argument_works_and_warns(
    own_server: OwnServer, namespace: str, kind: str
) -> None:
    """Both faces take `replicas=`; the warning names the line that gave it."""
    url = own_server(kind=kind).url

    def flush() -> None:
        with Producer(url, namespace=namespace) as producer:
            producer.set("a", 1)
            with pytest.raises(NotReplicatedError, match="0 of 1"):
                producer.flush(SHORT, replicas=1)

    async def flush_with_await() -> None:
        async with aio.Producer(url, namespace=namespace) as producer:
            await producer.set("b", 1)
            with pytest.raises(NotReplicatedError, match="0 of 1"):
                await producer.flush(SHORT, replicas=1)

    for act in (flush, lambda: asyncio.run(flush_with_await())):
        with pytest.warns(DeprecationWarning, match=r"flush\(redis_replicas=\)") as reported:
            act()
        assert [one.filename for one in reported] == [__file__]


def waiting(pair: Pair) -> bool:
    """Whether a client waits for replicas at the primary."""
    with redis.Redis.from_url(pair.primary.url) as client:
        reported: Any = client.info("clients")
    return bool(reported["blocked_clients"])


class Flush:
    """A flush on its own thread, and its outcome."""

    def __init__(self, producer: Producer, **asked: Any) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(producer, asked))
        self._thread.start()

    def _run(self, producer: Producer, asked: dict[str, Any]) -> None:
        try:
            producer.flush(SECONDS, **asked)
        except BaseException as error:  # noqa: BLE001 - told by `end`
            self.error = error

    @property
    def is_running(self) -> bool:
        """Whether it has not returned."""
        return self._thread.is_alive()

    def end(self) -> None:
        """Wait for it; raise what it raised."""
        self._thread.join(2 * SECONDS)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


def test_a_connection_that_breaks_while_it_waits_confirms_nothing(
    pair: Pair, namespace: str
) -> None:
    """A new connection starts from the beginning: WAIT covers only its own connection's writes."""
    with Producer(pair.primary.url, namespace=namespace, node="n1") as producer:
        producer.set("a", 1)
        producer.flush(SECONDS)
        pair.replica.pause()
        producer.set("a", 2)
        flush = Flush(producer, redis_replicas=1)
        with redis.Redis.from_url(pair.primary.url) as client:
            for _ in range(3):
                eventually(lambda: waiting(pair), SECONDS, "it waits")
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                eventually(lambda: not waiting(pair), SECONDS, "it was cut off")
        assert flush.is_running
        pair.replica.resume()
        flush.end()
        assert pair.held(namespace, "n1") == 2


def test_a_primary_that_forgot_gets_it_again_before_it_is_confirmed(
    pair: Pair, namespace: str
) -> None:
    """A write that was accepted and lost is sent again, then confirmed."""
    with Producer(pair.primary.url, namespace=namespace, node="n1") as producer:
        producer.set("a", 1)
        producer.flush(SECONDS, redis_replicas=1)
        pair.replica.pause()
        for number in range(5):
            producer.set("a", number)
            producer.flush(SECONDS)
        flush = Flush(producer, redis_replicas=1)
        eventually(lambda: waiting(pair), SECONDS, "it waits")
        pair.primary.kill()
        pair.replica.resume()
        pair.primary.start()
        flush.end()
        assert pair.held(namespace, "n1") == 6
        assert producer.stats().resent == 6


def test_who_took_the_name_meanwhile_is_reported(pair: Pair, namespace: str) -> None:
    """A flush that waits for replicas raises FencedError when the node is fenced."""
    first = Producer(pair.primary.url, namespace=namespace, node="n1")
    first.set("a", 1)
    first.flush(SECONDS)
    with Producer(pair.primary.url, namespace=namespace, node="n1") as second:
        with pytest.raises(FencedError):
            first.flush(SECONDS, redis_replicas=1)
        second.set("a", 2)
        second.flush(SECONDS, redis_replicas=1)
    with suppress(FencedError):
        first.close(1)


def test_many_at_once_and_with_await(pair: Pair, namespace: str) -> None:
    """Many callers may wait and give up without effect on others."""

    async def go() -> None:
        async with aio.Producer(pair.primary.url, namespace=namespace, shards=2) as producer:

            async def one(number: int) -> None:
                await producer.set(f"k{number}", number)
                await producer.flush(SECONDS, redis_replicas=1)

            given_up = asyncio.create_task(one(-1))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.gather(*(one(number) for number in range(50)))

    asyncio.run(go())
    with Inspector(pair.replica.url, namespace=namespace) as inspector:
        assert sum(shard.accepted for shard in inspector.status().shards) >= 50


def test_with_the_rights_of_a_producer(new_pair: NewPair, namespace: str) -> None:
    """The producer role suffices; a user without the right to WAIT gets an error that names it."""
    pair = new_pair("--appendonly", "yes")
    with RoleUsers([pair.primary.url], namespace, node="n1") as users:
        url = users.url("producer", pair.primary.url)
        with Producer(url, namespace=namespace, node="n1") as producer:
            producer.set("a", 1)
            producer.flush(SECONDS, redis_replicas=1)
            if tells_of_disks(pair.primary):
                producer.flush(SECONDS, redis_replicas=1, fsynced=True)
            with redis.Redis.from_url(pair.primary.url) as owner:
                owner.execute_command("ACL", "SETUSER", users.user("producer"), "-wait")
            with pytest.raises(BackendError, match="check the ACL of this user"):
                producer.flush(SECONDS, redis_replicas=1)


# -- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_what_is_on_disk_survives_a_crash(
    fsync: str, own_server: OwnServer, namespace: str
) -> None:
    """A confirmed write is there after a crash and a restart, and is not sent again."""
    server = own_server("--appendonly", "yes", "--appendfsync", fsync)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set_many({f"k{n}": n for n in range(1000)})
        producer.flush(SECONDS, fsynced=True)
        server.kill()
        server.start()
        with Inspector(server.url, namespace=namespace) as inspector:
            assert inspector.status().shards[0].accepted == 1000
        producer.set("more", 1)
        producer.flush(SECONDS, fsynced=True)
        assert producer.stats().resent == 0


def test_a_disk_that_is_never_told_of_is_never_confirmed(
    own_server: OwnServer, namespace: str
) -> None:
    """With `appendfsync no` the server cannot confirm a write to disk."""
    server = own_server("--appendonly", "yes", "--appendfsync", "no")
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("a", 1)
        with pytest.raises(NotReplicatedError, match=r"its disk has not written it .*appendfsync"):
            producer.flush(SHORT, fsynced=True)
        with redis.Redis.from_url(server.url) as owner:
            owner.config_set("appendfsync", "always")
        producer.flush(SECONDS, fsynced=True)


def test_disks_of_replicas_are_counted_apart(new_pair: NewPair, namespace: str) -> None:
    """A replica without an append-only file counts for memory, not for disk."""
    pair = new_pair("--appendonly", "yes", "--appendfsync", "always")
    if not tells_of_disks(pair.primary):
        pytest.skip("Redis 7.0 has no WAITAOF")
    with (
        Producer(pair.primary.url, namespace=namespace) as producer,
        redis.Redis.from_url(pair.replica.url) as owner,
    ):
        owner.config_set("appendonly", "no")
        producer.set("a", 1)
        with pytest.raises(NotReplicatedError, match="0 of 1 replicas have it on disk"):
            producer.flush(SHORT, redis_replicas=1, fsynced=True)
        producer.flush(SECONDS, redis_replicas=1)
        producer.flush(SECONDS, fsynced=True)
        owner.config_set("appendonly", "yes")
        producer.flush(SECONDS, redis_replicas=1, fsynced=True)


def test_a_server_that_cannot_tell_of_disks_says_so(
    own_server: OwnServer, namespace: str, kind: str
) -> None:
    """Without WAITAOF or append-only file the error names the fix and that Redis accepted it."""
    server = own_server(kind=kind)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("a", 1)
        with pytest.raises(UnsupportedServerError) as caught:
            producer.flush(SECONDS, fsynced=True)
        said = str(caught.value)
        fix = (
            "CONFIG SET appendonly yes"
            if tells_of_disks(server)
            else "which Redis 7.2 and every Valkey have"
        )
        assert fix in said
        assert "Redis has accepted the flushed deltas" in said
        assert producer.stats().accepted == 1
