"""Dictionaries: trained from the log, spread to all shards, read by whoever lacks one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.backend.stored import dictionaries_in
from broker.engine import dictionaries
from broker.protocol.constants import FIRST_DICTIONARY
from broker.protocol.dictionaries import MAX_DICTIONARIES
from broker.protocol.frames import MAGIC
from broker.protocol.names import ShardKeys, config_key
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.damages import flip_logged
from tests.integration.running_workers import NewServing, joined, snapshot_worker, write_snapshots
from workers import dictionaries as training
from workers.dictionaries import DictionaryKeeper

MIN_CHUNKS = 250  # chunks


def look(server: Server, namespace: str, *, held: Any = lambda _: True) -> None:
    """Let a scheduler that holds the leases look once."""

    async def run() -> None:
        async with joined(server.url, namespace) as session:
            shards = [snapshot_worker(session, n, holder="s1") for n in range(len(session.keys))]
            for one in shards:
                assert await one.renew()
            name = shards[0].holder
            keeper = DictionaryKeeper(session, name, lambda at: shards[at].fence if held(at) else 0)
            assert session.frames is not None
            await keeper.look(session.frames)
            for one in shards:
                await one.release()

    asyncio.run(run())


def write(producer: Producer, count: int = MIN_CHUNKS, first: int = 0) -> dict[str, Any]:
    """Write small chunks, as a fleet does, and return what they set."""
    content: dict[str, Any] = {}
    for n in range(first, first + count):
        vehicle = f"{{vehicle/{n * 7919 % 100_000:05d}}}"
        sets: dict[str, Any] = {f"{vehicle}/{what}": n / 7 for what in ("lat", "lon")}
        sets |= {f"{vehicle}/{what}": "departed" for what in ("state", "line", "stop", "next")}
        producer.set_many(sets)
        producer.flush(10)
        content |= sets
    return content


def numbers(raw: redis.Redis, keys: ShardKeys) -> tuple[int, ...]:
    """The dictionaries of a shard."""
    found = dictionaries_in(raw.hget(keys.intake, ":dicts"))  # type: ignore[arg-type]
    assert {b"%d" % one for one in found} == set(raw.hkeys(keys.dicts))  # type: ignore[arg-type]
    return found


def uses(producer: Producer) -> int:
    """The number of the dictionary that a producer compresses with."""
    sender = producer._engine._sender
    assert sender is not None
    writer = sender.buffer.lanes[0].writer
    return 0 if writer is None else writer.number


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and train with little."""
    monkeypatch.setattr(dictionaries, "INTERVAL_S", 0.02)
    monkeypatch.setattr(training, "MIN_SAMPLE_BYTES", 10_000)
    monkeypatch.setattr(training, "BYTES", 8 << 10)
    monkeypatch.setattr(training, "LOOKS_A_CHECK", 1)


@pytest.fixture
def producer(server: Server, namespace: str, serving: NewServing) -> Iterator[Producer]:
    """Give a producer of a namespace whose log has many small chunks."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace, linger=0) as made:
        yield made


def test_small_chunks_become_smaller_still(
    server: Server, namespace: str, producer: Producer, raw: redis.Redis, keys: ShardKeys
) -> None:
    """As soon as there is one; live and late readers, inspectors and schedulers all read them."""
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_live(10)
        content = write(producer)
        before = producer.stats()
        look(server, namespace)
        (number,) = numbers(raw, keys)
        eventually(lambda: uses(producer) == number)
        content |= write(producer, first=5000)
        after = producer.stats()
        assert (after.bytes - before.bytes) < 0.75 * before.bytes
        assert before.bytes_saved > 0
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == content
        # It read the dictionary while it followed: one batch came late, and nothing is lost.
        assert replica.stats().chunks_skipped == 0
        assert replica.stats().loads == 1
        assert replica.verify().is_equal
        with (
            Replica(server.url, namespace=namespace) as late,
            Inspector(server.url, namespace=namespace) as inspector,
        ):
            late.wait_live(10)
            assert dict(late.items()) == inspector.folded() == content
            write_snapshots(server.url, namespace)
            assert inspector.state() == content
            assert late.verify().is_equal


def test_it_is_not_made_anew_while_it_does(
    server: Server, namespace: str, producer: Producer, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Nor where there is too little, nor by who does not hold the lease of the first shard."""
    look(server, namespace)
    assert numbers(raw, keys) == ()
    write(producer)
    look(server, namespace, held=lambda _: False)
    assert numbers(raw, keys) == ()
    look(server, namespace)
    (number,) = numbers(raw, keys)
    eventually(lambda: uses(producer) == number)
    write(producer, first=9000)
    look(server, namespace)
    assert numbers(raw, keys) == (number,)


