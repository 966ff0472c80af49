"""A shard while its slot moves from one node to another."""

from __future__ import annotations

import asyncio
import os

import pytest

from broker import Inspector, Producer
from broker.backend.replies import Drained, DrainLimits, NotDue
from broker.backend.session import Session
from broker.testing.clusters import ask
from broker.testing.waiting import eventually
from tests.conformance.deployments import SHARDS, Clustered, first_slot
from tests.integration.running_workers import joined


async def drained(session: Session) -> Drained | NotDue:
    """Drain the first shard with a worker that knows these nodes."""
    reply = await session.commands.drain(session.keys[0], 0, os.urandom(8), DrainLimits())
    assert isinstance(reply, Drained | NotDue)
    return reply


def test_a_shard_pauses_while_its_slot_is_on_its_way(with_slots: Clustered, namespace: str) -> None:
    """Commands during a move run completely or not at all, and all deltas arrive."""
    cluster, slot = with_slots.cluster, first_slot(namespace)
    source = cluster.owner(slot)
    target = next(node for node in cluster.nodes if cluster.owner(0 if slot else 1) is not node)
    target = next(
        node for node in (cluster.owner(at) for at in (0, 8000, 16000)) if node is not source
    )
    ids = [ask(node, "CLUSTER", "MYID") for node in (source, target)]

    async def scenario(producer: Producer) -> None:
        async with joined(with_slots.way("flusher"), namespace) as session:
            producer.set("c6", 1)
            await asyncio.to_thread(producer.flush, 10)
            assert isinstance(await drained(session), Drained)
            producer.set("c6", 2)
            await asyncio.to_thread(producer.flush, 10)
            ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            # Every list that it empties is gone from here, and could be anywhere.
            reply = await drained(session)
            assert isinstance(reply, Drained)
            assert reply.offset == 2
            producer.set("c6", 3)
            eventually(lambda: producer.stats().retries > 0, 20)
            cluster.move_slot(slot, target)
            await asyncio.to_thread(producer.flush, 20)
            reply = await drained(session)
            assert isinstance(reply, Drained)
            assert (reply.offset, reply.deltas) == (3, 1)

    with (
        Producer(
            with_slots.way("producer"),
            namespace=namespace,
            shards=SHARDS,
            local_delta_max_age=0,
            linger=0,
            keep_seconds=0,
        ) as producer,
        Inspector(with_slots.way("subscriber"), namespace=namespace) as inspector,
    ):
        asyncio.run(scenario(producer))
        assert inspector.folded() == {"c6": 3}
        assert producer.stats().lost == 0
        cluster.move_slot(slot, source)


def test_a_reader_does_not_notice_that_a_slot_moved(with_slots: Clustered, namespace: str) -> None:
    """A redirected command runs on the other node without an error to the caller."""
    cluster, slot = with_slots.cluster, first_slot(namespace)
    source = cluster.owner(slot)
    with (
        with_slots.serve(namespace),
        Producer(with_slots.way("producer"), namespace=namespace) as producer,
        Inspector(with_slots.way("subscriber"), namespace=namespace) as inspector,
    ):
        producer.set("c6", 1)
        producer.flush(10)
        eventually(lambda: inspector.get("c6") == (True, 1), 10)
        for node in [cluster.owner(at) for at in (0, 8000, 16000)]:
            cluster.move_slot(slot, node)
            assert inspector.get("c6") == (True, 1)
        cluster.move_slot(slot, source)
        assert producer.stats().lost == 0


@pytest.mark.parametrize("seed", [0, 5])
def test_any_node_of_a_cluster_leads_to_all_of_it(
    with_slots: Clustered, namespace: str, seed: int
) -> None:
    """The plain URL of one node is enough, even of a replica."""
    url = with_slots.cluster.nodes[seed].url
    assert url.startswith("redis://")
    with (
        with_slots.serve(namespace),
        Producer(with_slots.way("producer", url), namespace=namespace) as producer,
    ):
        producer.set_many({f"k{number}": number for number in range(SHARDS * 4)})
        producer.flush(10)
        with Inspector(with_slots.way("subscriber", url), namespace=namespace) as inspector:
            eventually(lambda: len(inspector.folded()) == SHARDS * 4, 10)
