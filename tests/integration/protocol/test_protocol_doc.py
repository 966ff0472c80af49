"""A producer and a subscriber written from PROTOCOL.md alone work together with the real ones.

Everybody runs as a user with the rights that the document gives to the role, and no others.
"""

from __future__ import annotations

import ast
import asyncio
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import msgpack
import numpy as np
import pytest
import redis
import zstandard

from broker import Inspector, Producer, Replica, aio
from broker.backend.acl import rules
from broker.engine import dictionaries
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.check_sums import checked, with_check
from tests.integration import independent_client as foreign
from tests.integration import independent_tables as foreigntables
from tests.integration.independent_client import (
    DELETE,
    INCREMENT,
    PASSWORD,
    SECONDS,
    SET,
    Reader,
    Unsent,
    Writer,
    prefix_of,
)
from workers import dictionaries as training
from workers.dictionaries import DictionaryKeeper
from workers.flush import FlushWorker
from workers.serve import connected
from workers.snapshot import SnapshotWorker


def test_the_two_know_nothing_of_the_package() -> None:
    """Writer and Reader are in modules that import nothing of the package, and no numpy."""
    imported: set[str] = set()
    for module in (foreign, foreigntables):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    assert {"msgpack", "redis", foreigntables.__name__} <= imported
    others = {name.split(".")[0] for name in imported - {foreigntables.__name__}}
    assert not others & {"broker", "workers", "tests", "numpy"}


# -- the real ones --------------------------------------------------------------------------------


class Setup:
    """A namespace with real workers, and users with the rights of the document's roles."""

    def __init__(self, server: Server, namespace: str, shards: int) -> None:
        self.server, self.namespace, self.count = server, namespace, shards
        self.stack = ExitStack()
        self.admin: Any = self.stack.enter_context(self.client())
        self.users: dict[str, str] = {}
        for role in ("producer", "flusher", "scheduler", "subscriber"):
            self.users[role] = user = f"{namespace}-{role}"
            self.admin.execute_command(
                *("ACL", "SETUSER", user, "reset", "on", f">{PASSWORD}"),
                *rules([role], namespace, shards=shards),
            )
        self.stack.callback(self.admin.execute_command, "ACL", "DELUSER", *self.users.values())
        self.loop = asyncio.new_event_loop()
        self.stop: asyncio.Event
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.work(),))
        self.ready = threading.Event()
        self.failure: BaseException | None = None

    def name_of(self, name: str, shard: int) -> str:
        """A key's name."""
        if name == "config":
            return f"sb:{{{self.namespace}}}:config"
        return prefix_of(self.namespace, shard, self.count) + name

    def client(self, role: str | None = None) -> Any:
        """A client of the role, or of the owner of the server."""
        user = None if role is None else self.users[role]
        return redis.Redis(
            unix_socket_path=str(self.server.socket),
            protocol=2,
            username=user,
            password=PASSWORD if user else None,
        )

    def url(self, role: str) -> str:
        """What the real ones connect with."""
        return f"unix://{self.users[role]}:{PASSWORD}@{self.server.socket}"

    def __enter__(self) -> Self:
        self.thread.start()
        assert self.ready.wait(SECONDS)
        assert self.failure is None, self.failure
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.failure is None:
            self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()
        self.loop.close()
        self.stack.close()

    async def work(self) -> None:
        """Flush until stopped."""
        self.stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            try:
                sessions = []
                for role in ("flusher", "scheduler"):
                    sessions.append(await connected(self.url(role), self.namespace, self.count))
                    stack.push_async_callback(sessions[-1].close)
            except BaseException as error:
                self.failure = error
                raise
            finally:
                self.ready.set()
            self.schedulers = [
                SnapshotWorker(
                    *(sessions[1], shard, "s1"), lease_ttl=9, log_retention=0, log_limit=1 << 30
                )
                for shard in range(self.count)
            ]
            worker = FlushWorker(sessions[0], "w1", heartbeat_interval=0.1, max_age=0.02)
            await worker.run(self.stop)
            for scheduler in self.schedulers:
                await scheduler.release()

    def snapshot(self) -> None:
        """Bring the full state up to the head, and cut the log up to the snapshot before."""
        for scheduler in self.schedulers:
            asyncio.run_coroutine_threadsafe(scheduler.write_once(), self.loop).result(SECONDS)

    def train(self) -> None:
        """Let the schedulers, which hold all leases, train a dictionary and spread it."""
        self.snapshot()
        session = self.schedulers[0]._session
        keeper = DictionaryKeeper(session, "s1", lambda shard: self.schedulers[shard].fence)
        assert session.frames is not None
        looking = keeper.look(session.frames)
        asyncio.run_coroutine_threadsafe(looking, self.loop).result(SECONDS)

    def writer(self, node: str) -> Writer:
        """A producer written from the document."""
        client = self.stack.enter_context(self.client("producer"))
        return Writer(client, self.namespace, node, self.count)

    def reader(self, bound: float = 3.0) -> Reader:
        """A subscriber written from the document."""
        client = self.stack.enter_context(self.client("subscriber"))
        user = self.users["subscriber"]
        reader = Reader(client, self.server.socket, user, self.namespace, bound)
        self.stack.callback(reader.close)
        return reader

    def producer(self, node: str) -> Producer:
        """A real producer."""
        return self.stack.enter_context(
            Producer(self.url("producer"), namespace=self.namespace, node=node)
        )

    def replica(self) -> Replica:
        """A real replica."""
        return self.stack.enter_context(Replica(self.url("subscriber"), namespace=self.namespace))

    def folded(self) -> dict[str, Any]:
        """The state at the head as the real inspector reads it, once nothing is pending."""
        eventually(self.nothing_pends, SECONDS, "all was published")

        async def read() -> dict[str, Any]:
            async with aio.Inspector(self.server.url, namespace=self.namespace) as inspector:
                return await inspector.folded()

        return asyncio.run(read())

    def nothing_pends(self) -> bool:
        """Whether every accepted delta is published, and no wake-up waits."""
        if self.admin.exists(*(self.name_of("ready", shard) for shard in range(self.count))):
            return False
        for shard in range(self.count):
            head = self.admin.hget(self.name_of("intake", shard), ":head") or bytes(56)
            published = self.admin.hget(self.name_of("meta", shard), "published")
            if int.from_bytes(head[16:24]) != int(published or 0):
                return False
        return True

    def all_agree(self, reader: Reader, replica: Replica) -> dict[str, Any]:
        """The common content, once all parts agree."""
        truth = self.folded()
        reader.until(lambda: reader.is_live and reader.values == truth, "the reader has all")
        eventually(
            lambda: replica.status == "live" and dict(replica) == truth,
            SECONDS,
            lambda: f"the replica has all: {replica.status} {replica.stats()}",
        )
        return truth


