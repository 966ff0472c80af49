"""Bulk chunks in the Lua commands: pushed outside of them, published and logged by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from broker.protocol.codec import decode_packet
from broker.protocol.constants import BULK_BYTES, FACE_BYTES
from broker.protocol.messages import Batch
from tests.integration.lua_shard import EPOCH, HOUR, Shard, chunk

HEAD_BYTES, FRAME_BYTES, STAND_IN_BYTES = 89, 5, 3 + FACE_BYTES + 5
# What a batch adds if something stays pending.
SINCE_BYTES = 23


@pytest.fixture
def shard(shard: Shard) -> Shard:
    """Give a shard with two open nodes."""
    shard.opened("n1", "n2")
    return shard


def bulk(node: str, number: int, size: int = BULK_BYTES) -> bytes:
    """Return a chunk of at least so many bytes."""
    return chunk(node, number, size)


def pending(shard: Shard, node: str = "n1") -> list[bytes]:
    """Return the chunks of a node in the queue."""
    pairs = zip(shard.chunks(), shard.entries(), strict=True)
    return [data for data, entry in pairs if entry.node == node]


# -- append ---------------------------------------------------------------------------------------


def test_a_chunk_that_was_pushed_is_accepted_as_any_other(shard: Shard) -> None:
    """It is stored once, behind the others, and counted with the given size."""
    data = bulk("n1", 2)
    shard.append(1, b"small", deltas=2)
    status, number, *rest = shard.append_pushed(2, data, deltas=7)
    assert [status, *rest] == [b"OK", EPOCH, HOUR, 1000]
    assert number == shard.number("appends")
    assert pending(shard) == [b"small", data]
    assert shard.record() == (5, "tok", 2, 9)
    assert (shard.number("accepted"), shard.number("pending_bytes")) == (9, 5 + len(data))
    assert shard.append(3, b"", deltas=0)[0] == b"OK"
    assert shard.admin.llen(shard.keys.queue) == 6
    assert not shard.admin.exists(shard.keys.stage("n1"))


REFUSED: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "repeated": ({"number": 1}, [b"DUPLICATE"]),
    "a hole": ({"number": 9}, [b"MISSING", 2, 1]),
    "an older incarnation": ({"number": 2, "incarnation": 4}, [b"FENCED", 5]),
    "another token": ({"number": 2, "token": "x"}, [b"FENCED", 5]),
    "a newer incarnation": ({"number": 2, "incarnation": 6}, [b"MISSING", 1, 0]),
    "over the limit": ({"number": 2, "limit": BULK_BYTES}, [b"BUSY", 5]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_chunk_that_is_refused_is_taken_back(shard: Shard, name: str) -> None:
    """Whatever the reason, Redis is as if it had never been pushed."""
    given, answer = REFUSED[name]
    shard.append(1, b"small")
    before = shard.lists()
    for _ in range(2):
        reply = shard.append_pushed(data=bulk("n1", 2), **given)
        assert reply[: len(answer)] == answer
    assert shard.lists() == before
    assert shard.append_pushed(2, bulk("n1", 2))[0] == b"OK"


def test_a_chunk_of_an_unknown_node_is_taken_back(shard: Shard) -> None:
    """No list of it is left."""
    assert shard.append_pushed(1, bulk("n3", 1), "n3") == [b"MISSING", 1, 0]
    assert not shard.admin.exists(shard.keys.stage("n3"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda shard: shard.admin.hset(shard.keys.intake, "n1", "no record"),
        lambda shard: shard.admin.hset(shard.keys.intake, ":head", "no head"),
        lambda shard: shard.admin.set(shard.keys.queue, "no list"),
    ],
    ids=["record", "head", "list"],
)
def test_a_chunk_is_taken_back_where_append_fails(
    shard: Shard, spoil: Callable[[Shard], object]
) -> None:
    """After damage to stored data, repeated sends do not accumulate."""
    shard.append(1, b"small")
    shard.admin.delete(shard.keys.queue)
    spoil(shard)
    for _ in range(3):
        with pytest.raises(ResponseError):
            shard.append_pushed(2, bulk("n1", 2))
    assert not shard.admin.exists(shard.keys.stage("n1"))


# -- drain ----------------------------------------------------------------------------------------


def test_chunks_of_all_sizes_come_out_in_the_order_of_acceptance(shard: Shard) -> None:
    """Across nodes, and whether they came through Lua or not; the log has the same."""
    subscription = shard.subscription
    numbers, sent = {"n1": 0, "n2": 0}, []
    for node, size in zip("1212211", (10, 70_000, 65_536, 20, 90_000, 65_535, 300), strict=True):
        name = f"n{node}"
        numbers[name] += 1
        data = chunk(name, numbers[name], size)
        append = shard.append_pushed if len(data) % 2 else shard.append
        assert append(numbers[name], data, name, waited=HOUR)[0] == b"OK"
        sent.append(data)
    reply = shard.drain()
    batch = subscription.batch()
    assert batch.chunks == sent
    assert subscription.bulk == [data for data in sent if len(data) >= BULK_BYTES]
    fields = shard.admin.xrange(shard.keys.log)[0][1]
    logged = [fields[name] for name in sorted(fields) if name.startswith(b"c")]
    assert logged == subscription.bulk
    whole = decode_packet(fields[b"b"], logged)
    assert isinstance(whole, Batch)
    assert whole.chunks == sent
    size = len(fields[b"b"]) + sum(map(len, logged))
    assert reply[5] == size == int(fields[b"t"])
    assert {shard.number(name) for name in ("logged", "log_bytes", "bytes")} == {size}
    assert shard.number("pending_bytes") == 0
    assert not shard.admin.exists(*map(shard.keys.stage, numbers), shard.keys.queue)


@pytest.mark.parametrize("size", [BULK_BYTES - 1, BULK_BYTES, BULK_BYTES + 1])
def test_the_log_never_outgrows_its_limit_by_a_bulk_chunk(shard: Shard, size: int) -> None:
    """The limit holds to the byte, with everything that is stored with the chunk."""
    data = bytes(size)
    for number in (1, 2):
        shard.append_pushed(number, data, waited=HOUR)
    assert shard.drain(max_chunks=1, log_limit=0)[0] == b"BATCH"
    first = shard.number("log_bytes")
    frame = FRAME_BYTES if size < BULK_BYTES else STAND_IN_BYTES
    batch = HEAD_BYTES + frame + size
    assert first == batch + SINCE_BYTES
    assert shard.drain(log_limit=first + batch - 1) == [b"LOGFULL", first]
    assert shard.drain(log_limit=first + batch)[:2] == [b"BATCH", 2]
    assert shard.number("log_bytes") == first + batch


def test_a_log_that_is_cut_counts_the_bulk_chunks_that_stay(shard: Shard) -> None:
    """Their bytes are part of the entry that is the first then."""
    for number in (1, 2, 3):
        shard.append_pushed(number, bulk("n1", number, BULK_BYTES + number), waited=HOUR)
        shard.drain(batch_id=b"batch--%d" % number)
    left = sum(
        len(value)
        for _, fields in shard.admin.xrange(shard.keys.log)[1:]
        for name, value in fields.items()
        if name[:1] in b"bc"
    )
    shard.take()
    assert shard.begin(2, b"batch--2")[0] == b"OK"
    assert shard.commit(2, b"batch--2", cut=1) == [b"OK", left]
    assert shard.number("log_bytes") == left


def test_a_bulk_chunk_of_a_failed_drain_is_not_taken_by_the_next_batch(
    shard: Shard,
) -> None:
    """The next batch takes its own, which comes right before it."""
    subscription = shard.subscription
    data = bulk("n1", 1)
    shard.append_pushed(1, data, waited=HOUR)
    shard.admin.set(shard.keys.log, "not a stream")
    with pytest.raises(ResponseError):
        shard.drain()
    shard.admin.delete(shard.keys.log)
    shard.append_pushed(2, bulk("n1", 2), waited=HOUR)
    assert shard.drain()[0] == b"BATCH"
    assert subscription.batch().chunks == [data]
    assert subscription.batch().chunks == [data, bulk("n1", 2)]
