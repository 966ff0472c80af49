"""Replies that mean the wrong server: a connection is not kept on which nothing can succeed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import redis

from broker import BackendError, FlushTimeoutError, Producer, Replica
from broker.backend.server_errors import MEANINGS, meaning
from broker.testing import FaultProxy
from broker.testing.clusters import ask
from broker.testing.server import Server, free_port
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.integration.lua_shard import Shard, chunk
from tests.integration.running_workers import NewServing
from tests.integration.talker import talker

Wrong = Callable[[OwnServer, Server], "str | Server"]


def demoted(own: OwnServer, good: Server) -> Server:
    """A replica of the right server."""
    server = own(port=0, kind=good.kind)
    ask(server, "REPLICAOF", "127.0.0.1", good.port)
    eventually(lambda: "master_link_status:up" in _info(server))
    return server


def cut_off(own: OwnServer, good: Server) -> Server:
    """A replica without a primary, which may not serve old data."""
    server = own("--replica-serve-stale-data", "no", port=0, kind=good.kind)
    ask(server, "REPLICAOF", "127.0.0.1", 1)
    return server


def alone(own: OwnServer, good: Server) -> Server:
    """An old primary that nobody follows any more."""
    return own("--min-replicas-to-write", "1", port=0, kind=good.kind)


def of_a_cluster(own: OwnServer, good: Server) -> Server:
    """A node of a Cluster that owns no slots."""
    bus = str(free_port())
    return own("--cluster-enabled", "yes", "--cluster-port", bus, port=0, kind=good.kind)


def with_a_password(own: OwnServer, good: Server) -> Server:
    """Another server, with another password."""
    server = own(port=0, kind=good.kind, password="other")
    server.password = None
    return server


def loading(_own: OwnServer, _good: Server) -> str:
    """A server that has just been started."""
    return "LOADING Redis is loading the dataset in memory"


WRONG = pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (demoted, "is a replica"),
        (cut_off, "is a replica that lost its primary"),
        (alone, "min-replicas-to-write"),
        (of_a_cluster, "is a node of a Redis Cluster"),
        (with_a_password, "refuses the password"),
        (loading, "is still loading"),
    ],
)


def _info(server: Server) -> str:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.response_callbacks.clear()
        return str(client.execute_command("INFO", "replication"))  # type: ignore[no-untyped-call]


@contextmanager
def url_of(server: str | Server) -> Iterator[str]:
    """Give the URL of a server, or of one that only says this."""
    if isinstance(server, Server):
        yield f"redis://127.0.0.1:{server.port}/0"
    else:
        with talker(b"-" + server.encode() + b"\r\n") as url:
            yield url


@WRONG
def test_an_address_that_led_to_the_wrong_server_is_resolved_again(  # noqa: PLR0917 - fixtures
    wrong: Wrong,
    says: str,
    own_server: OwnServer,
    kind: str,
    namespace: str,
    serving: NewServing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Writers, workers and replicas go on in seconds though the wrong one keeps its connections."""
    good = own_server(port=0, kind=kind)
    with FaultProxy(good.url) as proxy, url_of(wrong(own_server, good)) as wrong_url:
        serving(proxy.url, namespace)
        with (
            Producer(proxy.url, namespace=namespace) as producer,
            Replica(proxy.url, namespace=namespace, staleness_bound=0.5) as replica,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(5), 5)
            proxy.target = wrong_url
            proxy.reset()
            producer.set("a", 2)
            with pytest.raises(FlushTimeoutError, match=says):
                producer.flush(2)
            proxy.target = good.url
            replica.wait_for(producer.flush(5), 5)
            assert replica["a"] == 2
            replica.wait_live(5)
    assert says in caplog.text


