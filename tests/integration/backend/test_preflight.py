"""What keeps us from starting is said in one line, with the fix."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import (
    BrokerError,
    ConfigError,
    ConnectError,
    Inspector,
    NamespaceMismatchError,
    Producer,
    Replica,
    UnsupportedServerError,
)
from broker.backend import connections
from broker.backend.session import Session
from broker.errors import DamagedError
from broker.protocol import features
from broker.protocol.names import ShardKeys, config_key
from broker.runtime.processes import tied
from broker.testing.server import Server, find_binary, free_port
from broker.testing.waiting import eventually
from tests.integration.lossy_proxy import Proxy
from tests.integration.running_workers import NewServing, Serving
from tests.integration.talker import talker

Face = Callable[..., Any]

FACES = pytest.mark.parametrize("face", [Producer, Replica, Inspector, Serving])


def refusal(face: Face, url: str, namespace: str, kind: type[BrokerError], **settings: Any) -> str:
    """Try to open a face, which must fail at once and in this way; return what it says."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        _opened(face, url, namespace, **settings)
    assert time.monotonic() - started < 8
    said = str(caught.value)
    assert "\n" not in said
    return said


def _opened(face: Face, url: str, namespace: str, **settings: Any) -> Any:
    if face is Serving:
        return face(url, namespace, **settings)
    return face(url, namespace=namespace, **settings)


@FACES
def test_nobody_listens(face: Face, namespace: str) -> None:
    """An unreachable port: the address, and what to check."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    said = refusal(face, url, namespace, ConnectError)
    assert "cannot reach redis://127.0.0.1:" in said
    assert "is the server running and the URL right?" in said


@FACES
def test_no_such_socket(face: Face, namespace: str, tmp_path: Path) -> None:
    """A missing unix socket: its path, and what to check."""
    said = refusal(face, f"unix://{tmp_path}/no.sock", namespace, ConnectError)
    assert f"{tmp_path}/no.sock" in said
    assert "is the server running and the URL right?" in said


@FACES
def test_no_such_host(face: Face, namespace: str) -> None:
    """A host name that does not exist is reported as unreachable."""
    said = refusal(face, "redis://no-such-host.invalid:6379", namespace, ConnectError)
    assert "cannot reach redis://no-such-host.invalid:6379" in said


@pytest.mark.parametrize("scheme", ["http://x", "localhost:6379", "redis:/x", "mysql://x"])
def test_a_url_of_another_kind(scheme: str, namespace: str) -> None:
    """A URL that we do not support: the schemes that we do."""
    said = refusal(Producer, scheme, namespace, ConfigError)
    assert "embedded://, redis://, rediss://, unix://" in said


@FACES
@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
def test_the_wrong_password(
    face: Face, login: str, kind: str, own_server: Callable[..., Server], namespace: str
) -> None:
    """No password or a wrong one: what to check; the password itself is not repeated."""
    server = own_server(kind=kind, port=0, password="right")
    url = f"redis://{login}127.0.0.1:{server.port}/0"
    said = refusal(face, url, namespace, ConnectError)
    assert "check the user and password" in said
    assert "wrong" not in said.replace("WRONGPASS", "").lower().replace("invalid", "")


@FACES
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"220 mail ESMTP\r\n",
        b"ERROR\r\n",
        b"-ERR unknown command\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
    ],
)
def test_not_a_redis(face: Face, answer: bytes, namespace: str) -> None:
    """If something else answers, the error says that it is not a Redis, and what to check."""
    with talker(answer) as url:
        said = refusal(face, url, namespace, UnsupportedServerError)
    assert "is not a Redis or Valkey" in said
    assert "check host and port" in said


@FACES
@pytest.mark.parametrize("answer", [b"+OK\r\n", b":7\r\n", b"$5\r\nhello\r\n", b"*0\r\n"])
def test_not_quite_a_redis(face: Face, answer: bytes, namespace: str) -> None:
    """A server with Redis' framing that does not support our commands is refused."""
    with talker(answer) as url:
        assert url in refusal(face, url, namespace, UnsupportedServerError)