CreateSetup = Callable[[int], Setup]


@pytest.fixture
def create_setup(server: Server, namespace: str) -> Iterator[CreateSetup]:
    """Give a function that creates the setup of a test, ended with it."""
    with ExitStack() as stack:
        yield lambda shards: stack.enter_context(Setup(server, namespace, shards))


MOMENT = datetime(2001, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "nothing": None,
    "yes": True,
    "least": -(1 << 63),
    "most": (1 << 64) - 1,
    "float": -0.1,
    "infinite": float("inf"),
    "text": "Zürich ✈",
    "bytes": bytes(range(256)),
    "list": [1, [2.5, [None, "x"]], {"a": {"b": []}}],
    "moment": MOMENT,
    "before 1970": datetime(1, 1, 1, tzinfo=UTC),
    "x" * 1024: "long key",
}


@pytest.mark.parametrize("shards", [1, 4])
def test_what_the_writer_writes_the_replica_holds(create_setup: CreateSetup, shards: int) -> None:
    """Every kind of value and delta of a foreign producer arrives."""
    setup = create_setup(shards)
    writer, replica, reader = setup.writer("foreign"), setup.replica(), setup.reader()
    for key, value in VALUES.items():
        writer.put(SET, key, value)
    writer.put(SET, "gone", 1)
    writer.flush()
    writer.put(DELETE, "gone")
    for amount in (1, (1 << 64) - 2, 1, 0.5, -1):
        writer.put(INCREMENT, "sum", amount)
    writer.put(INCREMENT, "text", 1)
    writer.put(INCREMENT, "yes", 1)
    writer.flush()
    expected = VALUES | {"sum": float((1 << 64) - 1) + 0.5 - 1}
    assert setup.all_agree(reader, replica) == expected
    assert replica.stats().deltas_refused == 3
    assert set(writer.answers) == {b"OPEN", b"OK"}
    writer.leave()
    assert not any(
        setup.admin.hexists(setup.name_of("intake", shard), "foreign") for shard in range(shards)
    )


