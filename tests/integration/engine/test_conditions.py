"""What was right with the server at the start is looked at again; what is wrong has a name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import redis

from broker import Inspector, Producer, Replica, Status
from broker.aio import Replica as AioReplica
from broker.engine import replication
from broker.stats import ReplicaStats
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.acl_users import PASSWORD, with_login
from tests.conftest import OwnServer
from tests.integration.manual_flush import ManualFlush
from tests.integration.running_workers import NewServing
from workers import conditions

BOUND = 0.5


@pytest.fixture
def own(own_server: OwnServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Give a server whose settings may be changed, and short pauses between looks at it."""
    monkeypatch.setattr(replication, "CONDITIONS_INTERVAL", 0.1)
    monkeypatch.setattr(conditions, "CONDITIONS_INTERVAL_S", 0.1)
    return own_server(kind=kind, port=0)


def admin(server: Server) -> redis.Redis:
    """Return a client that may do everything."""
    return redis.Redis(unix_socket_path=str(server.socket), protocol=2)


def test_a_server_that_evicts_is_not_believed(
    own: Server, namespace: str, serving: NewServing
) -> None:
    """Worker and replica say so while it lasts; no replica loads what such a server still has."""
    workers = serving(own.url, namespace, interval=0.2)
    keys = workers.session.keys[0]
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace, staleness_bound=BOUND) as replica,
        admin(own) as client,
    ):
        replica.wait_live(10)
        producer.set_many({f"key/{number}": number for number in range(500)})
        replica.wait_for(producer.flush(10), 10)
        eventually(lambda: client.hlen(keys.state) == 500)
        client.config_set("maxmemory-policy", "allkeys-lru")
        eventually(lambda: "allkeys-lru" in str(replica.health.reasons))
        assert not replica.health.ok
        eventually(lambda: "allkeys-lru" in workers.flushers[0].reason)
        # It drops every key, also the one that holds the history's identity.
        client.config_set("maxmemory", "1")
        eventually(lambda: replica.status is not Status.LIVE)
        for max_memory in (1, 0):
            # With 0 it drops nothing more, and takes writes again; what it dropped is missing.
            client.config_set("maxmemory", max_memory)
            ends = time.monotonic() + 2 * BOUND
            while time.monotonic() < ends:
                assert len(replica) == 500
                assert replica.status is not Status.LIVE
        with pytest.raises(TimeoutError, match="allkeys-lru"):
            replica.wait_live(0.01)
        assert "noeviction" in str(replica.health.reasons)
        client.config_set("maxmemory-policy", "noeviction")
        replica.wait_live(20)
        eventually(lambda: replica.health.ok)
        eventually(lambda: not workers.flushers[0].reason)


def test_a_self_check_corrects_nothing_by_a_copy_that_is_evicted(
    own: Server, namespace: str, serving: NewServing
) -> None:
    """While keys may be dropped, a self-check is undecided."""
    serving(own.url, namespace, interval=0.2)
    with (
        admin(own) as client,
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace, self_check_interval=0.1) as replica,
    ):
        producer.set("k", 1)
        replica.wait_for(producer.flush(10), 10)

        def after_changes(is_there: Callable[[ReplicaStats], bool]) -> None:
            """Wait for it: a check waits for a full state, and none is written without changes."""
            eventually(lambda: producer.increment("n") or is_there(replica.stats()), 40)

        after_changes(lambda stats: stats.self_checks > 0)
        client.config_set("maxmemory-policy", "volatile-ttl")
        after_changes(lambda stats: stats.self_checks_undecided > 1)
        assert "volatile-ttl" in str(replica.health.reasons)
        assert replica["k"] == 1


def test_without_memory_a_live_replica_says_that_writing_stands_still(
    own: Server, namespace: str, serving: NewServing
) -> None:
    """It is live, for it holds all that was accepted; its health and the worker's are not good."""
    workers = serving(own.url, namespace)
    with Replica(own.url, namespace=namespace) as replica, admin(own) as client:
        replica.wait_live(10)
        client.config_set("maxmemory", "1")
        eventually(lambda: "writing stands still" in str(replica.health.reasons))
        assert not replica.health.ok
        assert replica.status is Status.LIVE
        eventually(lambda: "out of memory" in workers.flushers[0].reason)
        client.config_set("maxmemory", "0")
        eventually(lambda: replica.health.ok)
        eventually(lambda: not workers.flushers[0].reason)


