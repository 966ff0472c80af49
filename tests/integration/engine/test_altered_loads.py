"""A replica that joins compares what it loads with what schedulers wrote, and says what differs."""

from __future__ import annotations

import asyncio

import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.backend import queries
from broker.core import load_sums
from broker.engine import replication
from broker.protocol.digest import range_of
from broker.protocol.fields import pack_field
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing
from tests.integration.watched_shard import WatchedShard, half_written

KEYS = 300
WAYS = ("set", "deleted", "added", "all")


@pytest.fixture
def keys(watched_shard: WatchedShard) -> ShardKeys:
    """Give the names of the shard's keys in Redis, with a full state of them written."""
    watched_shard.producer.set_many({f"k{n}": n for n in range(KEYS)})
    watched_shard.publish()
    watched_shard.write()
    return ShardKeys.of(watched_shard.namespace, 0, 1)


def alter(raw: redis.Redis, state: str, way: str) -> None:
    """Change the full state as no scheduler does."""
    if way == "set":
        raw.hset(state, "k7", pack_field("k7", 1, 99))
    elif way == "deleted":
        raw.hdel(state, "k7")
    elif way == "added":
        raw.hset(state, "k7 too", pack_field("k7 too", 1, 99))
    else:
        raw.delete(state)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_large", [False, True])
def test_what_no_scheduler_wrote_is_named_by_who_loads_it(
    watched_shard: WatchedShard,
    raw: redis.Redis,
    keys: ShardKeys,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    way: str,
    is_large: bool,
) -> None:
    """A small load before it is live, a large one right after; until it is accepted."""
    if is_large:
        monkeypatch.setattr(load_sums, "MAX_SUMMED_KEYS", KEYS // 10 if way != "all" else -1)
    monkeypatch.setattr(replication, "DOUBT_INTERVAL", 0.1)
    alter(raw, keys.state, way)
    shown = f"{range_of('k7 too' if way == 'added' else 'k7'):02x}"
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        if is_large:
            eventually(lambda: not replica.health.ok)
            assert replica.stats().full_state_altered >= 1
            assert "full_state_altered shard=0 ranges=" in caplog.text
        else:
            assert replica.stats().loads_altered == 1
            assert replica.stats().loads == 2
            assert "loaded_state_altered" in caplog.text
        assert shown in caplog.text.partition("ranges=")[2].split()[0].split(",")
        assert not replica.health.ok
        (reason,) = replica.health.reasons
        assert "key ranges of shard 0 may be missing or wrong" in reason
        assert "`statebroker verify --accept`" in reason
        assert replica.stats().keys_repaired == 0
        watched_shard.inspector.accept()
        watched_shard.write()
        eventually(lambda: replica.health.ok)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert replica.health.ok
        assert replica.stats().loads == 1


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("is_half_written", [False, True])
def test_a_load_is_compared_once_and_nothing_is_read_for_it(
    watched_shard: WatchedShard, *, is_half_written: bool
) -> None:
    """One that is right is live after one load, without a self-check; also of half a full state."""
    if is_half_written:
        watched_shard.producer.set_many({f"k{n}": -n for n in range(KEYS)})
        watched_shard.publish()
        watched_shard.run(half_written)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        shard = replica._engine._follower.shards[0]
        assert shard.content.is_compared
        assert (replica.stats().loads, replica.stats().self_checks) == (1, 0)
        assert replica.health.ok
        assert replica["k7"] == (-7 if is_half_written else 7)


@pytest.mark.usefixtures("keys")
def test_what_a_scheduler_writes_during_a_load_is_no_doubt(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compared when it is live, and equal; nothing is loaded again."""
    real = queries.state_marks
    calls = 0

    async def moved(*args: object) -> queries.StateMarks | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            # After the last page: what was loaded is the full state before.
            await asyncio.to_thread(watched_shard.run, half_written)
        return await real(*args)  # type: ignore[arg-type]

    watched_shard.producer.set_many({f"k{n}": -n for n in range(KEYS)})
    watched_shard.publish()
    monkeypatch.setattr(queries, "state_marks", moved)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        eventually(lambda: replica.stats().self_checks == 1)
        assert replica.stats().loads == 1
        assert replica.health.ok


def test_joining_while_all_is_written_again_is_never_in_doubt(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Full states are written all the time; each load is right, and says nothing else."""
    serving(server.url, namespace, interval=0.1, max_age=0.005, log_retention=0.3)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        for number in range(12):
            producer.set_many({f"k{n}": number for n in range(3000)})
            producer.flush(10)
            with Replica(server.url, namespace=namespace) as replica:
                replica.wait_live(10)
                assert replica.stats().loads_altered == 0
                eventually(
                    lambda replica=replica: (  # type: ignore[misc]
                        replica._engine._follower.shards[0].content.is_compared
                    )
                )
                assert not replica._engine._follower.shards[0].content.altered
        assert inspector.altered() == {}