@pytest.mark.parametrize("shards", [1, 4])
def test_what_the_producer_writes_the_reader_holds(create_setup: CreateSetup, shards: int) -> None:
    """Every kind of value and delta of the real producer reaches a foreign subscriber."""
    setup = create_setup(shards)
    producer, replica, reader = setup.producer("real"), setup.replica(), setup.reader()
    producer.set_many(VALUES)
    producer.set("gone", 1)
    producer.delete("gone")
    for amount in (1, -3, 0.5):
        producer.increment("sum", amount)
    producer.increment("moment", 1)
    producer.flush(SECONDS)
    assert setup.all_agree(reader, replica) == VALUES | {"sum": -1.5}
    assert sum(shard.counts["refused"] for shard in reader.shards) == 1


def test_keys_with_a_tag_are_in_the_shard_of_the_tag(create_setup: CreateSetup) -> None:
    """All writers agree where a key is, or it would have two values; also in tables."""
    setup = create_setup(4)
    writer, producer, replica = setup.writer("foreign"), setup.producer("real"), setup.replica()
    keys = [f"{{o{n % 3}}}/{n}" for n in range(12)] + ["{}x", "{a{b}c", "a}{b", "{}{o1}"]
    for key in keys:
        writer.put(INCREMENT, key, 1)
        producer.increment(key, 2)
    writer.put_table(INCREMENT, "t", "str-i64", keys, [1] * len(keys))
    table = producer.table("t", keys=str, values=int)
    table.increment_many(keys, 2)
    writer.flush()
    producer.flush(SECONDS)
    reader = setup.reader()
    assert setup.all_agree(reader, replica) == dict.fromkeys(keys, 3)
    assert [replica[key] for key in keys] == [3] * len(keys)
    shown = replica.table("t", keys=str, values=int)
    assert [shown[key] for key in keys] == [3] * len(keys)
    held = [set(one.shown.values) for one in reader.shards]
    for tag in ("{o0}", "{o1}", "{o2}"):
        assert sum(any(key.startswith(tag) for key in part) for part in held) == 1


# -- tables ---------------------------------------------------------------------------------------

INF, NAN = float("inf"), float("nan")
COLUMNS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "str-f64": (["a", "Zürich", "x" * 1024], [0.5, -0.0, INF], [1, NAN, -INF]),
    "str-i64": (["a", "b", "c"], [1, (1 << 63) - 1, -(1 << 63)], [5, 1, -1]),
    "u64-f64": ([0, 1 << 63, (1 << 64) - 1], [0.1, 1e308, 2.5], [0.2, 1e308, 1]),
    "u64-i64": ([7, 8, (1 << 64) - 1], [1, 2, 3], [1, 1, 1]),
}


def tables_agree(setup: Setup, reader: Reader, replica: Replica) -> dict[str, Any]:
    """The common content of table `t` of each kind, NaN included, once all parts agree."""
    found: dict[str, Any] = {}
    setup.all_agree(reader, replica)
    metas = [setup.admin.hgetall(setup.name_of("meta", shard)) for shard in range(setup.count)]
    heads = [int(meta.get(b"offset", 0)) for meta in metas]
    reader.until(
        lambda: reader.is_live and [one.shown.offset for one in reader.shards] == heads, "the head"
    )
    eventually(lambda: [one.offset for one in replica.positions] == heads, SECONDS)
    for kind in COLUMNS:
        key_type, value_type = str if "str" in kind else int, float if "f64" in kind else int
        copy = replica.table("t", keys=key_type, values=value_type).copy()
        keys = copy.keys if isinstance(copy.keys, list) else copy.keys.tolist()
        columns = zip(keys, copy.values.tolist(), copy.timestamps.tolist(), strict=True)
        shown = {key: (value, stamp) for key, value, stamp in columns}
        assert repr(sorted(reader.table("t", kind).items())) == repr(sorted(shown.items()))
        found[kind] = dict(sorted(shown.items()))
    return found


