"""The iterator over changes: content, order, and how it treats a slow reader."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import aclosing, closing
from itertools import islice
from typing import Any

import pytest
import redis

from broker import ChangesOverflowError, ConfigError, Producer, Replica, TokenError, aio
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing


def test_changes_tell_what_happened_in_order(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """An iterator of changes gives key, value after it, operation and position of each delta."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        producer.set("a", 1)
        producer.increment("a", 2)
        producer.flush(10)
        producer.delete("nothing")
        producer.delete("a")
        replica.wait_for(producer.flush(10), 10)
        reported = [next(changes) for _ in range(3)]
        assert [(one.operation, one.key, one.value) for one in reported] == [
            ("set", "a", 1),
            ("increment", "a", 3),
            ("delete", "a", None),
        ]
        offsets = [one.position.offset for one in reported]
        assert offsets == sorted(offsets)
        assert reported[-1].position == replica.position
        assert not any(one.resync for one in reported)


def test_changes_with_a_prefix_are_those_of_the_prefix(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """changes(prefix) yields its keys' changes, all of them, and nothing else."""
    serving(server.url, namespace, shards=2)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes("flight/")
        for number in range(20):
            producer.set_many({f"flight/{number}": number, f"plane/{number}": number, "flight": 1})
        replica.wait_for(producer.flush(10), 10)
        changes.close()
        assert sorted(change.key for change in changes) == sorted(
            f"flight/{number}" for number in range(20)
        )


def test_what_a_loop_leaves_is_read_by_the_next_one(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A loop may end anywhere; another loop, or `next`, goes on there."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        producer.set_many({str(n): [n] for n in range(1_000)})
        replica.wait_for(producer.flush(10), 10)
        found = []
        for change in changes:
            found.append(change.value)
            if len(found) == 3:
                break
        found.append(next(changes).value)
        first, second = iter(changes), iter(changes)
        found += [next(one).value for one in (first, second, first)]
        changes.close()
        found += [change.value for change in changes]
        assert found == [[n] for n in range(1_000)]
        assert [*first, *second, *changes] == []

    async def reads() -> list[Any]:
        async with (
            aio.Replica(server.url, namespace=namespace) as replica,
            aio.Producer(server.url, namespace=namespace) as producer,
        ):
            await replica.wait_live(10)
            changes = replica.changes()
            await producer.set_many({str(n): [n, n] for n in range(1_000)})
            await replica.wait_for(await producer.flush(10), 10)
            found = []
            async for change in changes:
                found.append(change.value)
                if len(found) == 3:
                    break
            found.append((await anext(changes)).value)
            changes.close()
            return found + [change.value async for change in changes]

    assert asyncio.run(reads()) == [[n, n] for n in range(1_000)]


def test_threads_that_share_a_reader_get_each_change_once(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Each of them in order."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        found: list[list[Any]] = [[] for _ in range(4)]

        def read(mine: list[Any]) -> None:
            for change in changes:
                mine.append(change.value)
                if len(mine) % 7 == 0:
                    mine.extend(one.value for one in islice(changes, 2))

        threads = [threading.Thread(target=read, args=(mine,)) for mine in found]
        for thread in threads:
            thread.start()
        for first in range(0, 20_000, 100):
            producer.set_many({str(n): n for n in range(first, first + 100)})
        replica.wait_for(producer.flush(30), 30)
        changes.close()
        for thread in threads:
            thread.join(30)
        assert sorted(value for mine in found for value in mine) == [*range(20_000)]
        assert all(mine == sorted(mine) for mine in found)


def test_closing_ends_an_iteration_that_waits(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A reader that waits for the next change ends when the iterator or the replica closes."""
    serving(server.url, namespace)
    replica = Replica(server.url, namespace=namespace)
    first, second = replica.changes(), replica.changes()
    ended: list[str] = []

    def read(name: str, changes: Any) -> None:
        for _ in changes:
            pass
        ended.append(name)

    threads = [
        threading.Thread(target=read, args=pair) for pair in (("first", first), ("second", second))
    ]
    for thread in threads:
        thread.start()
    first.close()
    threads[0].join(10)
    assert ended == ["first"]
    replica.close()
    threads[1].join(10)
    assert ended == ["first", "second"]


def test_closing_of_the_standard_library_ends_an_iteration(server: Server, namespace: str) -> None:
    """`contextlib.closing` around the changes of a replica, `aclosing` for asyncio."""
    with (
        Replica(server.url, namespace=namespace) as replica,
        closing(replica.changes()) as changes,
        closing(replica.statuses()),
    ):
        changes.close()
        assert list(changes) == []

    async def reads() -> list[Any]:
        async with (
            aio.Replica(server.url, namespace=namespace) as replica,
            aclosing(replica.changes()) as changes,
            aclosing(replica.statuses()),
        ):
            await changes.aclose()
            return [change async for change in changes]

    assert asyncio.run(reads()) == []


def test_a_slow_reader_of_changes_is_reported_by_its_own_policy(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Behind its limit a reader gets the newest change of each key, or an error, as it chose."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        newest, strict = replica.changes(limit=10), replica.changes(limit=10, overflow="raise")
        for number in range(100):
            producer.set(f"k{number % 5}", number)
        replica.wait_for(producer.flush(10), 10)
        assert replica.stats().changes_conflated >= 90
        newest.close()
        last = {change.key: change.value for change in newest}
        assert last == {f"k{number}": 95 + number for number in range(5)}
        with pytest.raises(ChangesOverflowError, match="10 changes behind"):
            for _ in strict:
                pass


def test_counters_of_changes_do_not_go_back(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """What was conflated for a reader stays counted when that reader closes."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes(limit=1)
        for number in range(20):
            producer.set("key", number)
        replica.wait_for(producer.flush(10), 10)
        before = replica.stats().changes_conflated
        assert before > 0
        changes.close()
        changes_left = list(changes)
        assert [change.value for change in changes_left] == [19]
        assert replica.stats().changes_conflated == before


@pytest.mark.parametrize("timestamps", [False, True])
def test_changes_carry_the_producers_clock(
    server: Server, namespace: str, serving: NewServing, *, timestamps: bool
) -> None:
    """A change has the time of its writing: that of the chunk, or of each delta if requested."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace, timestamps=timestamps, linger=1) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        began = round(time.time() * 1000)
        producer.set("a", 1)
        producer.set_many({"b": 1, "c": 1})
        producer.increment("d")
        producer.delete("a")
        written = round(time.time() * 1000)
        producer.flush(10)
        stamps = [next(changes).timestamp_ms for _ in range(5)]
        assert stamps == sorted(stamps)
        assert began <= stamps[0] <= stamps[-1] <= written + (0 if timestamps else 10_000)
        assert timestamps or len(set(stamps)) == 1


def test_a_dropped_iterator_costs_nothing_any_more(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """`for change in replica.changes(): break` leaves no queue behind, nor does `statuses()`."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        producer.set("a", 0)
        for _ in range(20):
            iterator = replica.changes()
            producer.increment("a")
            for _change in iterator:
                break
            del iterator, _change
        gc.collect()
        replica.wait_for(producer.flush(10), 10)
        producer.increment("a")
        replica.wait_for(producer.flush(10), 10)
        eventually(lambda: not replica._engine._follower.queues)


def test_a_dropped_asyncio_iterator_costs_nothing_any_more(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The same in `async for`."""
    serving(server.url, namespace)

    async def follow_and_drop() -> None:
        async with (
            aio.Producer(server.url, namespace=namespace) as producer,
            aio.Replica(server.url, namespace=namespace) as replica,
        ):
            await replica.wait_live(10)
            for _ in range(20):
                iterator = replica.changes()
                await producer.increment("a")
                async for _change in iterator:
                    break
                del iterator, _change
            gc.collect()
            await producer.increment("a")
            await replica.wait_for(await producer.flush(10), 10)
            assert not replica._engine._follower.queues

    asyncio.run(follow_and_drop())


@pytest.mark.parametrize("token", [None, 5, b"0:00:1", {}])
def test_a_token_of_another_type_is_a_clear_error(
    server: Server, namespace: str, serving: NewServing, token: Any
) -> None:
    """wait_for() raises an error that names the accepted types, at the call."""
    serving(server.url, namespace)
    with (
        Replica(server.url, namespace=namespace) as replica,
        pytest.raises(TokenError, match="give what flush"),
    ):
        replica.wait_for(token, 1)


@pytest.mark.parametrize("face", [Producer, Replica])
def test_a_client_in_the_place_of_a_url_is_a_clear_error(face: Any) -> None:
    """The error names the type and does not show what the client holds."""
    client = redis.Redis(password="secret")
    with pytest.raises(ConfigError, match="url is a Redis; give") as caught:
        face(client)
    assert "secret" not in str(caught.value)
