"""What each role's user is refused, by real servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from broker import BackendError, Inspector, Producer, Replica
from broker.backend.commands import NAMES, READERS, source
from broker.protocol.names import ShardKeys, config_key
from broker.testing.server import Server
from tests.acl_users import RoleUsers
from tests.integration.running_workers import NewServing, write_snapshots

NODE = "n1"

Client = Callable[[str], Any]


@pytest.fixture(params=[1, None], ids=["exact", "patterns"])
def users(request: pytest.FixtureRequest, server: Server, namespace: str) -> Iterator[RoleUsers]:
    """Give users of all roles, the producer's limited to a node; rules by names or by patterns."""
    with RoleUsers([server.url], namespace, node=NODE, shards=request.param) as users:
        yield users


@pytest.fixture
def client(server: Server, users: RoleUsers) -> Iterator[Client]:
    """Give a function that returns a plain client of a role."""
    made = []

    def of(role: str) -> Any:
        made.append(redis.Redis.from_url(users.url(role, server.url), protocol=2))
        return made[-1]

    yield of
    for one in made:
        one.close()


def script(name: str) -> str:
    """SHA-1 of a command's script."""
    return hashlib.sha1(source(name).encode()).hexdigest()  # noqa: S324 - as Redis does


def refusals(keys: ShardKeys) -> dict[str, list[tuple[Any, ...]]]:
    """What each role must not do, by example; the shard is the namespace's only one."""
    mine, other = keys.stage(NODE), keys.stage("n2")
    elsewhere = ShardKeys.of("elsewhere", 0, 1)
    anybody: list[tuple[Any, ...]] = [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("EVAL", "return 1", 0),
        ("SCRIPT", "FLUSH"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "SETUSER", "more", "on"),
        ("SHUTDOWN",),
        ("HMGET", elsewhere.meta, "epoch"),
        ("SUBSCRIBE", elsewhere.channel),
        ("PUBLISH", elsewhere.channel, "x"),
        ("EVALSHA", script("append"), 1, elsewhere.meta),
    ]
    return {
        "producer": [
            *anybody,
            ("RPUSH", other, "x"),
            (
                "EVALSHA",
                script("append"),
                4,
                keys.intake,
                keys.queue,
                keys.ready,
                other,
            ),
            ("PUBLISH", keys.channel, "x"),
            ("SUBSCRIBE", keys.channel),
            ("LRANGE", mine, 0, -1),
            ("LTRIM", keys.queue, 1, 0),
            ("LPOP", keys.queue),
            ("LMOVE", keys.queue, mine, "LEFT", "RIGHT"),
            ("DEL", keys.queue),
            ("DEL", keys.meta),
            ("HSET", keys.meta, "offset", 9),
            ("EVALSHA", script("append"), 1, keys.meta),
            ("HSET", keys.state, "k", "v"),
            ("XADD", keys.log, "9-0", "b", "x"),
            ("SET", keys.lease, "9 me"),
            ("CONFIG", "GET", "*"),
        ],
        "flusher": [
            *anybody,
            ("RPUSH", mine, "x"),
            ("RPUSH", keys.queue, "x"),
            ("LTRIM", keys.stage(NODE), 1, 0),
            ("HSET", keys.state, "k", "v"),
            ("HSCAN", keys.state, 0),
            ("XTRIM", keys.log, "MAXLEN", 0),
            ("SET", keys.lease, "9 me"),
        ],
        "scheduler": [
            *anybody,
            ("RPUSH", mine, "x"),
            ("RPUSH", keys.queue, "x"),
            ("EVALSHA", script("append"), 3, keys.intake, keys.queue, keys.ready),
            ("XADD", keys.log, "9-0", "b", "x"),
            ("LTRIM", keys.queue, 1, 0),
            ("SUBSCRIBE", keys.channel),
        ],
        "subscriber": [
            *anybody,
            ("HSET", keys.meta, "offset", 9),
            ("HSET", config_key(keys.prefix[4:-4]), "shards", 9),
            ("HSET", keys.state, "k", "v"),
            ("HDEL", keys.state, "k"),
            ("XADD", keys.log, "9-0", "b", "x"),
            ("RPUSH", mine, "x"),
            ("PUBLISH", keys.channel, "x"),
            ("EVALSHA", script("state_ranges"), 1, keys.state, 0, 1),
            ("LRANGE", mine, 0, -1),
            ("HGETALL", keys.intake),
        ],
        "admin": anybody,
    }


