"""What a reader or a writer does with its values changes nothing for anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker import Producer, Replica
from broker.aio import Producer as AioProducer
from broker.aio import Replica as AioReplica
from broker.testing.server import Server
from tests.integration.running_workers import NewServing

VALUE = {"roles": ["a", {"deep": [1, 2]}], "name": "x"}
# Each way in which a value leaves a replica.
EXITS: dict[str, Callable[[Any], Any]] = {
    "[]": lambda replica: replica["k"],
    "get": lambda replica: replica.get("k"),
    "items": lambda replica: dict(replica.items())["k"],
    "values": lambda replica: next(iter(replica.values())),
    "snapshot": lambda replica: replica.snapshot()[0]["k"],
    "dict": lambda replica: dict(replica)["k"],
    "**": lambda replica: {**replica}["k"],
}


def spoil(value: Any) -> None:
    """Change a value at every level."""
    value["roles"][1]["deep"].append("spoilt")
    value["roles"].append("spoilt")
    value["spoilt"] = True


@pytest.fixture
def followed(
    server: Server, namespace: str, serving: NewServing
) -> Iterator[tuple[Producer, Replica]]:
    """Give a producer, and a replica that shows VALUE under the key "k"."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        producer.set("k", VALUE)
        replica.wait_for(producer.flush(10), 10)
        yield producer, replica


def test_a_reader_cannot_change_the_replica(followed: tuple[Producer, Replica]) -> None:
    """By whatever way it got the value; the content stays that of the history."""
    _, replica = followed
    for name, take in EXITS.items():
        spoil(take(replica))
        assert replica["k"] == VALUE, name
    assert replica.verify().is_equal


def test_readers_of_changes_get_values_of_their_own(followed: tuple[Producer, Replica]) -> None:
    """Neither the replica nor another reader sees what one does with `change.value`."""
    producer, replica = followed
    first, second = replica.changes(), replica.changes()
    producer.set("k", {**VALUE, "name": "y"})
    replica.wait_for(producer.flush(10), 10)
    spoil(next(first).value)
    change = next(second)
    assert change.value == {**VALUE, "name": "y"}
    spoil(change.value)
    assert replica["k"] == {**VALUE, "name": "y"}
    assert replica.verify().is_equal


def test_asyncio_readers_cannot_change_the_replica_either(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The same ways, on the replica's own loop."""
    serving(server.url, namespace)

    async def scenario() -> None:
        async with AioReplica(server.url, namespace=namespace) as replica:
            await replica.wait_live(10)
            changes = replica.changes()
            async with AioProducer(server.url, namespace=namespace) as producer:
                await producer.set("k", VALUE)
                token = await producer.flush(10)
            await replica.wait_for(token, 10)
            spoil((await anext(changes)).value)
            for name, take in EXITS.items():
                spoil(take(replica))
                assert replica["k"] == VALUE, name

    asyncio.run(scenario())


def test_a_writer_may_change_what_it_has_written(
    server: Server, followed: tuple[Producer, Replica]
) -> None:
    """What is sent is what the value was at the call, however long it waits in the buffer."""
    _, replica = followed
    np = pytest.importorskip("numpy")
    with Producer(server.url, namespace=replica.namespace, linger=5) as slow:
        one = {"roles": ["a", {"deep": [1, 2]}], "name": "x"}
        many = {"m1": {"roles": ["a", {"deep": [1, 2]}], "name": "x"}}
        raw = bytearray(b"raw")
        slow.set("w", one)
        slow.set("raw", raw)
        slow.set_many(many)
        numbers, values = np.array([1, 2], dtype=np.uint64), np.array([1.0, 2.0])
        slow.table("t", keys=int).set_many(numbers, values)
        numbers[:], values[:] = 7, 7
        spoil(one)
        spoil(many["m1"])
        raw[:] = b"bad"
        many["m2"] = {}
        replica.wait_for(slow.flush(10), 10)
    assert replica["w"] == replica["m1"] == VALUE
    assert replica["raw"] == b"raw"
    assert "m2" not in replica
    assert dict(replica.table("t", keys=int)) == {1: 1.0, 2: 2.0}


def test_a_reader_cannot_change_a_table(followed: tuple[Producer, Replica]) -> None:
    """Keys are a copy, and arrays of the replica refuse to be written."""
    np = pytest.importorskip("numpy")
    producer, replica = followed
    producer.table("named").set_many(["a", "b"], np.array([1.0, 2.0]))
    producer.table("numbered", keys=int).set_many([1, 2], np.array([1.0, 2.0]))
    replica.wait_for(producer.flush(10), 10)
    for view in replica.tables():
        (part,) = view.parts
        if isinstance(part.keys, list):
            part.keys.append("c")
        else:
            with pytest.raises(ValueError, match="read-only"):
                part.keys[0] = 7
        for array in (part.values, part.present):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 7
        copy = view.copy()
        copy.values[:] = 7
        assert sorted(view.values()) == [1.0, 2.0]
        assert len(view) == 2