def test_a_demoted_server_keeps_nobody(
    own_server: OwnServer, kind: str, namespace: str, serving: NewServing
) -> None:
    """An address that moves to the promoted server, while the demoted one keeps its connections."""
    before = own_server(port=0, kind=kind)
    after = demoted(own_server, before)
    with FaultProxy(before.url) as proxy:
        serving(proxy.url, namespace)
        with (
            Producer(proxy.url, namespace=namespace) as producer,
            Replica(proxy.url, namespace=namespace, staleness_bound=0.5) as replica,
        ):
            producer.set("a", 1)
            replica.wait_for(producer.flush(5), 5)
            ask(after, "REPLICAOF", "NO", "ONE")
            ask(before, "REPLICAOF", "127.0.0.1", after.port)
            proxy.target = after.url
            producer.set("a", 2)
            replica.wait_for(producer.flush(5), 5)
            assert replica["a"] == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), "READONLY"),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), "NOREPLICAS"),
    ],
)
def test_a_refused_script_says_why(
    own_server: OwnServer, kind: str, namespace: str, change: tuple[str, ...], code: str
) -> None:
    """An error that a script raises again would have the line of the script for its code."""
    server = own_server(port=0, kind=kind)
    shard = Shard(server, namespace)
    try:
        shard.opened()
        shard.take()
        ask(server, *change)
        for command in (
            shard.heartbeat,
            shard.take,
            shard.drain,
            shard.open,
            partial(shard.append, 1),
            partial(shard.append_pushed, 1, chunk("n1", 1)),
        ):
            with pytest.raises(redis.ResponseError) as caught:
                command()
            assert meaning(caught.value) is MEANINGS[code], (command, caught.value)
    finally:
        shard.close()


def test_reads_follow_the_subscription_to_the_new_server(
    own_server: OwnServer, kind: str, namespace: str, serving: NewServing
) -> None:
    """What the new server published is not looked for on the old one, which nobody demoted."""
    before = own_server(port=0, kind=kind)
    after = demoted(own_server, before)
    with FaultProxy(before.url) as proxy:
        old = serving(proxy.url, namespace)
        with Replica(proxy.url, namespace=namespace, staleness_bound=0.5) as replica:
            replica.wait_live(5)
            old.stop()
            ask(after, "REPLICAOF", "NO", "ONE")
            proxy.target = after.url
            serving(after.url, namespace)
            with Producer(after.url, namespace=namespace) as producer:
                for number in range(3):
                    producer.set("a", number)
                    token = producer.flush(5)
            replica.wait_for(token, 5)
            replica.wait_live(5)
            assert replica["a"] == 2


def test_a_server_that_is_busy_with_a_script_is_waited_for(
    own_server: OwnServer, kind: str, namespace: str, serving: NewServing
) -> None:
    """BUSY is told with the fix; what was written arrives once the script is over."""
    server = own_server("--lua-time-limit", "50", port=0, kind=kind)
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("a", 1)
        producer.flush(5)

        def hog() -> None:
            with redis.Redis.from_url(server.url) as client, suppress(redis.ResponseError):
                client.eval("while true do end", 0)

        thread = threading.Thread(target=hog)
        thread.start()
        try:
            eventually(lambda: _is_busy(server))
            producer.set("a", 2)
            with pytest.raises(FlushTimeoutError, match="SCRIPT KILL"):
                producer.flush(1)
        finally:
            with redis.Redis.from_url(server.url) as client:
                eventually(lambda: _kills(client))
            thread.join()
        producer.flush(5)


def _is_busy(server: Server) -> bool:
    with redis.Redis.from_url(server.url) as client:
        try:
            client.ping()
        except redis.ResponseError:
            return True
        return False


def _kills(client: redis.Redis) -> bool:
    try:
        return bool(client.script_kill())
    except redis.ResponseError:
        return False


def test_what_a_start_may_wait_for(own_server: OwnServer, namespace: str) -> None:
    """A replica, or a full memory, may pass by itself; a missing right does not."""
    server = own_server(port=0)
    Producer(server.url, namespace=namespace).close()
    ask(server, "ACL", "SETUSER", "weak", "on", ">x", "~*", "&*", "+@all", "-evalsha")
    reported = {}
    for name, change, url in (
        ("NOPERM", (), f"redis://weak:x@127.0.0.1:{server.port}/0"),
        ("OOM", ("CONFIG", "SET", "maxmemory", "1"), server.url),
        ("READONLY", ("REPLICAOF", "127.0.0.1", "1"), server.url),
    ):
        if change:
            ask(server, *change)
        with pytest.raises(BackendError, match=name) as caught:
            Producer(url, namespace=namespace)
        reported[name] = caught.value.is_temporary
    assert reported == {"NOPERM": False, "OOM": True, "READONLY": True}