def test_a_batch_that_cannot_be_read_stops_no_dictionary(
    server: Server, namespace: str, producer: Producer, raw: redis.Redis, keys: ShardKeys
) -> None:
    """It is left out of the samples, and the others are taken."""
    write(producer)
    flip_logged(keys.log)(raw)
    look(server, namespace)
    assert len(numbers(raw, keys)) == 1


def test_what_only_looks_like_a_frame_is_not_asked_for(
    server: Server, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """A value may hold any bytes; nobody takes a number in them for a lost dictionary."""
    serving(server.url, namespace)
    numbers = range(FIRST_DICTIONARY, FIRST_DICTIONARY + 500)
    heads = [MAGIC + b"\x23" + one.to_bytes(4, "little") + b"\x05" for one in numbers]
    with Producer(server.url, namespace=namespace, compress=0) as producer:
        producer.set("bytes", b"".join(heads))
        producer.flush(10)
    with Replica(server.url, namespace=namespace) as late:
        late.wait_live(10)
        assert late["bytes"] == b"".join(heads)
    assert "dictionary_missing" not in caplog.text


def test_each_shard_gets_the_same(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """From the first shard, by whoever holds its lease; a chunk and its dictionary are together."""
    serving(server.url, namespace, shards=3)
    places = [ShardKeys.of(namespace, n, 3) for n in range(3)]
    with (
        Producer(server.url, namespace=namespace, linger=0) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        content = write(producer, 700)
        look(server, namespace, held=lambda at: at != 2)
        (number,) = numbers(raw, places[0])
        assert [numbers(raw, one) for one in places[1:]] == [(number,), ()]
        look(server, namespace, held=lambda at: at == 2)
        assert [numbers(raw, one) for one in places] == [(number,)] * 3
        lanes = producer._engine._sender.buffer.lanes  # type: ignore[union-attr]
        eventually(lambda: [one.writer is not None for one in lanes] == [True] * 3)
        content |= write(producer, 20, first=8000)
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == content
        assert replica.verify().is_equal


def test_a_producer_goes_on_without_a_dictionary_that_redis_lost(
    server: Server, namespace: str, producer: Producer, raw: redis.Redis, keys: ShardKeys
) -> None:
    """As after a failover: nothing that needs it gets in, nothing is lost, no reader is stopped."""
    content = write(producer)
    look(server, namespace)
    (number,) = numbers(raw, keys)
    eventually(lambda: uses(producer) == number)
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_live(10)
        content |= write(producer, 3, first=5000)
        replica.wait_for(producer.flush(10), 10)
        raw.hdel(keys.intake, ":dicts")
        raw.delete(keys.dicts)
        content |= write(producer, 30, first=6000)
        assert uses(producer) == 0
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == content
        assert producer.stats().lost == 0
        assert replica.stats().chunks_skipped == 0
        assert replica.verify().is_equal
        # The scheduler that has it in memory, or trained another, gives it again.
        look(server, namespace)
        (again,) = numbers(raw, keys)
        eventually(lambda: uses(producer) == again)
        content |= write(producer, 3, first=7000)
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == content


def test_a_damaged_dictionary_is_named_and_stops_nobody(  # noqa: PLR0917 - fixtures
    server: Server,
    namespace: str,
    producer: Producer,
    raw: redis.Redis,
    keys: ShardKeys,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who lacks it leaves out its chunks, by name; whoever knows it goes on."""
    content = write(producer)
    look(server, namespace)
    (number,) = numbers(raw, keys)
    eventually(lambda: uses(producer) == number)
    with Replica(server.url, namespace=namespace) as knows:
        knows.wait_live(10)
        content |= write(producer, 1, first=5000)
        knows.wait_for(producer.flush(10), 10)
        whole = raw.hget(keys.dicts, str(number))
        for damage in (b"garbage", whole[:-1] + b"\0" + whole[-1:]):  # type: ignore[index]
            raw.hset(keys.dicts, str(number), damage)  # type: ignore[arg-type]
            with (
                caplog.at_level(logging.WARNING, "broker"),
                Replica(server.url, namespace=namespace) as lacks,
            ):
                lacks.wait_live(10)
                assert f"dictionary_missing key={keys.dicts} number={number}" in caplog.text
                skipped = lacks.stats().chunks_skipped
                assert skipped >= 1
                more = write(producer, 3, first=6000)
                producer.increment("plain")
                lacks.wait_for(producer.flush(10), 10)
                assert "plain" in lacks
                assert not {*more} & {*lacks}
                assert caplog.text.count("dictionary_missing") == 1
            caplog.clear()
            content |= more
        knows.wait_for(producer.flush(10), 10)
        assert {key: value for key, value in knows.items() if key != "plain"} == content
        # Mended, as by a scheduler that knows it: all is there again.
        raw.hset(keys.dicts, str(number), whole)  # type: ignore[arg-type]
        with Replica(server.url, namespace=namespace) as late:
            late.wait_live(10)
            assert {**late} == {**knows}


def test_a_scheduler_that_finds_it_missing_writes_it_again(
    server: Server, namespace: str, producer: Producer, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Whether it is damaged, gone, or another type; the same number has the same content."""
    write(producer)

    async def run() -> None:
        async with joined(server.url, namespace) as session:
            worker = snapshot_worker(session)
            assert await worker.renew()
            keeper = DictionaryKeeper(session, worker.holder, lambda _: worker.fence)
            frames = session.frames
            assert frames is not None
            await keeper.look(frames)
            (number,) = numbers(raw, keys)
            whole = raw.hget(keys.dicts, str(number))
            for harm in (
                lambda: raw.hset(keys.dicts, str(number), "x"),
                lambda: raw.delete(keys.dicts),
                lambda: (raw.delete(keys.dicts), raw.set(keys.dicts, "x")),
                lambda: raw.hset(keys.intake, ":dicts", "garbage"),
                lambda: raw.hdel(keys.intake, ":dicts"),
            ):
                harm()
                await keeper.look(frames)
                assert numbers(raw, keys) == (number,)
                assert raw.hget(keys.dicts, str(number)) == whole

    asyncio.run(run())


def test_the_oldest_stays_while_the_log_may_need_it(
    server: Server, namespace: str, producer: Producer, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Of eight none is dropped before log and queue are younger than its end."""
    write(producer)
    made = [*range(1_000_000, 1_000_000 + MAX_DICTIONARIES - 1)]

    async def add(number: int) -> bool:
        async with joined(server.url, namespace) as session:
            worker = snapshot_worker(session)
            assert await worker.renew()
            keeper = DictionaryKeeper(session, worker.holder, lambda _: worker.fence)
            is_added = await keeper._add(0, number, b"dictionary")
            await worker.release()
            return is_added

    recent = 2_000_000_000
    for number in (*made[:1], recent, *range(recent + 1, recent + MAX_DICTIONARIES - 1)):
        assert asyncio.run(add(number))
    assert len(numbers(raw, keys)) == MAX_DICTIONARIES
    assert not asyncio.run(add(recent + 50)), "the oldest had no successor until just now"
    assert numbers(raw, keys)[0] == made[0]
    raw.delete(keys.dicts)
    for number in (*made, 1_100_000):
        assert asyncio.run(add(number))
    assert len(numbers(raw, keys)) == MAX_DICTIONARIES
    assert asyncio.run(add(recent))
    assert numbers(raw, keys) == (*made[1:], 1_100_000, recent)


def test_a_namespace_without_the_word_has_none(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """Nobody looks for one, and none is made."""
    raw.hset(config_key(namespace), mapping={"protocol": 3, "shards": 1, "created": 0})
    serving(server.url, namespace, interval=0.2)
    with Producer(server.url, namespace=namespace, linger=0) as producer:
        write(producer)
        assert uses(producer) == 0
    assert not raw.exists(keys.dicts)


def test_a_running_scheduler_trains(  # noqa: PLR0917 - fixtures
    server: Server,
    namespace: str,
    serving: NewServing,
    raw: redis.Redis,
    keys: ShardKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself, beside its other work; dead letters stay none."""
    monkeypatch.setattr(training, "LOOK_S", 0.1)
    serving(server.url, namespace, interval=0.2)
    with (
        Producer(server.url, namespace=namespace, linger=0) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        content = write(producer)
        eventually(lambda: uses(producer) != 0, 20)
        content |= write(producer, 20, first=5000)
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == content
        with Inspector(server.url, namespace=namespace) as inspector:
            eventually(lambda: inspector.state() == content)
    assert [msgpack.unpackb(one) for one in raw.lrange(keys.dead, 0, -1)] == []  # type: ignore[union-attr]
