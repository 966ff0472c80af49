"""The full state is damaged by others: nothing stops, and what is damaged is named and mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from broker import DecodeError, Replica
from broker.core.shard import ShardState
from broker.engine.self_check import check_and_repair
from broker.protocol.fields import pack_field
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.watched_shard import WatchedShard

GARBAGE = b"\0" * 8 + b"\xc1"


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """Give a plain client."""
    with redis.Redis.from_url(server.url, protocol=2) as client:
        yield client


def keys_of(shard: WatchedShard) -> ShardKeys:
    """Return the names of the shard's keys in Redis."""
    return ShardKeys.of(shard.namespace, 0, 1)


def memory(replica: Replica) -> ShardState:
    """Return the replica's shard."""
    return replica._engine._follower.shards[0]


def self_check(replica: Replica) -> None:
    """Compare the replica with Redis once, as it does in the background."""
    engine = replica._engine
    perform = engine._follower._perform
    replica._thread.call(check_and_repair(engine._session, memory(replica), perform, lambda: False))


def test_an_unreadable_field_hides_no_other_key(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """A new replica is live without it, and says so; the inspector names the key."""
    watched_shard.producer.set_many({"a": 1, "b": 2, "n": 3})
    watched_shard.publish()
    watched_shard.write()
    raw.hset(keys_of(watched_shard).state, "n", GARBAGE)
    raw.hset(keys_of(watched_shard).state, b"\xff", pack_field(1, 1))
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == {"a": 1, "b": 2}
        assert replica.stats().keys_damaged == 2
        health = replica.health
        assert not health.ok
        assert "has 2 keys whose field cannot be read" in health.reasons[0]
        assert "'n'" in health.reasons[0]
        found = replica.verify()
        assert not found.is_equal
        assert found.differences == ()
        assert "key 'n' of shard 0" in found.damaged
    assert watched_shard.inspector.state() == {"a": 1, "b": 2}
    assert watched_shard.inspector.folded() == {"a": 1, "b": 2}
    with pytest.raises(DecodeError, match=r"key 'n' in .* cannot be read"):
        watched_shard.inspector.get("n")


@pytest.mark.parametrize("mend", ["set", "delete"])
def test_a_scheduler_goes_on_over_an_unreadable_field(
    watched_shard: WatchedShard, raw: redis.Redis, mend: str
) -> None:
    """Increments of the damaged value are refused alike by all who need it; a write mends it."""
    watched_shard.producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write()
    url, namespace, state = watched_shard.url, watched_shard.namespace, keys_of(watched_shard).state
    with Replica(url, namespace=namespace) as right:
        right.wait_live(10)
        raw.hset(state, "n", GARBAGE)
        watched_shard.producer.increment("n", 4)
        watched_shard.producer.increment("m", 4)
        watched_shard.publish()
        assert watched_shard.write() is not None
        assert raw.hget(state, "n") == GARBAGE
        with Replica(url, namespace=namespace) as late:
            late.wait_live(10)
            watched_shard.producer.increment("n", 1)
            watched_shard.publish()
            eventually(lambda: right["n"] == 8)
            assert dict(late.items()) == {"m": 5}
            assert late.stats().deltas_refused == 1
            if mend == "set":
                watched_shard.producer.set("n", 10)
                watched_shard.producer.increment("n", 1)
            else:
                watched_shard.producer.delete("n")
            watched_shard.publish()
            content = {"m": 5, "n": 11} if mend == "set" else {"m": 5}
            for replica in (right, late):
                eventually(lambda replica=replica: dict(replica.items()) == content)  # type: ignore[misc]
            assert (late.health.ok, late.stats().keys_damaged) == (True, 0)
    watched_shard.write()
    assert watched_shard.inspector.accept() == ()
    watched_shard.producer.set("m", 6)
    watched_shard.publish()
    watched_shard.write()
    assert watched_shard.agree() == content | {"m": 6}
    assert watched_shard.inspector.altered() == {}


def test_accepting_removes_what_cannot_be_read(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """Afterwards new replicas are whole, and full state and digest agree."""
    watched_shard.producer.set_many({"a": 1, "n": 3})
    watched_shard.publish()
    watched_shard.write()
    raw.hset(keys_of(watched_shard).state, "n", GARBAGE)
    assert watched_shard.inspector.accept() == ("key 'n' of shard 0",)
    watched_shard.write()
    assert watched_shard.agree() == {"a": 1}
    assert watched_shard.inspector.altered() == {}
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert replica.health.ok
        assert replica.verify().is_equal


def test_a_self_check_does_not_repair_by_an_unreadable_field(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """A replica that is right keeps its value where the full state lost it."""
    watched_shard.producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        raw.hset(keys_of(watched_shard).state, "n", GARBAGE)
        watched_shard.producer.increment("n")
        watched_shard.publish()
        eventually(lambda: replica["n"] == 4)
        self_check(replica)
        assert dict(replica.items()) == {"n": 4, "m": 1}
        assert replica.stats().keys_repaired == 0
        assert replica.stats().full_state_altered == 1
        assert replica.verify().damaged == ("key 'n' of shard 0",)


def test_a_value_that_others_changed_does_not_spread(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """A scheduler that went on from it does not make right replicas wrong."""
    watched_shard.producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        raw.hset(keys_of(watched_shard).state, "n", pack_field(1, 500))
        watched_shard.producer.increment("n")
        watched_shard.publish()
        watched_shard.write()
        assert watched_shard.inspector.state()["n"] == 501
        eventually(lambda: replica["n"] == 4)
        self_check(replica)
        assert dict(replica.items()) == {"n": 4, "m": 1}
        assert replica.stats().full_state_altered == 1


def test_a_damaged_digest_is_computed_again(watched_shard: WatchedShard, raw: redis.Redis) -> None:
    """A scheduler does not stop over it, and readers wait for the new one."""
    watched_shard.producer.set("a", 1)
    watched_shard.publish()
    watched_shard.write()
    raw.hset(keys_of(watched_shard).meta, "digest", b"short")
    assert watched_shard.write() is not None
    assert watched_shard.inspector.altered() == {}


def test_doubt_that_lasts_is_told(watched_shard: WatchedShard) -> None:
    """After three undecided self-checks in a row the health says so, until one decides."""
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        shard = memory(replica)
        for number in range(3):
            assert replica.health.ok, number
            shard.self_check_undecided("no digest")
        assert not replica.health.ok
        assert "3 self-checks of shard 0 in a row could not decide (no digest)" in str(
            replica.health.reasons
        )
        shard.self_checked(keys_differ=False, tables_differ=False)
        assert replica.health.ok
