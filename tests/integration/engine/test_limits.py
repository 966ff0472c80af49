"""At every limit calls block or raise; nothing is lost silently."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import redis

from broker import BufferFullError, FlushTimeoutError, Inspector, Producer, Replica
from broker.backend.replies import DrainLimits
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing
from tests.noise import noise

PENDING_LIMIT = 4096
BUFFER = 8192
LOG_LIMIT = 20_000
VALUE = "x" * 100
SHAPES: list[Any] = [VALUE, VALUE.encode(), {"text": [VALUE]}, datetime(2026, 1, 2, tzinfo=UTC)]


def busy_producer(server: Server, namespace: str, **settings: Any) -> Producer:
    """Return a producer whose shard is at its limit, since no worker runs."""
    producer = Producer(
        server.url,
        namespace=namespace,
        pending_bytes=PENDING_LIMIT,
        buffer_bytes=BUFFER,
        chunk_bytes=1024,
        compress=0,
        **settings,
    )
    for number in range(60):
        # A part of them fits into Redis, the rest into the buffer; the sender may be slow.
        eventually(partial(has_room, producer, f"k{number}"))
    with pytest.raises(FlushTimeoutError, match="stay buffered"):
        producer.flush(0.3)
    return producer


def has_room(producer: Producer, key: str) -> bool:
    """Set a key, if there is room."""
    try:
        producer.set(key, VALUE)
    except BufferFullError:
        return False
    return True


def fill(producer: Producer) -> int:
    """Write until the buffer is full; return the number of sets."""
    taken = 0
    while True:
        try:
            producer.set(f"more{taken}", VALUE)
        except BufferFullError:
            return taken
        taken += 1


def test_without_workers_redis_says_busy_and_nothing_is_lost(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """At the limit of pending bytes appends wait; once a worker runs, everything arrives."""
    with (
        busy_producer(server, namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        stats = producer.stats()
        assert stats.busy > 0
        assert stats.buffered == stats.accepted + stats.pending == 60
        (shard,) = inspector.status().shards
        assert 0 < shard.pending_bytes <= PENDING_LIMIT
        assert shard.accepted == stats.accepted
        serving(server.url, namespace)
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_for(producer.flush(10), 10)
            assert dict(replica.items()) == {f"k{number}": VALUE for number in range(60)}


def test_a_node_that_floods_waits_and_no_other_does(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """It fills its share of the pending bytes, a 16th here; another node's sets are accepted."""
    share = 2 * 262_144
    with (
        Producer(server.url, namespace=namespace, node="flood", pending_bytes=16 * share) as flood,
        Producer(server.url, namespace=namespace, pending_bytes=16 * share) as other,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        for number in range(30):
            flood.set(f"k{number}", noise(number, 100_000))
        eventually(lambda: flood.stats().busy > 0)
        with pytest.raises(FlushTimeoutError, match="are this node's share"):
            flood.flush(0.3)
        (shard,) = inspector.status().shards
        assert share / 2 < shard.pending_bytes <= share
        other.set("a", 1)
        other.flush(5)
        assert other.stats().busy == 0
        # What is over the share is not kept waiting for an age.
        serving(server.url, namespace, max_age=3600)
        flood.flush(10)
        assert inspector.status().shards[0].pending_bytes <= share


def test_a_full_buffer_raises_at_once_if_asked(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """With when_full='raise' a set without room raises, and was not buffered."""
    with busy_producer(server, namespace, when_full="raise") as producer:
        taken = fill(producer)
        assert producer.stats().buffered == 60 + taken
        with pytest.raises(BufferFullError, match="8192 bytes"):
            producer.set_many({f"lot{number}": VALUE for number in range(20)})
        assert producer.stats().buffered == 60 + taken
        serving(server.url, namespace)
        producer.flush(10)
        producer.set("room again", 1)
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_for(producer.flush(10), 10)
            assert len(replica) == 60 + taken + 1


def test_a_full_buffer_blocks_until_the_timeout(server: Server, namespace: str) -> None:
    """With when_full='block' a set waits full_timeout, then raises, and was not buffered."""
    producer = busy_producer(server, namespace, full_timeout=0.3)
    try:
        started = time.monotonic()
        taken = fill(producer)
        assert time.monotonic() - started >= 0.3
        assert producer.stats().buffered == 60 + taken
    finally:
        with pytest.raises(FlushTimeoutError):
            producer.close(0.1)


def test_a_full_buffer_blocks_until_there_is_room(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A blocked set continues once workers make room, and everything arrives in order."""
    with busy_producer(server, namespace) as producer:
        done = threading.Event()

        def write() -> None:
            for number in range(300):
                producer.set("key", number)
                producer.increment("n")
                producer.set(f"k{number}", SHAPES[number % len(SHAPES)])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: producer.stats().buffer_bytes > BUFFER - 300)
        assert not done.is_set()
        serving(server.url, namespace)
        writer.join(10)
        assert done.is_set()
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_for(producer.flush(10), 10)
            assert (replica["key"], replica["n"], len(replica)) == (299, 300, 302)
            # Also those that waited arrive as they were given.
            assert all(replica[f"k{n}"] == SHAPES[n % len(SHAPES)] for n in range(300))


def test_a_full_buffer_keeps_the_newest_if_asked(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """With when_full='conflate' only overwritten sets are dropped and counted."""
    with busy_producer(server, namespace, when_full="conflate", full_timeout=0.3) as producer:
        for number in range(3000):
            producer.set(f"hot{number % 5}", f"{number} {VALUE}")
            if number % 100 == 0:
                producer.increment("n")
        stats = producer.stats()
        assert stats.conflated > 0
        assert stats.buffered == stats.accepted + stats.pending + stats.conflated
        serving(server.url, namespace)
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_for(producer.flush(10), 10)
            assert replica["n"] == 30
            for number in range(2995, 3000):
                assert replica[f"hot{number % 5}"] == f"{number} {VALUE}"
            for number in range(60):
                assert replica[f"k{number}"] == VALUE
            stats = producer.stats()
            assert stats.buffered == stats.accepted + stats.conflated
            assert replica.stats().deltas_applied <= stats.accepted


def test_conflation_cannot_make_room_from_nothing(server: Server, namespace: str) -> None:
    """With when_full='conflate' and only new keys, a set blocks and then raises like 'block'."""
    producer = busy_producer(server, namespace, when_full="conflate", full_timeout=0.2)
    try:
        taken = fill(producer)
        assert producer.stats().conflated == 0
        assert producer.stats().buffered == 60 + taken
    finally:
        with pytest.raises(FlushTimeoutError):
            producer.close(0.1)


def test_an_error_inside_the_with_block_is_not_hidden(server: Server, namespace: str) -> None:
    """If the `with` body raises and closing fails too, the first error stays visible."""
    body = KeyError("the body's own")
    with pytest.raises((KeyError, FlushTimeoutError)) as caught, busy_producer(server, namespace):
        raise body
    shown = "".join(traceback.format_exception(caught.value))
    assert "the body's own" in shown


def test_closing_wakes_who_waits_for_room(server: Server, namespace: str) -> None:
    """A set that waits for room raises when another thread closes the producer."""
    producer = busy_producer(server, namespace, full_timeout=60)
    ended: list[BaseException] = []

    def write() -> None:
        try:
            while True:
                producer.set("key", VALUE)
        except BaseException as error:  # noqa: BLE001 - whatever ends it is what we want to see
            ended.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    eventually(lambda: producer.stats().buffer_bytes > BUFFER - 300)
    with pytest.raises(FlushTimeoutError):
        producer.close(0.2)
    writer.join(5)
    assert not writer.is_alive(), "set() hangs for ever"
    assert len(ended) == 1


def full_log(
    server: Server, namespace: str, serving: NewServing, producer: Producer, total: int
) -> None:
    """Write until the log is full and the producer gets BUSY."""
    serving(server.url, namespace, limits=DrainLimits(batch_bytes=4096, log_bytes=LOG_LIMIT))
    for number in range(total):
        producer.set(f"k{number}", VALUE)
        producer.increment("n")
    with pytest.raises(FlushTimeoutError):
        producer.flush(0.5)


def test_without_a_scheduler_the_log_fills_and_nothing_is_lost(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A full log stops draining and slows producers; a scheduler resolves it."""
    total = 500
    with (
        Producer(
            server.url,
            namespace=namespace,
            pending_bytes=PENDING_LIMIT,
            chunk_bytes=1024,
            compress=0,
        ) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
        Replica(server.url, namespace=namespace) as replica,
    ):
        full_log(server, namespace, serving, producer, total)
        (shard,) = inspector.status().shards
        assert shard.log_bytes <= LOG_LIMIT
        assert shard.pending_bytes <= PENDING_LIMIT
        assert producer.stats().busy > 0
        serving(
            server.url,
            namespace,
            flushers=0,
            interval=0.2,
            log_retention=60,
            log_limit=LOG_LIMIT,
        )
        replica.wait_for(producer.flush(10), 10)
        expected = {f"k{number}": VALUE for number in range(total)} | {"n": total}
        assert dict(replica.items()) == expected
        assert inspector.folded() == expected


def test_a_log_near_its_limit_is_cut_in_time(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """With a scheduler the log stays below its limit under far more writes than it holds."""
    serving(
        server.url,
        namespace,
        limits=DrainLimits(batch_bytes=4096, log_bytes=LOG_LIMIT),
        interval=0.1,
        log_limit=LOG_LIMIT,
    )
    with (
        Producer(
            server.url,
            namespace=namespace,
            pending_bytes=PENDING_LIMIT,
            chunk_bytes=1024,
            compress=0,
        ) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
        Replica(server.url, namespace=namespace) as replica,
    ):
        most = 0
        for number in range(20):
            producer.set_many({f"k{number} {n}": VALUE for n in range(30)})
            producer.increment("n")
            producer.flush(5)
            most = max(most, inspector.status().shards[0].log_bytes)
        replica.wait_for(producer.flush(10), 10)
        assert 0 < most <= LOG_LIMIT
        assert (len(replica), replica["n"]) == (601, 20)
        assert inspector.status().shards[0].bytes_published > 2 * LOG_LIMIT


def test_a_server_out_of_memory_slows_down_and_loses_nothing(
    kind: str, own_server: Callable[..., Server], namespace: str, serving: NewServing
) -> None:
    """At maxmemory appends are refused, not lost, and resume once memory is free."""
    server = own_server(kind=kind)
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        redis.Redis.from_url(server.url) as raw,
    ):
        producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        raw.config_set("maxmemory", 1)
        producer.increment("n")
        with pytest.raises(FlushTimeoutError):
            producer.flush(0.3)
        assert replica.status == "live", "heartbeats need no memory"
        raw.config_set("maxmemory", 0)
        replica.wait_for(producer.flush(10), 10)
        assert replica["n"] == 2


def test_what_is_pending_is_published_without_memory(
    kind: str, own_server: Callable[..., Server], namespace: str, serving: NewServing
) -> None:
    """Draining works at maxmemory, since it frees memory."""
    server = own_server(kind=kind)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        redis.Redis.from_url(server.url) as raw,
    ):
        producer.increment("n")
        token = producer.flush(10)
        workers = serving(server.url, namespace, max_age=30)
        replica.wait_live(10)
        workers.stop()
        raw.config_set("maxmemory", 1)
        try:
            serving(server.url, namespace, max_age=None, max_count=None)
            replica.wait_for(token, 10)
            assert replica["n"] == 1
        finally:
            raw.config_set("maxmemory", 0)
