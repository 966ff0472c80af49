"""The public API as users write it: checked by mypy --strict, never run.

`assert_type` fixes what callers may rely on; a `type: ignore[code]` is a mistake that must be found
(mypy warns about one that is not needed).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, ItemsView, Iterator, Mapping, Sequence, ValuesView
from datetime import UTC, datetime
from typing import Any, Literal, assert_type

import numpy as np
import numpy.typing as npt

import broker
from broker import (
    BrokerError,
    BufferFullError,
    Change,
    ChangesOverflowError,
    ClosedError,
    ConfigError,
    DataLostError,
    EncodeError,
    FencedError,
    FlushTimeoutError,
    ForkedError,
    Health,
    Inspector,
    NamespaceStatus,
    Position,
    Producer,
    ProducerStats,
    Replica,
    ReplicaStats,
    Status,
    StatusChange,
    Token,
    TokenError,
    aio,
)
from broker.core.tables.input import Keys
from broker.engine.table_view import TableCopy, TableOp, TableView
from broker.protocol.messages import Value
from broker.protocol.operations import Operation
from broker.sync.table_writer import TableWriter

JsonLike = dict[str, list[int | None]]


def writes_any_value(producer: Producer) -> None:
    """Every type of value is accepted as it is, nested ones without casts."""
    numbers: list[int] = [1, 2]
    nested: JsonLike = {"a": [1, None]}
    rows: Sequence[Mapping[str, float]] = [{"x": 1.0}]
    producer.set("none", None)
    producer.set("bool", True)
    producer.set("int", -5)
    producer.set("float", 0.5)
    producer.set("str", "text")
    producer.set("bytes", b"\x00")
    producer.set("time", datetime.now(UTC))
    producer.set("list", numbers)
    producer.set("tuple", (1, "two", None))
    producer.set("map", nested)
    producer.set("rows", rows)
    producer.set("deep", {"a": [{"b": (1, 2.5, b"")}], "c": None})
    producer.set_many({"a": 1, "b": 2})
    producer.set_many({"a": 1, "b": "two", "c": [3.0]})
    values: dict[str, Value] = {"a": 1}
    producer.set_many(values)


def refuses_what_cannot_be_sent(producer: Producer) -> None:
    """Wrong keys, values and amounts are found before the program runs."""
    producer.set(1, "key")  # type: ignore[arg-type]
    producer.set("complex", 1j)  # type: ignore[arg-type]
    producer.set("object", object())  # type: ignore[arg-type]
    producer.set("set", {1, 2})  # type: ignore[arg-type]
    producer.set_many([("a", 1)])  # type: ignore[arg-type]
    producer.increment("n", "1")  # type: ignore[arg-type]
    producer.increment(b"n")  # type: ignore[arg-type]
    producer.flush("soon")  # type: ignore[arg-type]
    producer.flush(5, 1)  # type: ignore[call-arg]


def writes(url: str | None) -> None:
    """A producer's life, with every setting."""
    with Producer() as plain:
        assert_type(plain, Producer)
    with Producer(url, namespace="fleet") as producer:
        assert_type(producer.node, str)
        assert_type(producer.namespace, str)
        producer.delete("key")
        producer.increment("n")
        producer.increment("n", -2)
        producer.increment("n", 0.5)
        assert_type(producer.flush(), Token)
        token = producer.flush(timeout=5)
        token = producer.flush(5, redis_replicas=1, fsynced=True)
        text: str = str(token)
        assert_type(Token.parse(text), Token)
        assert_type(token.marks, Mapping[int, tuple[bytes, int]])
        assert_type(producer.stats(), ProducerStats)
    producer.close()
    producer.close(timeout=1.0)
    Producer(
        "redis://localhost:6379/0",
        namespace="fleet",
        node="depot-7",
        shards=4,
        local_delta_max_age=0.05,
        local_delta_max_count=1000,
        linger=0.002,
        chunk_bytes=1 << 18,
        buffer_bytes=1 << 26,
        when_full="conflate",
        full_timeout=30,
        keep_seconds=60.0,
        keep_bytes=1 << 26,
        timestamps=True,
        pending_bytes=1 << 26,
    ).close()


