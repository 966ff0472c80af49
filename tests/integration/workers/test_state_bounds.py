"""A namespace above a bound of its state takes deletes only, and says so at the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from broker import Producer, StateFullError
from broker.protocol.names import ShardKeys
from broker.protocol.state_bounds import StateBounds
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing, Serving, joined, snapshot_worker

INTERVAL_S = 0.1
VALUE = "x" * 1000
BOUNDS = {
    "max-keys": (StateBounds(keys=10), r"holds 20 keys of at most 10.*--max-keys"),
    "max-state-bytes": (StateBounds(bytes=15_000), r"bytes of at most 15000.*--max-state-bytes"),
}


def raises_full(write: Callable[[], object]) -> str:
    """The text of the error that a write raises, empty if it raises none."""
    try:
        write()
    except StateFullError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bound", BOUNDS)
def test_who_adds_to_a_full_state_is_told_at_the_call(
    server: Server, namespace: str, serving: NewServing, bound: str
) -> None:
    """Whatever writes raises value, bound and setting; deletes pass, and make room again."""
    pytest.importorskip("numpy")
    bounds, says = BOUNDS[bound]
    serving(server.url, namespace, interval=INTERVAL_S, bounds=bounds)
    with Producer(server.url, namespace=namespace) as producer:
        table = producer.table("t", keys=int)
        for number in range(20):
            producer.set(f"k{number}", VALUE)
        producer.flush(5)

        def set_once() -> str:
            producer.delete("nothing")
            return raises_full(lambda: producer.set("k1", VALUE))

        eventually(set_once, 10)
        before = producer.stats().buffered
        writes: list[Callable[[], object]] = [
            lambda: producer.set("k1", 1.5),
            lambda: producer.set("a new one", {"a": 1}),
            lambda: producer.set_many({"k1": 1, "k2": 2}),
            lambda: producer.increment("n"),
            lambda: table.set_many([1], [2.0]),
        ]
        for write in writes:
            with pytest.raises(StateFullError, match=says):
                write()
        assert producer.stats().buffered == before
        table.delete_many([1])
        for number in range(20):
            producer.delete(f"k{number}")
        producer.flush(5)
        eventually(lambda: not raises_full(lambda: producer.set("k1", VALUE)), 10)
        producer.set_many({"k2": 2})
        producer.flush(5)


def test_a_known_key_is_refused_too(server: Server, namespace: str, serving: NewServing) -> None:
    """Plain sets gather without a look at the bounds: not while the state is full."""
    serving(server.url, namespace, interval=INTERVAL_S, bounds=StateBounds(keys=1))
    with Producer(server.url, namespace=namespace, linger=0.001) as producer:
        producer.set_many({"a": 1, "b": 2})
        refused = 0

        def set_often() -> bool:
            nonlocal refused
            accepted = 0
            for _ in range(50):
                try:
                    producer.set("a", 1)
                    accepted += 1
                except StateFullError:
                    refused += 1
            producer.delete("nothing")
            return refused > 0 and accepted == 0

        eventually(set_often, 10)
        # From then on none gets in, whatever gathers beside it.
        before = producer.stats().buffered
        for number in range(50):
            producer.delete(f"none{number}")
            assert raises_full(lambda: producer.set("a", 1))
        assert producer.stats().buffered == before + 50


def test_a_producer_that_only_waits_learns_that_there_is_room(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A scheduler with no bound takes the mark away; nobody has to write anything for it."""
    bounded = Serving(server.url, namespace, interval=INTERVAL_S, bounds=StateBounds(keys=1))
    with Producer(server.url, namespace=namespace) as producer:
        producer.set_many({"a": 1, "b": 2})
        producer.flush(5)
        eventually(lambda: raises_full(lambda: producer.set("a", 1)), 10)
        # Who opens while it is full is told, too.
        with (
            Producer(server.url, namespace=namespace) as other,
            pytest.raises(StateFullError),
        ):
            other.set("a", 1)
        bounded.stop()
        serving(server.url, namespace, interval=INTERVAL_S)
        eventually(lambda: not raises_full(lambda: producer.set("a", 2)), 10)


def test_without_bounds_nothing_is_noted(
    server: Server, namespace: str, serving: NewServing, keys: ShardKeys, raw: redis.Redis
) -> None:
    """No field in meta, and no longer limits."""
    serving(server.url, namespace, interval=INTERVAL_S)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("a", 1)
        producer.flush(5)
        eventually(lambda: raw.hget(keys.meta, "snap_at"))
    found: Any = raw.hget(keys.intake, ":limits")
    assert (raw.hexists(keys.meta, "full"), len(found)) == (False, 8)


def test_a_scheduler_without_bounds_takes_back_what_another_holder_noted(
    server: Server, namespace: str, keys: ShardKeys, raw: redis.Redis
) -> None:
    """Each time that it takes the lease: the one with bounds may be gone for good."""

    async def run() -> None:
        async with joined(server.url, namespace) as session:
            with Producer(server.url, namespace=namespace) as producer:
                producer.set("a", 1)
                await asyncio.to_thread(producer.flush, 5)
            worker = snapshot_worker(session)
            await worker.write_once()
            await worker.compare_with_bounds()
            raw.delete(keys.lease)
            raw.hset(keys.meta, "full", "keys 5 3")
            await worker.compare_with_bounds()
            assert raw.hget(keys.meta, "full") == b"keys 5 3"
            await worker.renew()
            await worker.compare_with_bounds()
            assert raw.hget(keys.meta, "full") == b""
            await worker.release()

    asyncio.run(run())