@pytest.mark.parametrize("shards", [1, 4])
def test_tables_of_a_foreign_writer_are_everybodys(create_setup: CreateSetup, shards: int) -> None:
    """Every kind and operation; from the log and from the full state."""
    setup = create_setup(shards)
    writer, replica, reader = setup.writer("foreign"), setup.replica(), setup.reader()
    for kind, (keys, values, amounts) in COLUMNS.items():
        writer.put_table(SET, "t", kind, [*keys, keys[0]], [*values, values[0]])
        writer.put_table(INCREMENT, "t", kind, keys, amounts, [1, 2, 3])
        writer.put(SET, f"object {kind}", 1)
    writer.flush()
    for kind, (keys, *_) in COLUMNS.items():
        writer.put_table(DELETE, "t", kind, keys[2:])
        writer.put_table(INCREMENT, "t", kind, [*keys[:1] * 3], [1, 1, 1])
    writer.flush()
    first = tables_agree(setup, reader, replica)
    assert first["str-i64"] == {"a": (9, 0), "b": ((1 << 63) - 1, 0)}
    assert first["u64-i64"] == {7: (5, 0), 8: (3, 2)}
    assert sum(one.shown.tables.refused for one in reader.shards) == 2
    assert replica.stats().deltas_refused == 2
    setup.snapshot()
    assert repr(tables_agree(setup, setup.reader(), setup.replica())) == repr(first)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_foreign_reader_holds_the_tables_of_the_producer(
    create_setup: CreateSetup, shards: int
) -> None:
    """More than a block; through full states, cuts of the log, and another process of the name."""
    setup = create_setup(shards)
    replica, reader = setup.replica(), setup.reader()
    record = np.dtype([("key", "<u8"), ("value", "<i8"), ("timestamp", "<i8")])
    for number in range(4):
        producer = setup.producer("real")
        names = [f"k{n}" for n in range(number * 300, number * 300 + 1500)]
        producer.table("t").set_many(names, np.arange(1500.0), number)
        producer.table("t", values=int).increment_many(names[::7], number)
        producer.table("t", keys=int).set_many(np.arange(900) * number, 1.5)
        records = np.array([(n, n * number, number) for n in range(700)], dtype=record)
        producer.table("t", keys=int, values=int).set_records(records)
        producer.table("t").delete_many(names[::11])
        producer.close(SECONDS)
        seen = tables_agree(setup, reader, replica)
        assert len(seen["str-f64"]) > 1300
        if number % 2:
            setup.snapshot()
            assert repr(tables_agree(setup, setup.reader(), setup.replica())) == repr(seen)
            setup.snapshot()


BAD_PARTS: list[list[Any]] = [
    [[SET, "t", "u64-i64", bytes(8), bytes(7), None]],
    [[SET, "t", "u64-f32", bytes(8), bytes(8), None]],
    [[SET, "t", "str-f64", struct.pack("<I", 77), bytes(8), None]],
    [[4, "t", "str-f64", ["far"], 99, None]],
    [[4, "new", "str-f64", ["good"], 0, None], [9, "t", "u64-i64", bytes(8), bytes(8), None]],
    [[4, "new", "str-f64", ["x" * 1025], 0, None]],
]


def test_everybody_skips_the_same_parts_for_tables(create_setup: CreateSetup) -> None:
    """Their chunks' other deltas stand, and what follows is understood."""
    setup = create_setup(1)
    writer, replica, reader = setup.writer("n1"), setup.replica(), setup.reader()
    for parts in BAD_PARTS:
        writer.put_table(INCREMENT, "t", "str-f64", ["a"], [1.0])
        writer.flush()
        writer.pack(0, 2, [[INCREMENT, ["n"], [1], None]], parts)
        writer.flush()
    for late in (False, True):
        if late:
            setup.snapshot()
            replica, reader = setup.replica(), setup.reader()
        found = tables_agree(setup, reader, replica)
        assert found["str-f64"] == {"a": (float(len(BAD_PARTS)), 0)}
        assert (reader.values, replica["n"]) == ({"n": len(BAD_PARTS)}, len(BAD_PARTS))
        if not late:
            skipped = [reader.shards[0].counts["skipped"], replica.stats().chunks_skipped]
            assert skipped == [len(BAD_PARTS)] * 2