def writes_tables(url: str | None) -> None:
    """A table's keys and values are two types, and columns are whatever numpy takes."""
    with Producer(url) as producer:
        table = producer.table("price")
        assert_type(table, TableWriter)
        keys = table.keys(["AAPL", "MSFT"])
        assert_type(keys, Keys)
        assert_type(len(keys), int)
        table.set_many(keys, np.array([1.0, 2.0]))
        table.set_many(["AAPL"], 1.5, timestamps=7)
        table.increment_many(keys, [1, 2], np.array([3, 4]))
        table.delete_many(keys)
        table.set("AAPL", 2)
        table.increment("AAPL")
        table.increment("AAPL", 0.5, timestamp=5)
        table.delete("AAPL")
        numbers = producer.table("n", keys=int, values=int)
        numbers.set_records(b"")
        numbers.set(7, 1, timestamp=None)
        producer.table(1)  # type: ignore[arg-type]
        producer.table("t", keys=bytes)  # type: ignore[arg-type]
        producer.table("t", values=str)  # type: ignore[arg-type]
        producer.table("t", int)  # type: ignore[call-arg]
        table.set("AAPL", "1")  # type: ignore[arg-type]
        table.set(b"AAPL", 1)  # type: ignore[arg-type]


async def writes_tables_with_await(url: str | None) -> None:
    """The same names."""
    async with aio.Producer(url) as producer:
        table = producer.table("price", keys=int)
        keys = await table.keys(np.arange(5))
        assert_type(keys, Keys)
        await table.set_many(keys, 1.0)
        await table.increment_many(keys, 1.0, 5)
        await table.delete_many(keys)
        await table.set_records(bytearray())
        await table.set(1, 2.0)
        await table.increment(1)
        await table.delete(1)


def reads_tables(url: str | None) -> None:
    """A view is a read-only mapping, and its parts are arrays."""
    with Replica(url) as replica:
        view = replica.table("price", keys=str, values=float)
        assert_type(view, TableView)
        assert_type(view["AAPL"], float | int)
        assert_type(view.timestamp("AAPL"), int)
        assert_type(len(view), int)
        copy = view.copy()
        assert_type(copy, TableCopy)
        assert_type(copy.keys, list[str] | npt.NDArray[np.uint64])
        assert_type(copy.values, npt.NDArray[Any])
        assert_type(copy.timestamps, npt.NDArray[np.int64])
        assert_type(view.read(len), int)
        for part in view.parts:
            assert_type(part, TableOp)
            assert_type(part.values, npt.NDArray[Any])
            assert_type(part.timestamps, npt.NDArray[np.int64] | None)
            assert_type(part.present, npt.NDArray[np.bool_])
            assert_type(part.revision, int)
            assert_type(part.slots(["AAPL"]), npt.NDArray[np.int64])
        view["AAPL"] = 1.0  # type: ignore[index]
        replica.table("t", keys=bytes)  # type: ignore[arg-type]


async def refuses_wrong_settings(url: str | None) -> None:
    """A misspelt setting, a wrong type or an unknown setting is a type error in both APIs."""
    Producer(url, lingre=0.1)  # type: ignore[call-arg]
    Producer(url, linger="2ms")  # type: ignore[arg-type]
    Producer(url, when_full="drop")  # type: ignore[arg-type]
    Producer(url, staleness_bound=3)  # type: ignore[call-arg]
    Replica(url, stalenes_bound=3)  # type: ignore[call-arg]
    Replica(url, staleness_bound="3s")  # type: ignore[arg-type]
    Replica(url, linger=0.1)  # type: ignore[call-arg]
    async with aio.Producer(url, lingre=0.1):  # type: ignore[call-arg]
        pass
    async with aio.Producer(url, timestamps=1):  # type: ignore[arg-type]
        pass
    async with aio.Replica(url, stalenes_bound=3):  # type: ignore[call-arg]
        pass
    # Read from a file, say: checked when it runs.
    settings: dict[str, Any] = {"linger": 0.1}
    Producer(url, **settings).close()
    aio.Producer(url, namespace="fleet", **settings)


