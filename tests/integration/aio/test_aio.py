"""The asyncio faces, end to end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker import Change, ClosedError, Status, TokenError
from broker.aio import Inspector, Producer, Replica
from broker.testing.server import Server
from tests.integration.running_workers import NewServing, write_snapshots


async def taken(changes: Any, count: int) -> list[Change]:
    """Return the next changes, which must come soon."""
    async with asyncio.timeout(10):
        return [await anext(changes) for _ in range(count)]


def test_every_operation_arrives(server: Server, namespace: str, serving: NewServing) -> None:
    """Set, delete, increment and set_many do on a replica what their names say."""
    serving(server.url, namespace)

    async def scenario() -> None:
        async with (
            Producer(server.url, namespace=namespace) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            await producer.set("a", 1)
            await producer.set("gone", 1)
            await producer.delete("gone")
            await producer.increment("a", 1.5)
            await producer.set_many({"x": b"1", "y": [None]})
            await replica.wait_for(await producer.flush(10), 10)
            assert dict(replica) == {"a": 2.5, "x": b"1", "y": [None]}
            assert replica.status is Status.LIVE
            assert replica.lag < 10
            await asyncio.to_thread(write_snapshots, server.url, namespace)
            async with Inspector(server.url, namespace=namespace) as inspector:
                assert await inspector.state() == await inspector.folded() == dict(replica)
                assert await inspector.get("a") == (True, 2.5)
                assert await inspector.get("gone") == (False, None)

    asyncio.run(scenario())


def test_a_call_is_never_seen_by_half(server: Server, namespace: str, serving: NewServing) -> None:
    """At every turn of the loop all keys that one set_many wrote belong to the same call."""
    serving(server.url, namespace, max_age=0.001, max_count=7)
    width, calls = 20, 300

    async def write(producer: Producer) -> None:
        for number in range(calls):
            await producer.set_many({f"k{n}": number for n in range(width)})
            if number % 3 == 0:
                await producer.flush(10)

    async def scenario() -> None:
        async with (
            Producer(server.url, namespace=namespace) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            await replica.wait_live(10)
            changes = replica.changes()
            writing = asyncio.create_task(write(producer))
            seen = set()
            while not writing.done():
                numbers = set(replica.values())
                assert len(numbers) <= 1, dict(replica)
                assert len(replica) in (0, width)
                seen |= numbers
                await asyncio.sleep(0)
            await writing
            assert len(seen) > 5, "the writing was not observed under way"
            reported = await taken(changes, width * calls)
            by_call: dict[Any, set[Any]] = {}
            for change in reported:
                by_call.setdefault(change.value, set()).add(change.position)
            assert [len(positions) for positions in by_call.values()] == [1] * calls

    asyncio.run(scenario())


def test_changes_of_a_prefix_until_closed(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """changes(prefix) yields its keys' changes in order, and ends when it or the replica closes."""
    serving(server.url, namespace)

    async def scenario() -> None:
        async with (
            Producer(server.url, namespace=namespace) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            await replica.wait_live(10)
            mine, every = replica.changes("a/"), replica.changes()
            for number in range(10):
                await producer.set_many({"a/1": number, "b/1": number})
            await replica.wait_for(await producer.flush(10), 10)
            reported = await taken(mine, 10)
            assert [(one.key, one.value) for one in reported] == [("a/1", n) for n in range(10)]
            waiting = asyncio.create_task(anext(mine, None))
            mine.close()
            async with asyncio.timeout(10):
                assert await waiting is None
            await replica.close()
            async with asyncio.timeout(10):
                assert len([change async for change in every]) == 20

    asyncio.run(scenario())


def test_a_token_goes_between_processes_as_text(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """wait_for takes a token's text, and refuses what is none or names a shard too many."""
    serving(server.url, namespace, shards=2)

    async def scenario() -> None:
        async with (
            Producer(server.url, namespace=namespace) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            for number in range(20):
                await producer.set(f"k{number}", number)
                await replica.wait_for(str(await producer.flush(10)), 10)
                assert replica[f"k{number}"] == number
            await replica.wait_for("", 10)
            with pytest.raises(TokenError, match="not a token"):
                await replica.wait_for("yesterday")
            with pytest.raises(TokenError, match="names shard 7"):
                await replica.wait_for("7:0011223344556677:1", 10)
            with pytest.raises(TimeoutError, match="does not show the token"):
                await replica.wait_for("0:0011223344556677:1", 0.05)

    asyncio.run(scenario())


def test_after_close(server: Server, namespace: str, serving: NewServing) -> None:
    """A closed producer or replica says so at once; closing again does nothing."""
    serving(server.url, namespace)

    async def scenario() -> None:
        async with (
            Producer(server.url, namespace=namespace) as producer,
            Replica(server.url, namespace=namespace) as replica,
        ):
            await producer.set("key", 1)
            await replica.wait_for(await producer.flush(10), 10)
        await producer.close()
        await replica.close()
        for call in (
            producer.set("key", 2),
            producer.delete("key"),
            producer.increment("key"),
            producer.set_many({"key": 2}),
            producer.flush(),
            replica.wait_live(),
            replica.wait_for("0:0011223344556677:1"),
        ):
            with pytest.raises(ClosedError):
                await call
        assert replica.status is Status.CLOSED
        assert dict(replica) == {"key": 1}
        assert [change async for change in replica.changes()] == []

    asyncio.run(scenario())


def test_an_unopened_producer_says_what_to_do(server: Server, namespace: str) -> None:
    """Using a producer before open() is a clear error."""

    async def scenario() -> None:
        with pytest.raises(ClosedError, match=r"call open\(\)"):
            await Producer(server.url, namespace=namespace).set("key", 1)

    asyncio.run(scenario())


def test_many_faces_in_one_loop(server: Server, namespace: str, serving: NewServing) -> None:
    """Ten producers and ten replicas in one event loop agree in the end, increments exact."""
    serving(server.url, namespace, shards=2)

    async def write(producer: Producer, name: int) -> str:
        for number in range(200):
            await producer.increment("all")
            await producer.set(f"of{name}", number)
        return str(await producer.flush(10))

    async def scenario() -> None:
        producers = [Producer(server.url, namespace=namespace) for _ in range(10)]
        replicas = [Replica(server.url, namespace=namespace) for _ in range(10)]
        faces: list[Producer | Replica] = [*producers, *replicas]
        await asyncio.gather(*(one.open() for one in faces))
        try:
            tokens = await asyncio.gather(
                *(write(producer, name) for name, producer in enumerate(producers))
            )
            await asyncio.gather(*(r.wait_for(token, 10) for r in replicas for token in tokens))
            expected = {f"of{name}": 199 for name in range(10)} | {"all": 2000}
            assert [dict(replica) for replica in replicas] == [expected] * 10
            assert len({replica.positions for replica in replicas}) == 1
        finally:
            await asyncio.gather(*(one.close() for one in faces))

    asyncio.run(scenario())
