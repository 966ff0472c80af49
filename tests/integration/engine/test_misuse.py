"""Bad input and misuse raise an error at the call and damage nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from broker import ClosedError, EncodeError, Inspector, Producer, Replica
from broker.core.sent_chunks import Packed
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import (
    EPOCH_BYTES,
    MAX_CHUNK_BYTES,
    MAX_VALUE_BYTES,
    PROTOCOL_VERSION,
)
from broker.protocol.messages import Chunk, Run
from broker.protocol.names import ShardKeys
from broker.protocol.operations import OP_INCREMENT, OP_SET
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.check_sums import checked, with_check
from tests.integration.running_workers import NewServing, joined, write_snapshots

ROOT = Path(__file__).parents[3]
NODE = "mallory"


def nested(depth: int) -> list[Any]:
    """Return lists in lists."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


BAD_VALUES: dict[str, Any] = {
    "object": object(),
    "set": {1},
    "complex": 1j,
    "int too large": 2**64,
    "int too small": -(2**63) - 1,
    "int inside": [2**64],
    "naive datetime": datetime(2013, 1, 1),  # noqa: DTZ001 - the fault
    "map with other keys": {1: 2},
    "map inside": [{"a": {b"b": 1}}],
    "too deep": nested(33),
    "too large": "x" * (MAX_VALUE_BYTES + 1),
    "too large together": ["x" * 1000] * 1100,
    "lone surrogate": "\ud800",
    "function": len,
}

BAD_KEYS: dict[str, Any] = {
    "empty": "",
    "too long": "ü" * 513,
    "bytes": b"key",
    "number": 7,
    "none": None,
    "lone surrogate": "\udfff",
}