def reads(url: str | None, token: Token) -> None:
    """A replica is a read-only mapping that knows what it is worth."""
    with Replica(url, namespace="fleet", shards=4, staleness_bound=3.0) as replica:
        assert_type(replica, Replica)
        mapping: Mapping[str, Any] = replica
        assert_type(len(mapping), int)
        replica.wait_live(5)
        replica.wait_live(timeout=0.5)
        replica.wait_for(token)
        replica.wait_for(str(token), timeout=5.0)
        assert_type(replica.status, Status)
        assert_type(replica.position, Position)
        assert_type(replica.positions, tuple[Position, ...])
        assert_type(replica.lag, float)
        assert_type(replica.namespace, str)
        assert_type(replica.stats(), ReplicaStats)
        assert_type(replica.snapshot(), tuple[dict[str, Any], tuple[Position, ...]])
        assert_type(replica["key"], Any)
        assert_type(replica.get("key"), Any | None)
        assert_type("key" in replica, bool)
        assert_type(len(replica), int)
        assert_type(list(replica), list[str])
        assert_type(replica.items(), ItemsView[str, Any])
        assert_type(replica.values(), ValuesView[Any])
        assert_type(dict(replica), dict[str, Any])
        replica["key"] = 1  # type: ignore[index]
        del replica["key"]  # type: ignore[attr-defined]
        assert_type(replica.position.epoch, bytes)
        assert_type(replica.position.offset, int)
        assert_type(f"{replica.status}", str)
        assert_type(replica.status == "live", bool)
        assert_type(replica.status is Status.LIVE, bool)


def tells(change: Change) -> str:
    """A change says everything about itself; its operation is one of three."""
    assert_type(change.key, str)
    assert_type(change.value, Value)
    assert_type(change.operation, Operation)
    assert_type(change.position, Position)
    assert_type(change.shard, int)
    assert_type(change.timestamp_ms, int)
    assert_type(change.resync, bool)
    change.key = "other"  # type: ignore[misc]
    match change.operation:
        case "set" | "increment":
            return f"{change.key} = {change.value!r}"
        case "delete":
            return change.key


def follows(replica: Replica) -> Iterator[str]:
    """Changes are an iterator of their own, which another thread may close."""
    changes = replica.changes()
    for change in changes:
        assert_type(change, Change)
        yield tells(change)
        changes.close()
    for change in replica.changes("prefix."):
        yield change.key
    policy: Literal["conflate", "raise"] = "raise"
    first = next(replica.changes(prefix="prefix.", limit=10, overflow=policy))
    assert_type(first, Change)
    replica.changes(overflow="drop")  # type: ignore[arg-type]


def follows_status(url: str | None) -> Iterator[str]:
    """The status is followed like changes, or told to a function; health is a value."""
    calls: list[StatusChange] = []
    with Replica(url, namespace="fleet", on_status=calls.append) as replica:
        assert_type(next(replica.statuses()), StatusChange)
        statuses = replica.statuses()
        for change in statuses:
            assert_type(change.before, Status)
            assert_type(change.after, Status)
            assert_type(change.reason, str)
            assert_type(change.shard, int | None)
            assert_type(change.at, float)
            change.reason = "other"  # type: ignore[misc]
            yield change.reason
            statuses.close()
        assert_type(replica.health, Health)
        assert_type(replica.health.ok, bool)
        assert_type(replica.health.reasons, tuple[str, ...])
    Replica(url, on_status=len)  # type: ignore[arg-type]


def inspects(url: str | None) -> None:
    """An inspector tells numbers and contents, and takes part in nothing."""
    with Inspector(url, namespace="fleet") as inspector:
        assert_type(inspector, Inspector)
        assert_type(inspector.status(), NamespaceStatus)
        assert_type(inspector.state(), dict[str, Any])
        assert_type(inspector.folded(), dict[str, Any])
        assert_type(inspector.folded_shard(0, None), tuple[dict[str, Any], Position])
        assert_type(inspector.get("key"), tuple[bool, Any])
    inspector.close()


def accepts_closed(error: ClosedError) -> None:
    """Take an error of an object that is closed."""
    accepts_any(error)


