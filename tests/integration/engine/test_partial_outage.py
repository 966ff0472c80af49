"""A part of a Cluster is away: what starts now works with the rest, and says what is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from broker import FlushTimeoutError, Inspector, NotLoadedError, Producer, Replica, Status
from broker.protocol.names import ShardKeys, config_key, shard_of, slot_of_key
from broker.testing.clusters import ClusterOfServers, ask
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing

pytestmark = pytest.mark.timeout(240)

SHARDS = 6

Outage = Callable[[ClusterOfServers, int], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOfServers]:
    """Give a Cluster of three primaries that serves the slots it can."""
    with ExitStack() as stack:

        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))

        found = ClusterOfServers("valkey", directory)
        stack.callback(found.stop)
        found.start()
        yield found


@contextmanager
def dead(cluster: ClusterOfServers, slot: int) -> Iterator[None]:
    """Kill the owner of a slot, and the replica that would take over."""
    primary = cluster.owner(slot)
    nodes = [cluster.replica_of(primary), primary]
    for node in nodes:
        node.kill()
    try:
        yield
    finally:
        for node in nodes:
            node.start()
        cluster.until_whole()


@contextmanager
def unassigned(cluster: ClusterOfServers, slot: int) -> Iterator[None]:
    """Take a slot from its owner, and give it to nobody."""
    primary = cluster.owner(slot)
    for node in cluster.nodes:
        ask(node, "CLUSTER", "DELSLOTS", slot)
    try:
        yield
    finally:
        ask(primary, "CLUSTER", "ADDSLOTS", slot)
        cluster.until_whole()


def slot_of(namespace: str, shard: int) -> int:
    """Return the slot of a shard."""
    return slot_of_key(ShardKeys.of(namespace, shard, SHARDS).meta.encode())


def keys_of(shards: set[int]) -> list[str]:
    """Return a key of each of these shards."""
    found: dict[int, str] = {}
    for number in range(1000):
        found.setdefault(shard_of(f"k{number}", SHARDS), f"k{number}")
    return [found[shard] for shard in sorted(shards)]


def reads(replica: Replica, key: str) -> Any:
    """Return a key's value; None while its shard is not loaded."""
    with suppress(NotLoadedError):
        return replica.get(key)
    return None


@pytest.mark.parametrize("outage", [dead, unassigned])
def test_what_starts_in_a_partial_outage_serves_the_rest(
    cluster: ClusterOfServers, namespace: str, serving: NewServing, outage: Outage
) -> None:
    """Workers, producers, inspectors and replicas; all of it goes on once the rest is back."""
    Producer(cluster.url, namespace=namespace, shards=SHARDS).close()
    owner_of_config = cluster.owner(slot_of_key(config_key(namespace).encode()))
    lost = next(
        shard
        for shard in range(SHARDS)
        if cluster.owner(slot_of(namespace, shard)) is not owner_of_config
    )
    gone = cluster.owner(slot_of(namespace, lost))
    away = {lost}
    if outage is dead:
        away = {
            shard for shard in range(SHARDS) if cluster.owner(slot_of(namespace, shard)) is gone
        }
    there = set(range(SHARDS)) - away
    with ExitStack() as broken:
        broken.enter_context(outage(cluster, slot_of(namespace, lost)))
        serving(cluster.url, namespace, interval=0.5)
        with (
            Producer(cluster.url, namespace=namespace) as producer,
            Replica(cluster.url, namespace=namespace) as replica,
            Inspector(cluster.url, namespace=namespace) as inspector,
        ):
            producer.set_many(dict.fromkeys(keys_of(there), 1))
            producer.flush(5)
            # The keys of the others are neither there nor absent: a read of all would refuse.
            eventually(lambda: all(reads(replica, key) == 1 for key in keys_of(there)), 10)
            assert replica.status is not Status.LIVE
            found = inspector.status().shards
            assert {one.shard for one in found if one.away} == away
            assert inspector.get(keys_of(there)[0]) == (True, 1)
            # Full states are written where they can be.
            eventually(
                lambda: all(inspector.status().shards[shard].snapshot_offset for shard in there),
                10,
            )
            producer.set_many(dict.fromkeys(keys_of(away), 2))
            with pytest.raises(FlushTimeoutError, match=f"shard {lost}: "):
                producer.flush(1)
            broken.close()
            replica.wait_for(producer.flush(20), 20)
            replica.wait_live(20)
            assert sorted(replica.values()) == [1] * len(there) + [2] * len(away)