@pytest.mark.parametrize(
    ("name", "value", "back", "words"),
    [
        ("maxmemory-policy", "volatile-ttl", "noeviction", "maxmemory-policy volatile-ttl"),
        ("maxmemory", "1", "0", "writing stands still"),
    ],
)
def test_a_scheduler_looks_at_the_server_too(
    own: Server,
    namespace: str,
    serving: NewServing,
    *,
    name: str,
    value: str,
    back: str,
    words: str,
) -> None:
    """It is red at once while it lasts, in its own statistics and in what everybody reads."""
    workers = serving(own.url, namespace, interval=0.2)
    scheduler = workers.scheduler
    assert scheduler is not None
    with Inspector(own.url, namespace=namespace) as inspector, admin(own) as client:

        def published() -> list[str]:
            return [one.reason for one in inspector.status().workers if one.role == "schedule"]

        eventually(lambda: published() == [""])
        client.config_set(name, value)
        eventually(lambda: words in scheduler.stats().reason)
        if name != "maxmemory":
            # Without memory its record cannot be written either; that of the flush worker tells.
            eventually(lambda: words in str(published()))
        client.config_set(name, back)
        eventually(lambda: not scheduler.stats().reason)
        eventually(lambda: published() == [""])


def test_workers_that_may_not_look_say_so(own: Server, namespace: str, serving: NewServing) -> None:
    """A right that was taken away while they run does not make them silent."""
    with admin(own) as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        workers = serving(with_login(own.url, "poor"), namespace, interval=0.2)
        scheduler = workers.scheduler
        assert scheduler is not None
        client.execute_command("ACL", "SETUSER", "poor", "-info")
        for worker in (scheduler, workers.flushers[0]):
            eventually(lambda worker=worker: "is not known" in worker.reason)  # type: ignore[misc]
            assert "'info'" in worker.reason
        client.execute_command("ACL", "SETUSER", "poor", "+info")
        for worker in (scheduler, workers.flushers[0]):
            eventually(lambda worker=worker: not worker.reason)  # type: ignore[misc]


def test_a_full_state_that_was_evicted_is_missed(
    own: Server, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """With the policy right again a new replica is live with what is left, and says so."""
    workers = serving(own.url, namespace, interval=0.2)
    keys = workers.session.keys[0]
    scheduler = workers.scheduler
    assert scheduler is not None
    with Producer(own.url, namespace=namespace) as producer, admin(own) as client:
        producer.set_many({f"key/{number}": "x" * 1000 for number in range(500)})
        producer.flush(10)
        eventually(lambda: client.hlen(keys.state) == 500)
        # Of keys with a time to live there are only this one and the lease, which is taken again.
        client.expire(keys.state, 3600)
        client.config_set("maxmemory-policy", "volatile-lru")

        def is_evicted() -> bool:
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 1000)
            return not client.exists(keys.state)

        eventually(is_evicted)
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        assert client.exists(keys.meta)
        eventually(lambda: scheduler.stats().keys_evicted >= 1)
        eventually(lambda: workers.flushers[0].stats().keys_evicted >= 1)
        eventually(lambda: not scheduler.reason)
        # A worker tells it at most so often; what it tells first may be before the last look.
        eventually(lambda: f"keys_evicted worker={scheduler.name} keys=" in caplog.text)
        with Replica(own.url, namespace=namespace) as replica:
            replica.wait_live(10)
            assert not replica.health.ok
            assert "may be missing or wrong" in str(replica.health.reasons)
            assert replica.stats().loads_altered == 1


@pytest.mark.parametrize("face", ["sync", "aio"])
@pytest.mark.parametrize("command", ["info", "subscribe", "hscan", "xrange"])
def test_a_missing_right_is_named(
    own: Server, namespace: str, serving: NewServing, command: str, face: str
) -> None:
    """Not live for want of one command: the error and the health name it, and blame no worker."""
    serving(own.url, namespace)
    with admin(own) as client:
        client.execute_command(
            *("ACL", "SETUSER", "poor", "on", f">{PASSWORD}", "~*", "&*", "+@all", f"-{command}")
        )
    url = with_login(own.url, "poor")

    def check(message: str, reasons: str) -> None:
        for text in (message, reasons):
            assert f"'{command}'" in text
            assert "does not permit it" in text
            assert "flush worker" not in text

    if face == "sync":
        with Replica(url, namespace=namespace) as replica:
            with pytest.raises(TimeoutError) as late:
                replica.wait_live(1)
            check(str(late.value), " ".join(replica.health.reasons))
        return

    async def scenario() -> None:
        async with AioReplica(url, namespace=namespace) as replica:
            with pytest.raises(TimeoutError) as late:
                await replica.wait_live(1)
            check(str(late.value), " ".join(replica.health.reasons))

    asyncio.run(scenario())


def test_heartbeats_that_are_rarer_than_the_bound_are_named(server: Server, namespace: str) -> None:
    """The replica measures them; nothing else is wrong, and no worker is missing."""
    with (
        ManualFlush(server.url, namespace) as flusher,
        Replica(server.url, namespace=namespace, staleness_bound=0.2) as replica,
    ):
        flusher.beat()

        def is_named() -> bool:
            time.sleep(0.3)
            flusher.beat()
            return "heartbeat_interval" in str(replica.health.reasons)

        eventually(is_named)
        (reason,) = replica.health.reasons
        assert "rarer than the staleness bound of 0.2 s" in reason