@FACES
def test_something_says_nothing(
    face: Face, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the connection and never answers is given up in time."""
    monkeypatch.setattr(connections, "REPLY_TIMEOUT_S", 0.3)
    with talker(b"") as url:
        said = refusal(face, url, namespace, ConnectError)
    assert f"{url} did not answer in time" in said


@FACES
def test_something_hangs_up(face: Face, namespace: str) -> None:
    """A server that closes every connection is unreachable."""
    with talker(None) as url:
        assert "cannot reach" in refusal(face, url, namespace, ConnectError)


@FACES
def test_too_old(face: Face, server: Server, raw: redis.Redis, namespace: str) -> None:
    """A server older than 7.0: its version, the oldest that works, and to upgrade."""
    reported: Any = raw.info("server")
    major = reported["redis_version"].partition(".")[0]
    with Proxy(server) as proxy:
        proxy.rewrite = (f"redis_version:{major}.".encode(), b"redis_version:6.")
        said = refusal(face, proxy.url, namespace, UnsupportedServerError)
    assert "is Redis 6." in said
    assert "needs Redis 7.0, Valkey 7.2 or newer: upgrade" in said


@FACES
def test_a_sentinel(face: Face, kind: str, namespace: str, tmp_path: Path) -> None:
    """A Sentinel, which answers INFO like a Redis, is refused and named as a Sentinel."""
    binary = find_binary(kind)
    if isinstance(binary, str):
        pytest.skip(binary)
    port = free_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    command = tied([str(binary), str(settings), "--sentinel"])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sentinel:
        try:
            eventually(lambda: is_listening(port))
            said = refusal(face, f"redis://127.0.0.1:{port}/0", namespace, UnsupportedServerError)
        finally:
            sentinel.kill()
    assert "sentinel" in said.lower()


def is_listening(port: int) -> bool:
    """Whether a server accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@FACES
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts(
    face: Face, policy: str, kind: str, own_server: Callable[..., Server], namespace: str
) -> None:
    """A maxmemory-policy other than noeviction: which, why not, and the command that fixes it."""
    server = own_server("--maxmemory-policy", policy, kind=kind)
    said = refusal(face, server.url, namespace, UnsupportedServerError)
    assert f"maxmemory-policy {policy}" in said
    assert "CONFIG SET maxmemory-policy noeviction" in said
    with redis.Redis.from_url(server.url) as admin:
        assert admin.dbsize() == 0
        admin.config_set("maxmemory-policy", "noeviction")
    if face is Producer:
        Producer(server.url, namespace=namespace).close()


@pytest.mark.parametrize("face", [Producer, Replica, Serving])
def test_another_shard_count(
    face: Face, server: Server, namespace: str, serving: NewServing
) -> None:
    """A namespace made with another shard count is refused; the error names both counts."""
    serving(server.url, namespace, shards=3)
    said = refusal(face, server.url, namespace, NamespaceMismatchError, shards=2)
    assert "was made with 3 shards, not 2" in said
    with Replica(server.url, namespace=namespace, shards=3) as replica:
        replica.wait_live(10)
        assert len(replica.positions) == 3


def test_the_shard_count_of_the_namespace_is_adopted(
    server: Server, namespace: str, raw: redis.Redis, serving: NewServing
) -> None:
    """A producer without a number of its own uses that of whoever made the namespace."""
    serving(server.url, namespace, shards=3)
    with Producer(server.url, namespace=namespace, node="n") as producer:
        producer.set_many({f"k{n}": n for n in range(60)})
        producer.flush(10)
    assert raw.hget(config_key(namespace), "shards") == b"3"
    assert all(raw.hexists(ShardKeys.of(namespace, shard, 3).intake, "n") for shard in range(3))


@FACES
def test_another_protocol_version(
    face: Face, server: Server, raw: redis.Redis, namespace: str
) -> None:
    """A namespace of another protocol version is refused; the error names both versions."""
    raw.hset(config_key(namespace), mapping={"protocol": 2, "shards": 1, "created": 0})
    said = refusal(face, server.url, namespace, NamespaceMismatchError)
    assert "has protocol version 2, this release has version 3" in said
    found: Any = raw.hgetall(config_key(namespace))
    assert found == {b"protocol": b"2", b"shards": b"1", b"created": b"0"}


@FACES
@pytest.mark.parametrize("words", ["ttl", "leases ttl", "2031_later-on"])
def test_a_namespace_with_an_unknown_word(
    face: Face, words: str, server: Server, raw: redis.Redis, namespace: str
) -> None:
    """Reserved or of a later release: refused by name; nothing is written."""
    named = f"{'words' if ' ' in words else 'word'} {words.replace(' ', ', ')}"
    made = {b"protocol": b"3", b"shards": b"1", b"created": b"0", b"features": words.encode()}
    raw.hset(config_key(namespace), mapping=made)  # type: ignore[arg-type]
    told = refusal(face, server.url, namespace, NamespaceMismatchError)
    assert f"{namespace!r} needs the feature {named}, which this release does not know; use" in told
    assert raw.hgetall(config_key(namespace)) == made
    assert raw.keys(f"sb:{{{namespace}*") == [config_key(namespace).encode()]


@FACES
@pytest.mark.parametrize(
    "text", [b"TTL", b"ttl  x", b" ", b"ttl compress", b"ttl ttl", b"\xff", b"a" * 1025]
)
def test_words_that_cannot_be_read(
    face: Face, text: bytes, server: Server, raw: redis.Redis, namespace: str
) -> None:
    """They are damaged, which is said by name; nobody guesses that there are none."""
    made = {b"protocol": b"3", b"shards": b"1", b"created": b"0", b"features": text}
    raw.hset(config_key(namespace), mapping=made)  # type: ignore[arg-type]
    told = refusal(face, server.url, namespace, DamagedError)
    assert f"{config_key(namespace)} is damaged: features is " in told
    assert raw.keys(f"sb:{{{namespace}*") == [config_key(namespace).encode()]


@FACES
def test_a_namespace_without_words(
    face: Face, server: Server, raw: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """An absent field and an empty one are the same: a plain namespace."""
    serving(server.url, namespace)
    for way in (raw.hdel, lambda key, field: raw.hset(key, field, "")):
        way(config_key(namespace), "features")
        opened = _opened(face, server.url, namespace)
        (opened.stop if face is Serving else opened.close)()


def test_who_joined_makes_a_namespace_again_with_its_words(
    server: Server, raw: redis.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a FLUSHALL it has the words that it had; one with other words is refused."""
    monkeypatch.setattr(features, "KNOWN_FEATURES", frozenset({"leases", "ttl"}))
    config = config_key(namespace)
    raw.hset(config, mapping={"protocol": 3, "shards": 2, "created": 0, "features": "ttl"})

    async def joins_again() -> None:
        session = Session(server.url, namespace, None)
        try:
            await session.connect()
            await session.create_or_join()
            raw.delete(config)
            await session.create_or_join()
            assert raw.hmget(config, "shards", "features") == [b"2", b"ttl"]
            raw.hset(config, "features", "leases ttl")
            with pytest.raises(
                NamespaceMismatchError, match=r"the words leases ttl, not ttl; start"
            ):
                await session.create_or_join()
        finally:
            await session.close()

    asyncio.run(joins_again())


def test_a_replica_that_waits_for_its_namespace_refuses_it_too(
    server: Server, raw: redis.Redis, namespace: str
) -> None:
    """If the namespace is made in another shape while a replica waits, it fails with the reason."""
    with Replica(server.url, namespace=namespace, shards=2) as replica:
        raw.hset(config_key(namespace), mapping={"protocol": 3, "shards": 1, "created": 0})
        with pytest.raises(NamespaceMismatchError, match="was made with 1 shards, not 2"):
            replica.wait_live(10)
        assert replica.status == "failed"


@FACES
def test_keys_of_somebody_else(
    face: Face, server: Server, raw: redis.Redis, namespace: str
) -> None:
    """Where another program uses our key for something else, the server's words are passed on."""
    raw.set(config_key(namespace), "x")
    assert "WRONGTYPE" in refusal(face, server.url, namespace, BrokerError)


def test_an_inspector_needs_a_namespace(server: Server, namespace: str) -> None:
    """The error for a missing namespace has its name, and what to start."""
    said = refusal(Inspector, server.url, namespace, BrokerError)
    assert f"namespace {namespace!r} does not exist" in said
    assert "start `statebroker serve`" in said


def test_all_faults_of_the_settings_are_named_at_once(server: Server) -> None:
    """Settings out of range: every one is named, each with its range, and nothing is connected."""
    with pytest.raises(ConfigError) as caught:
        Producer(
            server.url,
            shards=0,
            linger=-1,
            buffer_bytes=True,
            keep_seconds="long",
            local_delta_max_count=1.5,
            chunk_bytes=1 << 30,
        )
    assert len(caught.value.faults) == 6
    assert "shards=0 is out of range; allowed: 1 to 4096" in caught.value.faults
    for name in ("linger", "buffer_bytes", "keep_seconds", "local_delta_max_count", "chunk_bytes"):
        assert sum(f"{name}=" in fault for fault in caught.value.faults) == 1
    with pytest.raises(ConfigError, match="staleness_bound=0 is out of range"):
        Replica(server.url, staleness_bound=0)
    with pytest.raises(ConfigError, match="when_full='drop'; allowed: block, raise, conflate"):
        Producer(server.url, when_full="drop")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a:b", "{a}", "ü", 7])
def test_names_that_are_none(name: Any, server: Server) -> None:
    """A namespace or node name with other characters or too long: what a name may be."""
    for settings in ({"namespace": name}, {"node": name}):
        with pytest.raises(ConfigError, match="1 to 64 letters, digits"):
            Producer(server.url, **settings)
    for face in (Replica, Inspector):
        with pytest.raises(ConfigError, match="1 to 64 letters, digits"):
            face(server.url, namespace=name)
