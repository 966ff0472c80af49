"""Without faults every deployment keeps its promises."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest

from broker import Inspector, Producer, Replica, Status
from broker.model import Token
from broker.protocol.names import shard_of
from broker.testing.waiting import eventually
from tests.conformance.deployments import SHARDS, Deployment

KEYS = 120


def test_what_is_written_is_what_is_read(deployment: Deployment, namespace: str) -> None:
    """All readers agree after set, delete, increment and set_many in all shards."""
    expected: dict[str, Any] = {}
    with (
        deployment.serve(namespace),
        Producer(deployment.way("producer"), namespace=namespace) as producer,
        Replica(deployment.way("subscriber"), namespace=namespace) as replica,
    ):
        for number in range(KEYS):
            key = f"k{number}"
            producer.set(key, {"n": number})
            expected[key] = {"n": number}
        assert {shard_of(key, SHARDS) for key in expected} == set(range(SHARDS))
        for number in range(0, KEYS, 3):
            producer.delete(f"k{number}")
            del expected[f"k{number}"]
        many = {f"m{number}": [number, None, b"\0\xff"] for number in range(KEYS)}
        producer.set_many(many)
        expected |= many
        for number in range(KEYS):
            producer.increment(f"c{number % 7}", number)
            expected[f"c{number % 7}"] = expected.get(f"c{number % 7}", 0) + number
        token = producer.flush(20)
        replica.wait_for(token, 20)
        replica.wait_live(20)
        assert replica.snapshot()[0] == expected
        # Somebody who comes later reads the full state, and the log behind it.
        with (
            Inspector(deployment.way("subscriber"), namespace=namespace) as inspector,
            Replica(deployment.way("subscriber"), namespace=namespace) as late,
        ):
            assert inspector.folded() == expected
            eventually(lambda: inspector.state() == expected, 20)
            late.wait_for(token, 20)
            assert late.snapshot()[0] == expected
            assert inspector.get("m5") == (True, many["m5"])
            assert inspector.get("k0") == (False, None)


def test_a_token_tells_another_process_when_it_is_visible(
    deployment: Deployment, namespace: str
) -> None:
    """A process that waits for a token, passed as text, reads the writes before it."""
    with (
        deployment.serve(namespace),
        Producer(deployment.way("producer"), namespace=namespace) as producer,
        Replica(deployment.way("subscriber"), namespace=namespace) as replica,
    ):
        for number in range(30):
            producer.set_many({f"k{n}": number for n in range(SHARDS * 2)})
            text = str(producer.flush(20))
            assert len(Token.parse(text).marks) == len(
                {shard_of(f"k{n}", SHARDS) for n in range(SHARDS * 2)}
            )
            replica.wait_for(text, 20)
            assert [replica[f"k{n}"] for n in range(SHARDS * 2)] == [number] * SHARDS * 2


def test_changes_come_in_the_order_of_writing(deployment: Deployment, namespace: str) -> None:
    """Every change of a key arrives in order, and positions of a shard only grow."""
    rounds = 60
    with (
        deployment.serve(namespace),
        Producer(
            deployment.way("producer"), namespace=namespace, local_delta_max_count=3
        ) as producer,
        Replica(deployment.way("subscriber"), namespace=namespace) as replica,
    ):
        replica.wait_live(20)
        with closing(replica.changes()) as changes:
            for number in range(rounds):
                for key in range(SHARDS * 2):
                    producer.set(f"k{key}", number)
                if number % 20 == 0:
                    replica.wait_for(producer.flush(20), 20)
            replica.wait_for(producer.flush(20), 20)
            seen: dict[str, list[int]] = {}
            offsets: dict[int, int] = {}
            for _ in range(rounds * SHARDS * 2):
                change = next(changes)
                seen.setdefault(change.key, []).append(change.value)
                shard = shard_of(change.key, SHARDS)
                assert change.position.offset >= offsets.get(shard, 0)
                offsets[shard] = change.position.offset
    assert seen == {f"k{key}": list(range(rounds)) for key in range(SHARDS * 2)}
    assert max(offsets.values()) > 1


@pytest.mark.parametrize("producers", [3])
def test_writers_side_by_side_lose_nothing(
    deployment: Deployment, namespace: str, producers: int
) -> None:
    """Concurrent increments add up, and the replica verifies its content."""
    each = 400

    def write(node: int) -> None:
        with Producer(deployment.way("producer"), namespace=namespace, node=f"n{node}") as producer:
            for number in range(each):
                producer.increment(f"c{number % 20}")
                producer.increment("all")
            producer.flush(20)

    with (
        deployment.serve(namespace),
        Replica(deployment.way("subscriber"), namespace=namespace) as replica,
    ):
        threads = [threading.Thread(target=write, args=(node,)) for node in range(producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(
            lambda: (
                [replica.get("all")] + [replica.get(f"c{number}") for number in range(20)]
                == [producers * each] + [producers * each // 20] * 20
            ),
            20,
        )
        verification = replica.verify()
        assert (verification.is_equal, verification.keys) == (True, 21)
        with Inspector(deployment.way("subscriber"), namespace=namespace) as inspector:
            assert not inspector.altered()


def test_a_replica_says_when_it_is_not_current(deployment: Deployment, namespace: str) -> None:
    """Without flush workers a replica is stale within its bound."""
    with Producer(deployment.way("producer"), namespace=namespace, shards=SHARDS) as producer:
        with (
            deployment.serve(namespace),
            Replica(
                deployment.way("subscriber"), namespace=namespace, staleness_bound=0.6
            ) as replica,
        ):
            producer.set("key", 1)
            replica.wait_for(producer.flush(20), 20)
            replica.wait_live(20)
            before = replica.status
        with Replica(
            deployment.way("subscriber"), namespace=namespace, staleness_bound=0.6
        ) as replica:
            # It holds everything, and nobody proves that this is all.
            eventually(lambda: replica.status is Status.STALE, 20)
            assert (before, replica["key"]) == (Status.LIVE, 1)
            with deployment.serve(namespace):
                replica.wait_live(20)