def test_what_cannot_be_sent_is_refused_at_the_call(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A bad key, value or amount raises EncodeError at the call; the buffer is unchanged."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        calls: list[tuple[str, Callable[[], object]]] = []
        for name, value in BAD_VALUES.items():
            calls += [
                (name, partial(producer.set, "key", value)),
                (name, partial(producer.set_many, {"good": 1, "key": value})),
            ]
        for name, key in BAD_KEYS.items():
            calls += [
                (name, partial(producer.set, key, 1)),
                (name, partial(producer.delete, key)),
                (name, partial(producer.increment, key)),
                (name, partial(producer.set_many, {"good": 1, key: 1})),
            ]
        amounts: list[Any] = ["1", None, True, 1j, 2**64, [1]]
        calls += [(repr(amount), partial(producer.increment, "key", amount)) for amount in amounts]
        for name, call in calls:
            with pytest.raises(EncodeError) as caught:
                call()
            assert str(caught.value), name
        assert producer.stats().buffered == 0
        assert producer.stats().buffer_bytes == 0
        producer.set("key", nested(32))
        producer.set("ü" * 512, "x" * 1_000_000)
        producer.flush(10)
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_live(10)
        eventually(lambda: len(replica) == 2)
        assert replica["key"] == nested(32)


def test_a_call_too_large_to_be_seen_at_once_is_refused(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """set_many of more than one chunk raises, and buffers nothing."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        lot = {f"k{number}": "x" * 1_000_000 for number in range(MAX_CHUNK_BYTES // 1_000_000 + 1)}
        with pytest.raises(EncodeError, match="split it into"):
            producer.set_many(lot)
        assert producer.stats().buffered == 0
        producer.set_many({})
        assert producer.stats().buffered == 0


def good(number: int) -> bytes:
    """Return a chunk that keeps the rules."""
    return encode_chunk(Chunk(NODE, 1, number, 0, [Run(OP_SET, [f"good{number}"], [number])]))


def bad_chunks() -> dict[str, bytes]:
    """Return chunks that break one rule each, most of them after a valid part."""
    whole = [PROTOCOL_VERSION, NODE, 1, 1, 0, [[OP_SET, ["poison"], [1], None]]]

    def with_runs(*runs: Any) -> bytes:
        return with_check(msgpack.packb([*whole[:5], [whole[5][0], *runs]]))  # type: ignore[index]

    packed: bytes = with_check(msgpack.packb(whole))
    return {
        "nothing": b"",
        "garbage": b"\xc1\xff garbage",
        "garbage with a check sum": checked(b"\xc1\xff garbage"),
        "text": b"hello, world",
        "cut short": packed[:-1],
        "bytes left over": packed + b"\0",
        "another key": packed.replace(b"poison", b"poisom"),
        "other version": with_check(msgpack.packb([9, *whole[1:]])),
        "no node": with_check(msgpack.packb([PROTOCOL_VERSION, 7, *whole[2:]])),
        "second run unknown": with_runs([9, ["poison"], [1], None]),
        "columns differ": with_runs([OP_SET, ["poison", "b"], [1], None]),
        "empty key": with_runs([OP_SET, [""], [1], None]),
        "key too long": with_runs([OP_SET, ["x" * 1025], [1], None]),
        "bad amount": with_runs([OP_INCREMENT, ["poison"], ["1"], None]),
        "extension": with_runs([OP_SET, ["poison"], [msgpack.ExtType(7, b"")], None]),
        "not packed": with_runs([OP_SET, ["poison"], [nested(1)], None]),
        "key not UTF-8": checked(packed[:-5].replace(b"poison", b"\xff\xfeison")),
    }


def append_raw(url: str, namespace: str, chunks: list[bytes], deltas: int) -> None:
    """Append raw bytes as a node, each with a declared number of deltas."""

    async def append() -> None:
        async with joined(url, namespace) as session:
            keys, token = session.keys[0], b"01234567"
            opened = await session.commands.open(
                keys, NODE, None, token, chunk=0, deltas=0, epoch=b"e" * EPOCH_BYTES
            )
            for number, chunk in enumerate(chunks, 1):
                await session.commands.append(
                    keys,
                    NODE,
                    opened.incarnation,
                    token,
                    [Packed(number, deltas, number * deltas, 0.0, 0, chunk)],
                    now=0.0,
                    max_age_ms=None,
                    max_count=None,
                    pending_limit=1 << 30,
                )

    asyncio.run(append())


def test_a_poisoned_chunk_is_skipped_by_all_alike(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A chunk that breaks a rule is skipped whole and counted, by replicas and full state."""
    bad = bad_chunks()
    chunks = [chunk for number, one in enumerate(bad.values()) for chunk in (good(number), one)]
    serving(server.url, namespace)
    with Replica(server.url, namespace=namespace) as live:
        live.wait_live(10)
        append_raw(server.url, namespace, chunks, deltas=1)
        eventually(lambda: len(live) == len(bad))
        expected = {f"good{number}": number for number in range(len(bad))}
        assert dict(live.items()) == expected
        eventually(lambda: live.stats().chunks_skipped == len(bad))
        assert live.stats().deltas_skipped == len(bad)
        assert live.stats().deltas_applied == len(bad)
        with Replica(server.url, namespace=namespace) as from_log:
            from_log.wait_live(10)
            assert from_log.snapshot() == live.snapshot()
        write_snapshots(server.url, namespace)
        with (
            Inspector(server.url, namespace=namespace) as inspector,
            Replica(server.url, namespace=namespace) as late,
        ):
            assert inspector.state() == inspector.folded() == expected
            assert inspector.status().shards[0].dead == len(bad)
            late.wait_live(10)
            assert late.snapshot() == live.snapshot()


def test_poisoned_chunks_are_kept_for_inspection(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """The dead-letter list has each bad chunk's place, reason, node and first bytes."""
    bad = bad_chunks()
    serving(server.url, namespace)
    append_raw(server.url, namespace, list(bad.values()), deltas=1)
    with Inspector(server.url, namespace=namespace) as inspector:
        eventually(lambda: inspector.status().shards[0].pending_deltas == 0)
    write_snapshots(server.url, namespace)
    letters: Any = [
        msgpack.unpackb(one, strict_map_key=False) for one in raw.lrange(keys.dead, 0, -1)
    ]
    assert [data for *_, data in letters] == list(bad.values())
    for name, (offset, index, fault, node, _) in zip(bad, letters, strict=True):
        assert offset >= 1
        assert index >= 0
        assert isinstance(fault, str)
        assert fault, name
        assert node == NODE, f"{name}: who sent it?"


def test_the_dead_letter_list_is_bounded(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, keys: ShardKeys
) -> None:
    """The list keeps the newest bad chunks, truncated, whatever their number and size."""
    serving(server.url, namespace)
    append_raw(server.url, namespace, [b"%d" % number for number in range(1100)], deltas=1)
    append_raw(server.url, namespace, [b"\xc1" * 500_000], deltas=1)
    with Inspector(server.url, namespace=namespace) as inspector:
        eventually(lambda: inspector.status().shards[0].pending_deltas == 0)
        write_snapshots(server.url, namespace)
        assert inspector.status().shards[0].dead == 1101
    letters: Any = raw.lrange(keys.dead, 0, -1)
    assert len(letters) == 1000
    assert len(letters[-1]) < 20_000


def test_use_after_close_is_a_clear_error(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Every call on a closed object raises ClosedError; closing again does nothing."""
    serving(server.url, namespace)
    producer = Producer(server.url, namespace=namespace)
    replica = Replica(server.url, namespace=namespace)
    inspector = Inspector(server.url, namespace=namespace)
    producer.set("key", 1)
    replica.wait_for(producer.flush(10), 10)
    for one in (producer, replica, inspector):
        one.close()
        one.close()
    calls: dict[str, Callable[[], object]] = {
        "set": lambda: producer.set("key", 2),
        "delete": lambda: producer.delete("key"),
        "increment": lambda: producer.increment("key"),
        "set_many": lambda: producer.set_many({"key": 2}),
        "flush": producer.flush,
        "wait_live": replica.wait_live,
        "wait_for": lambda: replica.wait_for("0:0011223344556677:1"),
        "status": inspector.status,
        "get": lambda: inspector.get("key"),
        "state": inspector.state,
        "folded": inspector.folded,
    }
    wrong = {}
    for name, call in calls.items():
        try:
            wrong[name] = repr(call())
        except ClosedError as error:
            assert "closed" in str(error)  # noqa: PT017
        except Exception as error:  # noqa: BLE001 - all of them are told at once
            wrong[name] = repr(error)
    assert wrong == {}


def test_a_closed_replica_stays_readable(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """After close the last content can be read, the status says closed, and changes() ends."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        replica = Replica(server.url, namespace=namespace)
        producer.set("key", 1)
        replica.wait_for(producer.flush(10), 10)
        replica.close()
        assert replica.status == "closed"
        assert dict(replica.items()) == {"key": 1}
        assert replica["key"] == 1
        assert replica.snapshot()[0] == {"key": 1}
        assert replica.stats().status == "closed"
        assert list(replica.changes()) == []


# In the child, each call must end soon, in an error or in a right answer; then the parent goes on.
FORK = """
import json, os, signal, sys, threading
from broker import BrokerError, Inspector, Producer, Replica

url, namespace = sys.argv[1:]
producer = Producer(url, namespace=namespace, node="parent")
replica = Replica(url, namespace=namespace)
inspector = Inspector(url, namespace=namespace)
producer.set("before", 1)
replica.wait_for(producer.flush(10), 10)
changes = replica.changes()
producer.set("buffered", 1)

def told(call):
    done = []
    def run():
        try:
            done.append(repr(call()))
        except BaseException as error:
            done.append(type(error).__name__)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    return done[0] if done else "HANGS"

read, write = os.pipe()
pid = os.fork()
if pid == 0:
    answers = {
        "set": told(lambda: producer.set("key", "child")),
        "delete": told(lambda: producer.delete("key")),
        "increment": told(lambda: producer.increment("key")),
        "set_many": told(lambda: producer.set_many({"key": "child"})),
        "flush": told(lambda: producer.flush(3)),
        "producer.close": told(producer.close),
        "get": told(lambda: replica["before"]),
        "snapshot": told(lambda: replica.snapshot()[0]["before"]),
        "replica.status": told(lambda: str(replica.status)),
        "wait_live": told(lambda: replica.wait_live(3)),
        "next": told(lambda: next(changes)),
        "changes": told(lambda: replica.changes()),
        "replica.close": told(replica.close),
        "inspector.status": told(inspector.status),
        "inspector.close": told(inspector.close),
    }
    with Producer(url, namespace=namespace, node="child") as own:
        own.set("child", 1)
        own.flush(10)
    os.write(write, json.dumps(answers).encode())
    sys.exit(0)
os.close(write)
with os.fdopen(read) as pipe:
    answers = json.loads(pipe.read())
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
producer.set("after", 1)
replica.wait_for(producer.flush(10), 10)
while "child" not in replica:
    next(changes)
print(json.dumps({"child": answers, "status": status, "content": dict(replica.items()),
                  "stats": producer.stats().as_dict()}))
for one in (producer, replica, inspector):
    one.close()
"""

FORK_AIO = """
import asyncio, json, os, sys
from broker.aio import Producer, Replica

url, namespace = sys.argv[1:]

async def main():
    async with Producer(url, namespace=namespace, node="parent") as producer:
        async with Replica(url, namespace=namespace) as replica:
            await producer.set("before", 1)
            await replica.wait_for(await producer.flush(10), 10)
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                answers = {}
                for name, call in {
                    "set": lambda: producer.set("key", "child"),
                    "set_many": lambda: producer.set_many({"key": "child"}),
                    "flush": lambda: producer.flush(3),
                    "wait_live": lambda: replica.wait_live(3),
                }.items():
                    coroutine = call()
                    try:
                        coroutine.send(None)
                        answers[name] = "waits"
                    except StopIteration as end:
                        answers[name] = repr(end.value)
                    except BaseException as error:
                        answers[name] = type(error).__name__
                os.write(write, json.dumps(answers).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                answers = json.loads(pipe.read())
            os.waitpid(pid, 0)
            await producer.set("after", 1)
            await replica.wait_for(await producer.flush(10), 10)
            print(json.dumps({"child": answers, "content": dict(replica.items())}))

asyncio.run(main())
"""


def run_script(script: str, *arguments: str) -> dict[str, Any]:
    """Run a Python program that prints one JSON object."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    reported: dict[str, Any] = json.loads(result.stdout)
    return reported


def test_in_a_forked_child_nothing_hangs(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """In a forked child old objects raise ForkedError, new ones work; the parent is unharmed."""
    serving(server.url, namespace)
    reported = run_script(FORK, server.url, namespace)
    child = reported["child"]
    readable = {"replica.status": "'closed'"}
    closed = dict.fromkeys(("producer.close", "replica.close", "inspector.close"), "None")
    assert child == dict.fromkeys(child, "ForkedError") | readable | closed
    assert reported["status"] == 0
    assert reported["content"] == {"before": 1, "buffered": 1, "after": 1, "child": 1}
    assert reported["stats"]["buffered"] == reported["stats"]["accepted"] == 3
    assert reported["stats"]["retries"] == 0


def test_in_a_forked_child_of_a_loop_nothing_is_swallowed(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The asyncio API raises in a forked child instead of buffering without a sender."""
    serving(server.url, namespace)
    reported = run_script(FORK_AIO, server.url, namespace)
    assert reported["content"] == {"before": 1, "after": 1}
    assert reported["child"] == dict.fromkeys(reported["child"], "ForkedError")
