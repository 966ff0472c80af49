"""One order of changes across nodes, shards and replicas."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from broker import Change, Inspector, Producer, Replica
from broker.protocol.names import shard_of
from broker.sync.iterator import Reader
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing, write_snapshots

NODES = 3
TIMES = 400


def write_all(producers: list[Producer], key: str = "contested") -> None:
    """Let every producer write the same keys, each in its own thread."""

    def write(producer: Producer) -> None:
        for number in range(TIMES):
            producer.set(f"{key}{number % 7}", f"{producer.node} {number}")
            producer.increment("sum", number)
            if number % 50 == 0:
                producer.flush(10)

    threads = [threading.Thread(target=write, args=(producer,)) for producer in producers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def told_by(changes: Reader[Change]) -> list[Change]:
    """Return all changes that were reported until now."""
    changes.close()
    return list(changes)


def test_every_replica_sees_one_order_across_nodes(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """All replicas report the changes of three concurrent nodes in one order."""
    serving(server.url, namespace, max_count=20)
    with ExitStack() as stack:
        producers = [
            stack.enter_context(Producer(server.url, namespace=namespace, node=f"n{number}"))
            for number in range(NODES)
        ]
        replicas = [stack.enter_context(Replica(server.url, namespace=namespace)) for _ in range(3)]
        for replica in replicas:
            replica.wait_live(10)
        readers = [replica.changes() for replica in replicas]
        write_all(producers)
        tokens = [producer.flush(10) for producer in producers]
        for replica in replicas:
            for token in tokens:
                replica.wait_for(token, 10)
        first, *others = (told_by(reader) for reader in readers)
        assert len(first) == NODES * TIMES * 2
        assert others == [first] * 2
        for node in (producer.node for producer in producers):
            of_node = [one.value for one in first if str(one.value).startswith(node)]
            assert of_node == [f"{node} {number}" for number in range(TIMES)]
        assert replicas[0]["sum"] == NODES * sum(range(TIMES))


def test_what_was_accepted_first_is_applied_first(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Writes of nodes that take turns, each after acceptance, are applied in that order."""
    serving(server.url, namespace, max_age=0.05)
    with (
        Producer(server.url, namespace=namespace, node="b") as one,
        Producer(server.url, namespace=namespace, node="a") as two,
        Producer(server.url, namespace=namespace, node="c") as three,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        turns = [one, two, three] * 60
        for number, producer in enumerate(turns):
            producer.set("key", number)
            token = producer.flush(10)
        replica.wait_for(token, 10)
        reported = told_by(changes)
        assert [change.value for change in reported] == list(range(len(turns)))
        assert len({change.position for change in reported}) < len(turns), (
            "each batch held one chunk"
        )


@pytest.mark.parametrize("shards", [1, 2, 16])
def test_everything_agrees_for_any_number_of_shards(
    server: Server, namespace: str, serving: NewServing, shards: int
) -> None:
    """Replicas, full state, and full state plus log have the same content and positions."""
    serving(server.url, namespace, shards=shards, max_count=50)
    with ExitStack() as stack:
        producers = [
            stack.enter_context(Producer(server.url, namespace=namespace, node=f"n{number}"))
            for number in range(NODES)
        ]
        early = stack.enter_context(Replica(server.url, namespace=namespace))
        inspector = stack.enter_context(Inspector(server.url, namespace=namespace))
        early.wait_live(10)
        changes = early.changes()
        write_all(producers)
        for producer in producers:
            producer.set_many({f"{producer.node}/{number}": number for number in range(200)})
            producer.delete(f"{producer.node}/7")
        tokens = [producer.flush(10) for producer in producers]
        for token in tokens:
            early.wait_for(token, 10)
        middle = stack.enter_context(Replica(server.url, namespace=namespace))
        middle.wait_live(10)
        assert middle.snapshot() == early.snapshot()
        assert inspector.folded() == dict(early.items())
        write_snapshots(server.url, namespace)
        assert inspector.state() == inspector.folded() == dict(early.items())
        late = stack.enter_context(Replica(server.url, namespace=namespace))
        late.wait_live(10)
        assert late.snapshot() == early.snapshot()
        assert len(early.positions) == shards
        assert len(early) == 8 + NODES * 199
        for change in told_by(changes):
            assert change.shard == shard_of(change.key, shards)
        status = inspector.status()
        assert len(status.shards) == shards
        assert sum(one.published for one in status.shards) == NODES * (TIMES * 2 + 201)
        assert sum(one.pending_deltas for one in status.shards) == 0


def test_the_counters_add_up(server: Server, namespace: str, serving: NewServing) -> None:
    """Every buffered delta is accepted, published, and applied or refused by a replica."""
    serving(server.url, namespace, shards=2)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        replica.wait_live(10)
        producer.set("text", "x")
        for number in range(500):
            producer.set(f"k{number % 30}", number)
            producer.increment("n")
        producer.increment("text")
        replica.wait_for(producer.flush(10), 10)
        wrote = producer.stats()
        assert (wrote.buffered, wrote.accepted, wrote.pending) == (1002, 1002, 0)
        shards = inspector.status().shards
        assert sum(one.accepted for one in shards) == 1002
        assert sum(one.published for one in shards) == 1002
        read = replica.stats()
        assert (read.deltas_applied, read.deltas_refused) == (1001, 1)
        assert replica["text"] == "x"
        assert read.batches_applied == sum(one.batches for one in shards)
        (node,) = inspector.status().nodes
        assert (node.node, node.deltas, node.pending_deltas) == (producer.node, 1002, 0)


def test_pending_deltas_are_reported(server: Server, namespace: str, serving: NewServing) -> None:
    """The status shows accepted, unpublished deltas by shard and node."""
    with (
        Producer(server.url, namespace=namespace, node="one") as one,
        Producer(server.url, namespace=namespace, node="two") as two,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        one.set_many({"a": 1, "b": 2})
        one.flush(10)
        two.set("c", 1)
        two.flush(10)
        status = inspector.status()
        (shard,) = status.shards
        assert (shard.accepted, shard.pending_deltas, shard.pending_chunks) == (3, 3, 2)
        assert shard.pending_bytes > 0
        assert [(node.node, node.pending_deltas) for node in status.nodes] == [
            ("one", 2),
            ("two", 1),
        ]
        serving(server.url, namespace)
        eventually(lambda: inspector.status().shards[0].pending_deltas == 0)
        (shard,) = inspector.status().shards
        assert (shard.pending_chunks, shard.pending_bytes) == (0, 0)
        assert [worker.role for worker in inspector.status().workers] == ["flush"]