def accepts_timeout(error: TimeoutError) -> None:
    """Take an error as other code knows it."""
    assert_type(error.args, tuple[Any, ...])


def accepts_any(error: BrokerError) -> None:
    """Take any error of ours."""
    assert_type(str(error), str)


def fails(producer: Producer, replica: Replica, token: str) -> None:
    """Every error has one base, and those with something to tell have it as a field."""
    try:
        producer.set("key", 1)
        producer.flush(1)
        replica.wait_for(token, 1)
    except ConfigError as error:
        assert_type(error.faults, tuple[str, ...])
    except DataLostError as error:
        assert_type(error.lost, int)
    except ForkedError as error:
        accepts_closed(error)
    except FlushTimeoutError as error:
        accepts_timeout(error)
    except (FencedError, BufferFullError, EncodeError, TokenError, ChangesOverflowError) as error:
        accepts_any(error)
    except broker.BrokerError:
        raise


async def writes_async(url: str | None) -> Token:
    """The asyncio producer: the same names, awaited."""
    async with aio.Producer(url, namespace="fleet", when_full="raise", node="n") as producer:
        assert_type(producer, aio.Producer)
        await producer.set("key", {"a": [1, 2.5, None]})
        await producer.set_many({"a": 1, "b": None})
        await producer.increment("n")
        await producer.increment("n", 0.5)
        await producer.delete("key")
        await producer.set("complex", 1j)  # type: ignore[arg-type]
        producer.set("key", 1)  # type: ignore[unused-coroutine]
        assert_type(producer.stats(), ProducerStats)
        assert_type(producer.node, str)
        token = await producer.flush(timeout=5)
        token = await producer.flush(5, redis_replicas=1, fsynced=True)
        assert_type(token, Token)
    await producer.close()
    opened = await aio.Producer(url).open()
    assert_type(opened, aio.Producer)
    await opened.close(timeout=1)
    aio.Producer(url, when_full="drop")  # type: ignore[arg-type]
    aio.Producer(url, local_delta_max_aeg=1)  # type: ignore[call-arg]
    return token


async def reads_async(url: str | None, token: Token) -> AsyncIterator[str]:
    """The asyncio replica: reads are plain calls, only waiting is awaited."""
    async with aio.Replica(url, namespace="fleet", staleness_bound=3) as replica:
        assert_type(replica, aio.Replica)
        mapping: Mapping[str, Any] = replica
        await replica.wait_live(timeout=5)
        await replica.wait_for(token)
        await replica.wait_for(str(token), 5)
        assert_type(replica.status, Status)
        assert_type(replica.position, Position)
        assert_type(replica.positions, tuple[Position, ...])
        assert_type(replica.lag, float)
        assert_type(replica.stats(), ReplicaStats)
        assert_type(replica.snapshot(), tuple[dict[str, Any], tuple[Position, ...]])
        assert_type(replica["key"], Any)
        assert_type(dict(replica), dict[str, Any])
        assert_type(len(mapping), int)
        changes = replica.changes("prefix.", limit=10, overflow="raise")
        async for change in changes:
            assert_type(change, Change)
            yield tells(change)
            changes.close()
        assert_type(await anext(replica.changes()), Change)
        assert_type(await anext(replica.statuses()), StatusChange)
        assert_type(replica.health, Health)
    await replica.close()
    aio.Replica(url, on_status=len)  # type: ignore[arg-type]
    opened = await aio.Replica(url, on_status=print).open()
    assert_type(opened, aio.Replica)
    await opened.close()


async def inspects_async(url: str | None) -> None:
    """The asyncio inspector."""
    async with aio.Inspector(url, namespace="fleet") as inspector:
        assert_type(await inspector.status(), NamespaceStatus)
        assert_type(await inspector.state(), dict[str, Any])
        assert_type(await inspector.folded(), dict[str, Any])
        assert_type(await inspector.folded_shard(0, Position()), tuple[dict[str, Any], Position])
        assert_type(await inspector.get("key"), tuple[bool, Any])
    opened = await aio.Inspector(url).open()
    await opened.close()