@pytest.mark.parametrize("role", ["producer", "flusher", "scheduler", "subscriber", "admin"])
def test_a_role_is_refused_what_is_not_its_own(
    role: str, client: Client, keys: ShardKeys, raw: Any
) -> None:
    """No role reaches another namespace or the server itself, or does another role's work."""
    for name in NAMES:
        raw.script_load(source(name))
    user = client(role)
    for words in refusals(keys)[role]:
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.execute_command(*words)
    assert not raw.exists(keys.meta, keys.state, keys.log, keys.lease, keys.queue, keys.intake)


def test_a_subscriber_cannot_write_by_a_script(client: Client, keys: ShardKeys, raw: Any) -> None:
    """A script that it loads itself writes nothing, not even to keys that it reads."""
    user = client("subscriber")
    writes = user.script_load("return redis.call('HSET', KEYS[1], 'k', 'v')")
    with pytest.raises(redis.exceptions.ResponseError):
        user.execute_command("EVALSHA_RO", writes, 1, keys.state)
    assert not raw.exists(keys.state)


def test_scripts_of_a_producer_are_bound_by_its_rights(
    client: Client, keys: ShardKeys, raw: Any
) -> None:
    """What it may not call, its own scripts may not call either; meta is not its own at all."""
    user = client("producer")
    for key in (keys.intake, keys.meta):
        for call in ("'DEL', KEYS[1]", "'HINCRBY', KEYS[1], 'offset', 1", "'SET', KEYS[1], ''"):
            sha = user.script_load(f"return redis.call({call})")
            raw.hset(key, "offset", 7)
            with pytest.raises(redis.exceptions.ResponseError):
                user.evalsha(sha, 1, key)
            assert raw.hget(key, "offset") == b"7"
    with pytest.raises(redis.exceptions.ResponseError):
        user.hset(keys.meta, "offset", 9)


def test_a_producer_under_another_name_gets_nothing_accepted(
    server: Server, users: RoleUsers, namespace: str, serving: NewServing
) -> None:
    """With the user of one node no other name can be opened, and the error names the ACL."""
    serving(server.url, namespace)
    url = users.url("producer", server.url)
    with Producer(url, namespace=namespace, node=NODE) as producer:
        producer.set("a", 1)
        producer.flush(5)
    with pytest.raises(BackendError, match="does not permit it"):
        Producer(url, namespace=namespace, node="n2")
    with Inspector(server.url, namespace=namespace) as inspector:
        assert [shard.accepted for shard in inspector.status().shards] == [1]


def test_a_subscriber_proves_and_mends_what_it_holds(
    server: Server, users: RoleUsers, namespace: str, serving: NewServing
) -> None:
    """Reading key ranges for a repair takes no right to write."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set_many({f"k{n}": n for n in range(100)})
        token = producer.flush(5)
    url = users.url("subscriber", server.url)
    with (
        Replica(url, namespace=namespace) as replica,
        Inspector(url, namespace=namespace) as inspector,
    ):
        replica.wait_for(token, 5)
        write_snapshots(server.url, namespace)
        replica._engine._follower.shards[0].values["k7"] = "spoilt"
        (one,) = replica.verify().differences
        assert (one.key, one.replica, one.history) == ("k7", "spoilt", 7)
        assert inspector.altered() == {}
        assert inspector.get("k7") == (True, 7)
    assert not users.refused()


def test_the_read_only_commands_are_the_subscribers() -> None:
    """What is called as a script that cannot write, writes nothing."""
    for name in NAMES:
        writes = {"HSET", "HDEL", "RPUSH", "SET", "DEL", "XADD", "LTRIM", "PEXPIRE"} & set(
            source(name).replace("'", " ").split()
        )
        assert bool(writes) != (name in READERS), name
