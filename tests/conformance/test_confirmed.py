"""A flush waits for the replicas of every primary, and its deltas survive a failover."""

from __future__ import annotations

import pytest

from broker import Inspector, NotReplicatedError, Producer
from tests.conformance.deployments import SHARDS, Deployment

KEYS = {f"k{number}": number for number in range(SHARDS * 10)}


@pytest.fixture
def replicated(deployment: Deployment) -> Deployment:
    """Give those that have replicas."""
    if not deployment.has_replicas:
        pytest.skip("one server has no replicas")
    return deployment


def test_what_is_on_replicas_survives_a_primary(replicated: Deployment, namespace: str) -> None:
    """A confirmed write survives the primary's death, and is not sent again."""
    with Producer(
        replicated.way("producer"), namespace=namespace, shards=SHARDS, keep_seconds=0
    ) as producer:
        producer.set_many(KEYS)
        producer.flush(20, redis_replicas=1)
        replicated.kill_primary(namespace)
        with Inspector(replicated.way("admin"), namespace=namespace) as inspector:
            assert sum(one.accepted for one in inspector.status().shards) == len(KEYS)
        producer.increment("k0")
        producer.flush(20)
        assert (producer.stats().resent, producer.stats().accepted) == (0, len(KEYS) + 1)


def test_replicas_that_are_not_there_confirm_nothing(
    replicated: Deployment, namespace: str
) -> None:
    """The error says how many replicas confirmed; the next flush works as usual."""
    with Producer(replicated.way("producer"), namespace=namespace, shards=SHARDS) as producer:
        producer.set_many(KEYS)
        producer.flush(20, redis_replicas=1)
        with pytest.raises(NotReplicatedError, match="of 9 replicas have it in memory"):
            producer.flush(0.5, redis_replicas=9)
        producer.set_many(KEYS)
        producer.flush(20, redis_replicas=1)