def test_a_repeat_is_recognised_and_a_second_process_fences(create_setup: CreateSetup) -> None:
    """Chunks sent twice count once; a writer that lost its name gets an error."""
    setup = create_setup(1)
    writer, replica, reader = setup.writer("n1"), setup.replica(), setup.reader()
    writer.put(INCREMENT, "sum", 5)
    writer.flush()
    writer.append(0, writer.chunks[0][0])
    assert writer.answers == {b"OPEN": 1, b"OK": 1, b"DUPLICATE": 1}
    producer = setup.producer("n1")
    producer.increment("sum", 2)
    producer.flush(SECONDS)
    writer.put(INCREMENT, "sum", 100)
    with pytest.raises(AssertionError, match="FENCED"):
        writer.flush()
    assert setup.all_agree(reader, replica) == {"sum": 7}


def chunk_of(*runs: list[Any], version: int = 3) -> bytes:
    """A chunk of any runs."""
    return with_check(msgpack.packb([version, "n", 1, 1, 0, [*runs]]))


def compressed(frame: bytes) -> bytes:
    """A chunk with these bytes in place of its runs."""
    return with_check(msgpack.packb([3, "n", 1, 1, 0, frame]))


RUNS = msgpack.packb([[[SET, ["bad"], [1], None]]])
BAD_CHUNKS = [
    b"",
    b"garbage",
    checked(b"garbage"),
    chunk_of([SET, ["bad"], [1], None]).replace(b"bad", b"bae"),
    chunk_of([SET, ["bad"], [1], None])[:-5],
    chunk_of([SET, ["bad"], [1], None], [SET, ["bad"], [], None]),
    chunk_of([INCREMENT, ["good"], [True], None]),
    chunk_of([SET, ["bad"], [1], None], version=2),
    chunk_of([SET, ["bad"], [{b"a": 1}], None]),
    chunk_of([SET, ["bad"], [msgpack.ExtType(5, b"")], None]),
    chunk_of([SET, ["bad" * 400], [1], None]),
    compressed(RUNS),
    compressed(zstandard.compress(RUNS) + b"\0"),
    compressed(zstandard.compress(RUNS)[:-1]),
    compressed(zstandard.compress(RUNS[1:])),
    compressed(zstandard.compress(bytes((4 << 20) + 1))),
    # The same says that it holds a byte less than it does, and 2^62 bytes.
    compressed(zstandard.compress(bytes(4 << 20))[:5] + bytes.fromhex("ffff3f00") + bytes(40)),
    compressed(bytes.fromhex("28b52ffde0") + (1 << 62).to_bytes(8, "little") + b"\3\0\x10x"),
    # A bulk chunk: it begins like another packet, and is none.
    b"\x99" + bytes(70_000),
]


def test_all_readers_skip_the_same_chunks(create_setup: CreateSetup) -> None:
    """Chunks that break a rule change nothing anywhere, and are kept as the document says."""
    setup = create_setup(1)
    writer, replica, reader = setup.writer("n1"), setup.replica(), setup.reader()
    writer.put(SET, "good", 1)
    writer.flush()
    for data in BAD_CHUNKS:
        number = len(writer.chunks[0]) + 1
        writer.chunks[0].append(Unsent(number, 1, writer.chunks[0][-1].total + 1, data))
        writer.put(INCREMENT, "good", 1)
        writer.flush()
    expected = {"good": 1 + len(BAD_CHUNKS)}
    assert setup.all_agree(reader, replica) == expected
    setup.snapshot()
    with Inspector(setup.server.url, namespace=setup.namespace) as inspector:
        assert inspector.state() == expected
    assert replica.stats().chunks_skipped == reader.shards[0].counts["skipped"] == len(BAD_CHUNKS)
    letters = [msgpack.unpackb(one) for one in setup.admin.lrange(setup.name_of("dead", 0), 0, -1)]
    assert [letter[4] for letter in letters] == [data[:16384] for data in BAD_CHUNKS]
    assert all(type(letter[2]) is str for letter in letters)
    assert {letter[3] for letter in letters} == {"n1"}
    latecomer = setup.reader()
    latecomer.until(lambda: latecomer.is_live, "a latecomer loads")
    assert latecomer.values == expected


