"""A batch is made at once by count, else by age, without another write."""

from __future__ import annotations

import time

import pytest
import redis

from broker import Producer
from broker.protocol.constants import TRIGGER_AGE, TRIGGER_COUNT
from broker.protocol.messages import Batch
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.raw_subscriber import Channel
from tests.integration.running_workers import NewServing

COUNT = 10
AGE = 0.5
# Most that a loaded machine may need to publish what is due.
LATE = 0.4
# Acceptance times are in whole milliseconds, and a delta's wait in the producer counts too.
EARLY = 0.02


def waited(batch: Batch) -> float:
    """Return seconds between acceptance of a batch's oldest chunk and its publication."""
    return (batch.time_ms - batch.oldest_ms) / 1000


def by_age(batch: Batch) -> bool:
    """Return whether a batch was made by age, neither early nor late."""
    return batch.trigger == TRIGGER_AGE and AGE - EARLY <= waited(batch) <= AGE + LATE


@pytest.mark.parametrize("who", ["producer", "worker"])
def test_the_original_two_scenarios(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys, who: str
) -> None:
    """12 writes make a batch of 10 by count and one of 2 by age; a later write goes by age.

    Producer or worker may set the thresholds.
    """
    mine = {"local_delta_max_age": AGE, "local_delta_max_count": COUNT}
    theirs = {"max_age": AGE, "max_count": COUNT}
    serving(server.url, namespace, heartbeat=1.0, **(theirs if who == "worker" else {}))
    if who == "worker":
        # A producer that is opened before the first heartbeat learns them later.
        with redis.Redis.from_url(server.url) as client:
            eventually(lambda: client.hget(keys.meta, "max_count"))
    with (
        Channel(server.url, keys) as channel,
        Producer(
            server.url, namespace=namespace, **(mine if who == "producer" else {})
        ) as producer,
    ):
        for number in range(12):
            producer.set(str(number), number / 8)
        eventually(lambda: len(channel.batches) == 2, message=lambda: str(channel.batches))
        first, second = channel.batches
        assert (first.deltas, first.trigger) == (10, TRIGGER_COUNT)
        assert waited(first) < LATE
        assert second.deltas == 2
        assert by_age(second), waited(second)

        paused_at = time.monotonic()
        eventually(lambda: time.monotonic() > paused_at + 0.6, message="a pause of 600 ms")
        assert len(channel.batches) == 2
        written_at = time.monotonic()
        producer.set("99", 123.456)
        eventually(lambda: len(channel.batches) == 3)
        third = channel.batches[2]
        assert third.deltas == 1
        assert by_age(third), waited(third)
        arrived_at = next(seen.at for seen in channel.seen if seen.packet is third)
        assert AGE - EARLY <= arrived_at - written_at <= AGE + LATE


def test_a_flush_does_not_make_a_batch(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """flush() waits for acceptance only; the thresholds alone decide about batches."""
    serving(server.url, namespace, max_age=AGE, max_count=COUNT)
    with redis.Redis.from_url(server.url) as client:
        # Its first heartbeat sets the thresholds.
        eventually(lambda: client.hget(keys.meta, "max_count"))
    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace) as producer,
    ):
        for number in range(3):
            producer.set("key", number)
            producer.flush(10)
        eventually(lambda: channel.batches)
        (batch,) = channel.batches
        assert (batch.deltas, len(batch.chunks)) == (3, 3)
        assert by_age(batch), waited(batch)


def test_one_node_at_its_count_takes_others_along(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """A batch by count holds everything accepted before, in order across nodes."""
    serving(server.url, namespace, max_age=30, max_count=COUNT)
    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace, node="quiet") as quiet,
        Producer(server.url, namespace=namespace, node="busy") as busy,
    ):
        quiet.set("key", "first")
        quiet.flush(10)
        busy.set_many({f"k{number}": number for number in range(COUNT)})
        busy.flush(10)
        eventually(lambda: channel.batches)
        (batch,) = channel.batches
        assert (batch.deltas, batch.trigger, len(batch.chunks)) == (COUNT + 1, TRIGGER_COUNT, 2)


def test_nodes_below_their_counts_do_not_add_up(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """The count threshold is per node: few deltas of each of many nodes wait for the age."""
    serving(server.url, namespace, max_age=AGE, max_count=COUNT)
    producers = [
        Producer(server.url, namespace=namespace, node=f"n{number}") for number in range(4)
    ]
    try:
        with Channel(server.url, keys) as channel:
            for producer in producers:
                producer.set_many({f"k{number}": number for number in range(COUNT - 1)})
                producer.flush(10)
            eventually(lambda: channel.batches)
            assert channel.batches[0].trigger == TRIGGER_AGE
            eventually(lambda: sum(batch.deltas for batch in channel.batches) == 4 * (COUNT - 1))
    finally:
        for producer in producers:
            producer.close()


def test_a_producer_may_be_more_hasty_than_the_namespace(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """A producer's own maximum age holds for its deltas, whatever other producers set."""
    serving(server.url, namespace, max_age=30, heartbeat=1.0)
    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace, node="patient") as patient,
        Producer(server.url, namespace=namespace, node="hasty", local_delta_max_age=0.05) as hasty,
    ):
        patient.set("key", 1)
        patient.flush(10)
        hasty.set("key", 2)
        hasty.flush(10)
        eventually(lambda: channel.batches)
        (batch,) = channel.batches
        assert (batch.deltas, batch.trigger) == (2, TRIGGER_AGE)
        assert waited(batch) < 0.05 + LATE


def test_new_thresholds_of_the_workers_reach_running_producers(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys
) -> None:
    """A new maximum age of restarted workers applies to running producers."""
    first = serving(server.url, namespace, max_age=30, max_count=100_000)
    with (
        Channel(server.url, keys) as channel,
        Producer(server.url, namespace=namespace) as producer,
    ):
        eventually(lambda: channel.seen)
        first.stop()
        serving(server.url, namespace, max_age=0.05)
        eventually(lambda: len(channel.seen) >= 2)
        producer.set("key", 1)
        producer.flush(10)
        eventually(lambda: channel.batches)
        assert waited(channel.batches[0]) < 0.05 + LATE