def test_who_lacks_a_dictionary_reads_it(
    create_setup: CreateSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained by real schedulers, used by both producers, read by all from channel and log."""
    monkeypatch.setattr(training, "MIN_SAMPLE_BYTES", 10_000)
    monkeypatch.setattr(dictionaries, "INTERVAL_S", 0.02)
    setup = create_setup(2)
    producer, writer = setup.producer("real"), setup.writer("foreign")
    replica, reader = setup.replica(), setup.reader()
    reader.until(lambda: reader.is_live, "the reader is live")

    def write(first: int) -> None:
        for n in range(first, first + 250):
            for what in ("state", "line", "stop", "next", "from"):
                producer.set(f"{{vehicle/{n:05d}}}/{what}", "departed")
                writer.put(SET, f"{{tram/{n:05d}}}/{what}", "departed")
            producer.flush()
            writer.flush()

    write(0)
    setup.train()
    writer.learn()
    assert all(writer.dictionaries), "each shard has one"
    lanes = producer._engine._sender.buffer.lanes  # type: ignore[union-attr]
    eventually(lambda: all(lane.writer is not None for lane in lanes))
    write(1000)
    setup.all_agree(reader, replica)
    assert all(shard.dictionaries for shard in reader.shards)
    assert (
        replica.stats().chunks_skipped == sum(one.counts["skipped"] for one in reader.shards) == 0
    )
    latecomer = setup.reader()
    latecomer.until(lambda: latecomer.is_live, "a latecomer loads")
    assert latecomer.values == reader.values
    # The server loses them: the writer is told, and sends the same deltas without. The full state
    # has what needed them before.
    setup.snapshot()
    for shard in range(2):
        setup.admin.delete(setup.name_of("dicts", shard))
        setup.admin.hdel(setup.name_of("intake", shard), ":dicts")
    write(2000)
    assert writer.answers[b"DICT"] > 0
    setup.all_agree(reader, replica)


def test_lost_packets_and_connections_are_made_up_for(create_setup: CreateSetup) -> None:
    """A reader that misses any packets is live only with everything."""
    setup = create_setup(2)
    chance = random.Random(2)
    producer, writer = setup.producer("real"), setup.writer("foreign")
    replica, reader = setup.replica(), setup.reader()
    reader.drop = lambda _data: chance.random() < 0.4

    def seen() -> Counter[str]:
        return sum((shard.counts for shard in reader.shards), Counter[str]())

    for round_ in range(1000):
        # On a busy machine it takes longer until everything has happened.
        if round_ >= 40 and seen().keys() >= {"gap", "next", "lost"}:
            break
        for _ in range(10):
            key, amount = f"k{chance.randrange(30)}", chance.randrange(100)
            match chance.randrange(4):
                case 0:
                    producer.increment(key, amount)
                case 1:
                    producer.delete(key)
                case 2:
                    writer.put(INCREMENT, key, amount)
                case _:
                    writer.put(SET, key, amount)
        writer.flush()
        if round_ % 10 == 5:
            setup.snapshot()
        if round_ % 13 == 7:
            reader.close()
        reader.pump()
    producer.flush(SECONDS)
    reader.drop = lambda _data: False
    setup.all_agree(reader, replica)
    assert seen().keys() >= {"gap", "next", "lost"}


def test_a_latecomer_loads_the_full_state_also_while_it_is_being_written(
    create_setup: CreateSetup,
) -> None:
    """Pages of a snapshot that was never committed do not count twice, nor are they missed."""
    setup = create_setup(1)
    writer, replica, reader = setup.writer("n1"), setup.replica(), setup.reader()

    def publish(*deltas: tuple[int, str, Any]) -> None:
        for delta in deltas:
            writer.put(*delta)
        writer.flush()
        setup.folded()

    publish(*((SET, f"k{n}", n) for n in range(1000)), (SET, "dies", 1), (SET, "lives", 1))
    setup.snapshot()
    publish((INCREMENT, "k1", 10), (DELETE, "dies", None), (INCREMENT, "k2", 10))
    publish((INCREMENT, "k1", 100), (INCREMENT, "dies", 7), (DELETE, "lives", None))
    # As if a scheduler had written half of its pages and died: head 3, snapshot 1.
    state, offset = (
        setup.name_of("state", 0),
        int(setup.admin.hget(setup.name_of("meta", 0), "offset")),
    )
    rest = struct.pack(">QB", offset, 0) + msgpack.packb(111)
    setup.admin.hset(state, "k1", struct.pack(">I", crc32(b"k1" + rest)) + rest)
    setup.admin.hdel(state, "lives")
    truth = setup.all_agree(reader, replica)
    assert (truth["k1"], truth["k2"], truth["dies"], "lives" in truth) == (111, 12, 7, False)
    latecomer, late_replica = setup.reader(), setup.replica()
    assert setup.all_agree(latecomer, late_replica) == truth
    assert latecomer.shards[0].counts["superseded"] == 2
    setup.snapshot()
    with Inspector(setup.server.url, namespace=setup.namespace) as inspector:
        assert inspector.state() == truth


def test_history_that_is_cut_back_is_noticed_and_written_again(create_setup: CreateSetup) -> None:
    """Redis comes back with less: producers send again, subscribers load again, all agree."""
    setup = create_setup(1)
    producer, writer = setup.producer("real"), setup.writer("foreign")
    replica, reader = setup.replica(), setup.reader()
    names = [setup.name_of(n, 0) for n in ("meta", "intake", "queue", "log", "state")]

    def write(number: int) -> None:
        for n in range(5):
            producer.increment(f"real{n}", number)
            writer.put(INCREMENT, f"foreign{n}", number)
            writer.put(SET, f"last{n}", number)
        producer.flush(SECONDS)
        writer.flush()

    write(1)
    setup.folded()
    setup.snapshot()
    write(10)
    setup.all_agree(reader, replica)
    before = [(name, setup.admin.dump(name)) for name in names]
    write(100)
    setup.all_agree(reader, replica)
    pipe = setup.admin.pipeline(transaction=True)
    for name, dumped in before:
        pipe.delete(name)
        if dumped is not None:
            pipe.restore(name, 0, dumped)
    pipe.execute()
    reader.until(lambda: not reader.is_live, "the reader notices")
    writer.probe()
    assert writer.answers[b"OPEN"] == 2
    write(1000)
    eventually(lambda: producer.stats().resent > 0, SECONDS, "the producer sends again")
    truth = setup.all_agree(reader, replica)
    assert truth == {f"{name}{n}": 1111 for name in ("real", "foreign") for n in range(5)} | {
        f"last{n}": 1000 for n in range(5)
    }
    assert writer.lost == 0


def test_a_reader_that_receives_nothing_is_stale(create_setup: CreateSetup) -> None:
    """Stale within the bound when the packets stop, live again with the next that fits."""
    setup = create_setup(1)
    writer, reader = setup.writer("n1"), setup.reader(bound=0.5)
    reader.until(lambda: reader.is_live, "the reader is live")
    reader.drop = lambda _data: True
    reader.until(lambda: reader.shards[0].phase == "stale", "the reader says that it is stale")
    reader.drop = lambda _data: False
    writer.put(SET, "k", 1)
    writer.flush()
    reader.until(lambda: reader.is_live and reader.values == {"k": 1}, "the reader is live again")


def test_packets_that_waited_in_a_queue_prove_little(create_setup: CreateSetup) -> None:
    """A reader that was delayed reads the head before it reports live."""
    setup = create_setup(1)
    reader = setup.reader(bound=0.5)
    reader.until(lambda: reader.is_live, "the reader is live")
    shard, start = reader.shards[0], time.monotonic()
    assert not shard.counts["late"]
    # Heartbeats arrive all the while, and nobody reads them.
    eventually(lambda: time.monotonic() - start > 0.8, message="the reader is held up")
    reader.until(lambda: shard.counts["late"], "the reader takes what waited")
    reader.until(lambda: reader.is_live, "the reader is live again")
    assert shard.counts["caught_up"] == 2


def test_a_wiped_redis_starts_another_epoch(create_setup: CreateSetup) -> None:
    """After a wipe subscribers end with what producers write again, and nothing else."""
    setup = create_setup(1)
    writer, replica, reader = setup.writer("n1"), setup.replica(), setup.reader()
    writer.put(SET, "kept by the writer", 1)
    writer.flush()
    setup.all_agree(reader, replica)
    epoch = reader.shards[0].shown.epoch
    setup.admin.delete(*setup.admin.keys(f"sb:{{{setup.namespace}*"))
    writer.put(SET, "new", 2)
    writer.flush()
    assert writer.answers[b"MISSING"] == 1
    config = setup.name_of("config", 0)
    eventually(lambda: setup.admin.exists(config), SECONDS, "a flush worker makes the namespace")
    truth = setup.all_agree(reader, replica)
    assert truth == {"kept by the writer": 1, "new": 2}
    assert reader.shards[0].shown.epoch != epoch
