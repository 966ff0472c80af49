"""The Lua commands of flush workers, called as their heads say, on a real server."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ResponseError

from broker.protocol.codec import decode_packet, encode_packet
from broker.protocol.constants import TRIGGER_AGE, TRIGGER_COUNT
from broker.protocol.messages import Batch, Heartbeat
from broker.testing.server import Server
from tests.integration.lua_shard import EPOCH, HOUR, Shard, chunk


@pytest.fixture
def shard(server: Server, namespace: str) -> Iterator[Shard]:
    """Give a shard that does not exist yet."""
    made = Shard(server, namespace)
    yield made
    made.close()


# -- drain ----------------------------------------------------------------------------------------


def test_drain_idles_while_nothing_is_due(shard: Shard) -> None:
    """No shard or nothing pending is -1; else the ms until the earliest deadline."""
    assert shard.drain() == [b"IDLE", -1]
    shard.opened()
    assert shard.drain() == [b"IDLE", -1]
    shard.append(1, max_age=2 * HOUR)
    shard.append(2, max_age=HOUR)
    shard.append(3, max_age=3 * HOUR)
    before = shard.lists()
    status, wait = shard.drain()
    assert status == b"IDLE"
    assert HOUR - 10_000 < wait <= HOUR
    assert shard.lists() == before


def test_drain_keeps_the_order_of_acceptance_across_nodes(shard: Shard) -> None:
    """Chunks of many nodes come out as they went in, in whatever order the lists are declared."""
    subscription = shard.subscription
    shard.opened("a", "b", "c")
    numbers = {"a": 0, "b": 0, "c": 0}
    sent, appends = [], []
    for node in "abacbbcaaabcc":
        numbers[node] += 1
        data = chunk(node, numbers[node])
        appends.append(shard.append(numbers[node], data, node, waited=HOUR)[1])
        sent.append(data)
    got: list[bytes] = []
    for order in ("cab", "bca", "abc"):
        status, offset, trigger, deltas, chunks, *_ = shard.drain(*order, max_chunks=5)
        batch = decode_packet(subscription.next())
        assert isinstance(batch, Batch)
        assert (status, offset, trigger) == (b"BATCH", batch.offset, TRIGGER_AGE)
        assert deltas == chunks == len(batch.chunks)
        got += batch.chunks
        assert batch.covered == appends[len(got) - 1]
    assert got == sent
    assert shard.number("accepted") == shard.number("published") == 13
    assert shard.number("pending_bytes") == 0
    assert not any(name.startswith("n:") for name in shard.hashes())
    assert not shard.admin.exists(shard.keys.order, *map(shard.keys.pending, "abc"))


@pytest.mark.parametrize("count", [1, 2, 64, 65, 500])
def test_a_batch_is_joined_byte_for_byte(shard: Shard, count: int) -> None:
    """Any number of chunks of any size, whatever way of joining them is the fastest."""
    subscription = shard.subscription
    shard.opened()
    sent = [chunk("n1", number, number * 37 % 3000) for number in range(1, count + 1)]
    for number, data in enumerate(sent, start=1):
        shard.append(number, data, waited=HOUR)
    assert shard.drain()[4] == count
    packet = subscription.next()
    batch = decode_packet(packet)
    assert isinstance(batch, Batch)
    assert batch.chunks == sent
    assert encode_packet(batch) == packet
    assert shard.admin.xrange(shard.keys.log)[0][1][b"b"] == packet


def test_chunks_without_deltas_leave_no_counters(shard: Shard) -> None:
    """Chunks that only define ids are drained, and what stays behind them keeps its count."""
    shard.opened("n1", "n2", "n3")
    shard.append(1, deltas=0, waited=HOUR)
    shard.append(2, deltas=0, waited=HOUR)
    shard.append(1, node="n3", deltas=0, waited=HOUR)
    shard.append(2, node="n3", deltas=2, waited=HOUR)
    shard.append(1, node="n2", deltas=3, waited=HOUR)
    assert shard.drain("n1", "n2", "n3", max_chunks=1)[3:5] == [0, 1]
    assert (shard.number("n:n2"), shard.number("n:n3")) == (3, 2)
    assert "n:n1" not in shard.hashes()
    assert shard.drain("n1", "n2", "n3", max_chunks=2)[3:5] == [0, 2]
    assert (shard.number("n:n2"), shard.number("n:n3")) == (3, 2)
    assert shard.drain("n1", "n2", "n3")[3:5] == [5, 2]
    assert not any(name.startswith("n:") for name in shard.hashes())


def by_one(*, by_count: bool) -> dict[str, Any]:
    """Thresholds that make five appends of one delta due by one of the two triggers alone."""
    return {"max_count": 5} if by_count else {"waited": HOUR}


def drained(shard: Shard, **limits: Any) -> list[tuple[int, int]]:
    """(Chunks, ms to the next) of each batch until nothing is pending."""
    found = []
    while (reply := shard.drain(**limits))[0] == b"BATCH":
        found.append((reply[4], reply[7]))
    assert reply == [b"IDLE", -1]
    return found


@pytest.mark.parametrize(
    ("limit", "batches"),
    [(1, [1, 1, 1, 1, 1]), (4, [4, 1]), (5, [5]), (6, [5]), (4096, [5])],
)
@pytest.mark.parametrize("by_count", [False, True])
def test_the_limit_of_chunks(
    shard: Shard, limit: int, batches: list[int], *, by_count: bool
) -> None:
    """A batch holds at most so many chunks; the rest is due at once."""
    shard.opened()
    for number in range(1, 6):
        shard.append(number, **by_one(by_count=by_count))
    rest = [0] * (len(batches) - 1) + [-1]
    assert drained(shard, max_chunks=limit) == list(zip(batches, rest, strict=True))
    assert shard.number("by_count" if by_count else "by_age") == len(batches)


@pytest.mark.parametrize(
    ("limit", "batches"),
    [
        (0, [1] * 5),
        (1, [1] * 5),
        (19, [1] * 5),
        (20, [2, 2, 1]),
        (49, [4, 1]),
        (50, [5]),
        (51, [5]),
    ],
)
@pytest.mark.parametrize("by_count", [False, True])
def test_the_limit_of_bytes(
    shard: Shard, limit: int, batches: list[int], *, by_count: bool
) -> None:
    """A batch holds chunks of at most so many bytes, but always one; the rest is due at once."""
    shard.opened()
    for number in range(1, 6):
        shard.append(number, b"x" * 10, **by_one(by_count=by_count))
    rest = [0] * (len(batches) - 1) + [-1]
    assert drained(shard, max_bytes=limit) == list(zip(batches, rest, strict=True))


def test_drain_asks_for_the_lists_that_it_needs(shard: Shard) -> None:
    """NODES names the nodes of the batch and does nothing; only nodes within the limits count."""
    subscription = shard.subscription
    shard.opened("a", "b", "c", "d")
    for number, node in ((1, "a"), (1, "b"), (2, "a"), (1, "c")):
        shard.append(number, node=node, waited=HOUR)
    before = shard.lists()
    assert shard.drain("d") == [b"NODES", b"a", b"b", b"c"]
    assert shard.drain("a", "b") == [b"NODES", b"a", b"b", b"c"]
    assert shard.drain("d", max_chunks=3) == [b"NODES", b"a", b"b"]
    assert shard.lists() == before
    assert subscription.none_came()
    assert shard.drain("a", "b", max_chunks=3)[:5] == [b"BATCH", 1, TRIGGER_AGE, 3, 3]
    assert shard.drain("d", "c")[4] == 1


def test_count_takes_a_prefix_and_age_takes_all(shard: Shard) -> None:
    """A batch by count ends with the append that reached it; later ones wait until they are due."""
    shard.opened("n1", "n2")
    shard.append(1, node="n2")
    shard.append(1, deltas=9, max_count=10)
    shard.append(2, deltas=1, max_count=10)
    shard.append(2, node="n2", max_age=2 * HOUR)
    shard.append(3, deltas=9, max_count=10)
    _, _, trigger, deltas, chunks, _, _, wait, _ = shard.drain("n1", "n2")
    assert (trigger, deltas, chunks) == (TRIGGER_COUNT, 11, 3)
    assert HOUR - 10_000 < wait <= HOUR
    status, wait = shard.drain("n1", "n2")
    assert status == b"IDLE"
    assert HOUR - 10_000 < wait <= HOUR
    shard.append(3, node="n2", waited=HOUR)
    _, _, trigger, deltas, chunks, _, _, wait, _ = shard.drain("n1", "n2")
    assert (trigger, deltas, chunks, wait) == (TRIGGER_AGE, 11, 3, -1)
    assert (shard.number("by_count"), shard.number("by_age")) == (1, 1)


def test_age_is_due_to_the_millisecond(shard: Shard) -> None:
    """Drained once the clock has reached the deadline, and not before."""
    shard.opened()
    shard.append(1, max_age=40)
    due = struct.unpack(">Q", shard.admin.lindex(shard.keys.order, 0)[:8])[0]
    assert due == shard.number("due")
    while (reply := shard.drain())[0] == b"IDLE":
        assert reply[1] > 0
    batch = shard.admin.xrange(shard.keys.log)[0][1][b"b"]
    assert decode_packet(batch).time_ms >= due
    assert reply[6] >= 40


def test_a_clock_that_was_set_back_makes_everything_due(shard: Shard) -> None:
    """After a clock was set back nothing waits for the old time to return."""
    shard.opened()
    shard.append(1)
    assert shard.drain()[0] == b"IDLE"
    shard.put(published_at=shard.now() + HOUR)
    assert shard.drain()[:3] == [b"BATCH", 1, TRIGGER_AGE]
    shard.append(2)
    shard.put(published_at=shard.now() + HOUR)
    assert shard.heartbeat()[1] == 0
    assert shard.drain()[:3] == [b"BATCH", 2, TRIGGER_AGE]
    # The oldest of a batch is the one with the earliest time, wherever it is.
    shard.append(3)
    shard.append(4)
    entry = shard.admin.lindex(shard.keys.order, 0)
    shard.admin.lset(shard.keys.order, 0, struct.pack(">QQ", 1, 1000) + entry[16:])
    shard.append(5, waited=HOUR)
    assert shard.drain()[6] > shard.now() - HOUR


def test_a_clock_that_was_set_back_lets_nothing_wait_longer_than_its_age(shard: Shard) -> None:
    """Chunks that a batch by count leaves are also due within their own age from now."""
    shard.opened("n1", "n2")
    shard.append(1, deltas=1000, max_age=50)
    shard.append(1, node="n2", max_age=50)
    old = shard.now() + HOUR
    for index in (0, 1):
        entry = shard.admin.lindex(shard.keys.order, index)
        shard.admin.lset(shard.keys.order, index, struct.pack(">QQ", old + 50, old) + entry[16:])
    shard.put(due=old + 50, published_at=old)
    reply = shard.drain("n1", "n2")
    assert reply[:3] == [b"BATCH", 1, TRIGGER_COUNT]
    assert reply[7] <= 50


def test_no_chunk_waits_longer_for_being_far_behind(shard: Shard) -> None:
    """A chunk that is overdue is drained at once, however many patient chunks are before it."""
    shard.opened("n1", "n2")
    for number in range(1, 7):
        shard.append(number, node="n1", max_age=HOUR)
    shard.append(1, node="n2", max_age=0)
    assert shard.drain("n1", "n2", max_chunks=2)[7] == 0


def test_a_full_log_stops_draining(shard: Shard) -> None:
    """LOGFULL does nothing; the log may reach its limit; an empty log takes any batch."""
    shard.opened()
    for number in (1, 2):
        shard.append(number, b"x" * 100, waited=HOUR)
    assert shard.drain(max_chunks=1, log_limit=0)[0] == b"BATCH"
    size = shard.number("log_bytes")
    before = shard.lists()
    batch = 89 + 5 + 100
    for limit in (0, 1, size, size + batch - 1):
        assert shard.drain(log_limit=limit) == [b"LOGFULL", size]
    assert shard.lists() == before
    assert shard.drain(log_limit=size + batch)[:2] == [b"BATCH", 2]
    assert shard.number("log_bytes") == size + batch


def test_chunks_that_are_gone_are_counted(shard: Shard) -> None:
    """A trimmed pending list: what is left is published, the rest counted as missing."""
    subscription = shard.subscription
    shard.opened("n1", "n2")
    shard.append(1, b"one", "n1", waited=HOUR)
    shard.append(2, b"two", "n1", waited=HOUR)
    covered = shard.append(1, b"three", "n2", waited=HOUR)[1]
    shard.admin.rpop(shard.keys.pending("n1"))
    reply = shard.drain("n1", "n2")
    assert (reply[3], reply[4], reply[8]) == (3, 2, 1)
    batch = decode_packet(subscription.next())
    assert isinstance(batch, Batch)
    assert (batch.chunks, batch.covered) == ([b"one", b"three"], covered)
    assert shard.number("missing") == 1


@pytest.mark.parametrize("entry", [b"x", b"x" * 32, b"x" * 32 + b"no/name"])
def test_an_entry_that_is_none_stops_nothing(shard: Shard, entry: bytes) -> None:
    """It is passed over and counted as missing; the chunks on both sides of it are published."""
    subscription = shard.subscription
    shard.opened()
    shard.append(1, b"one", waited=HOUR)
    shard.admin.rpush(shard.keys.order, entry)
    shard.append(2, b"two", waited=HOUR)
    assert shard.drain()[0] == b"BATCH"
    batch = decode_packet(subscription.next())
    assert isinstance(batch, Batch)
    assert batch.chunks == [b"one", b"two"]
    assert shard.number("missing") == 1


def test_an_order_list_that_is_gone_is_not_due(shard: Shard) -> None:
    """A deleted order list causes no endless loop."""
    shard.opened()
    shard.append(1, deltas=1000)
    shard.admin.delete(shard.keys.order)
    assert shard.drain() == [b"IDLE", -1]
    assert not shard.admin.hexists(shard.keys.meta, "due")
    assert shard.heartbeat()[1] == -1


def test_a_drain_that_fails_after_publishing_is_done_again_under_another_id(shard: Shard) -> None:
    """Nothing is lost, and readers can recognise the batch outside the history."""
    subscription = shard.subscription
    shard.opened()
    shard.append(1, waited=HOUR)
    shard.admin.set(shard.keys.log, "not a stream")
    with pytest.raises(ResponseError):
        shard.drain(batch_id=b"batch--1")
    shard.admin.delete(shard.keys.log)
    assert shard.drain(batch_id=b"batch--2")[:2] == [b"BATCH", 1]
    first, second = (decode_packet(subscription.next()) for _ in range(2))
    assert isinstance(second, Batch)
    assert first == replace(second, id=b"batch--1", time_ms=first.time_ms)
    assert shard.admin.xlen(shard.keys.log) == 1


def accepted_at(shard: Shard) -> list[int]:
    """When each chunk of the order list was accepted."""
    entries = shard.admin.lrange(shard.keys.order, 0, -1)
    return [struct.unpack_from(">QQ", entry)[1] for entry in entries]


@pytest.mark.parametrize("limits", [{"max_chunks": 2}, {"max_bytes": 300}])
@pytest.mark.parametrize("by_count", [False, True])
def test_a_batch_tells_since_when_the_rest_is_pending(
    shard: Shard, limits: dict[str, int], *, by_count: bool
) -> None:
    """Whatever ends the batch: the oldest chunk that stays pending, and nothing if none stays."""
    subscription = shard.subscription
    shard.opened()
    for number in range(1, 6):
        shard.append(number, chunk("n1", number, 100), **by_one(by_count=by_count))
    while (left := accepted_at(shard)) and shard.drain(**limits):
        packet = subscription.next()
        batch = decode_packet(packet)
        assert isinstance(batch, Batch)
        assert encode_packet(batch) == packet
        rest = left[len(batch.chunks) :]
        assert batch.pending_since_ms == (rest[0] if rest else None)


def test_a_batch_by_count_tells_what_is_not_due_yet(shard: Shard) -> None:
    """What follows the append that crossed the threshold is pending too."""
    subscription = shard.subscription
    shard.opened("n1", "n2")
    shard.append(1, max_count=1)
    shard.append(1, node="n2")
    shard.drain("n1", "n2")
    assert subscription.batch().pending_since_ms == accepted_at(shard)[0]


def test_the_time_of_what_is_pending_counts_for_the_limit_of_the_log(shard: Shard) -> None:
    """A batch of which something stays is 23 bytes longer."""
    shard.opened()
    for number in (1, 2, 3):
        shard.append(number, b"x" * 100, waited=HOUR)
    assert shard.drain(max_chunks=1, log_limit=0)[0] == b"BATCH"
    size, batch = shard.number("log_bytes"), 89 + 5 + 100 + 23
    assert size == batch
    assert shard.drain(max_chunks=1, log_limit=size + batch - 1) == [b"LOGFULL", size]
    assert shard.drain(max_chunks=1, log_limit=size + batch)[:2] == [b"BATCH", 2]
    assert shard.number("log_bytes") == size + batch


# -- heartbeat ------------------------------------------------------------------------------------


def test_a_heartbeat_tells_since_when_something_is_pending(shard: Shard) -> None:
    """The oldest pending chunk, however many follow; nothing while nothing is pending."""
    subscription = shard.subscription
    shard.opened()

    def beat() -> Heartbeat:
        shard.put(published_at=0)
        shard.heartbeat()
        packet = subscription.next()
        found = decode_packet(packet)
        assert isinstance(found, Heartbeat)
        assert encode_packet(found) == packet
        return found

    assert beat().pending_since_ms is None
    shard.append(1, waited=HOUR)
    shard.append(2, waited=HOUR)
    assert beat().pending_since_ms == accepted_at(shard)[0]
    # A full log changes nothing about what was accepted.
    shard.put(log_bytes=10)
    assert shard.drain(log_limit=1)[0] == b"LOGFULL"
    assert beat().pending_since_ms == accepted_at(shard)[0]
    shard.drain()
    subscription.next()
    assert beat().pending_since_ms is None


def test_what_is_pending_is_never_from_the_future(shard: Shard) -> None:
    """After the server's clock was set back, the present is the latest that can be told."""
    subscription = shard.subscription
    shard.opened()
    for number in (1, 2):
        shard.append(number, waited=HOUR)
    ahead = shard.now() + HOUR
    for at, entry in enumerate(shard.admin.lrange(shard.keys.order, 0, -1)):
        moved = entry[:8] + ahead.to_bytes(8) + entry[16:]
        shard.admin.lset(shard.keys.order, at, moved)
    shard.heartbeat()
    shard.drain(max_chunks=1)
    for _ in range(2):
        packet = decode_packet(subscription.next())
        assert isinstance(packet, Batch | Heartbeat)
        assert packet.pending_since_ms == packet.time_ms


def test_one_heartbeat_an_interval_for_any_number_of_workers(shard: Shard) -> None:
    """Many workers, one packet; each reply says when the next is due, and each is recorded."""
    subscription = shard.subscription
    waits = [shard.heartbeat(HOUR, f"w{n % 3}")[0] for n in range(12)]
    assert waits[0] == HOUR
    assert all(HOUR - 10_000 < wait <= HOUR for wait in waits)
    assert decode_packet(subscription.next()).offset == 0
    assert subscription.none_came()
    seen = shard.admin.hgetall(shard.keys.workers)
    assert set(seen) == {b"w0", b"w1", b"w2"}
    assert all(re.fullmatch(rb"flush \d{13}", value) for value in seen.values())


def test_a_batch_counts_as_a_heartbeat(shard: Shard) -> None:
    """No heartbeat repeats a batch: the interval restarts with each batch."""
    shard.batches(1)
    subscription = shard.subscription
    assert HOUR - 10_000 < shard.heartbeat(HOUR)[0] <= HOUR
    assert subscription.none_came()


@pytest.mark.parametrize(
    ("ago", "due"),
    [(0, False), (HOUR - 5000, False), (HOUR, True), (HOUR + 1, True), (-1, True), (-HOUR, True)],
)
def test_a_heartbeat_is_due_after_the_interval_or_a_clock_set_back(
    shard: Shard, ago: int, *, due: bool
) -> None:
    """The interval is exact to the millisecond, and heartbeats continue after a clock step back."""
    subscription = shard.subscription
    # The server's clock goes on between the two calls: a moment of slack for what lies ahead.
    slack = 0 if ago >= 0 else 5000
    shard.put(epoch=EPOCH, published_at=shard.now() - ago + slack)
    assert 0 < shard.heartbeat(HOUR)[0] <= HOUR
    assert subscription.none_came() != due


def test_a_heartbeat_tells_when_something_is_due(shard: Shard) -> None:
    """-1 for nothing pending, 0 for due now by count or age, else the ms until then."""
    shard.opened()
    assert shard.heartbeat()[1] == -1
    shard.append(1, max_age=HOUR)
    assert HOUR - 10_000 < shard.heartbeat()[1] <= HOUR
    shard.append(2, waited=HOUR)
    assert shard.heartbeat()[1] == 0
    shard.drain()
    assert shard.heartbeat()[1] == -1
    shard.append(3, deltas=1000)
    assert shard.heartbeat()[1] == 0


def test_a_heartbeat_starts_an_epoch_and_keeps_thresholds(shard: Shard) -> None:
    """The first caller's epoch stays; a threshold stays until a caller sets another."""
    shard.heartbeat(epoch=b"epoch--1", max_age=70)
    shard.heartbeat(epoch=b"epoch--2", max_count=80)
    shard.heartbeat(max_age=70, max_count=90)
    found = shard.hashes()
    assert (found["epoch"], found["max_age"], found["max_count"]) == (b"epoch--1", b"70", b"90")


# -- workers --------------------------------------------------------------------------------------


def test_a_worker_tells_how_it_is(shard: Shard) -> None:
    """Red stands with its reason, for flush workers and schedulers, until the next call."""

    def reported(name: bytes) -> bytes:
        return re.sub(rb"\d{13}", b"<ms>", shard.admin.hget(shard.keys.workers, name))

    shard.heartbeat(HOUR, "w1", red="shard 0: nothing arrived")
    shard.take("s1", red="no full state")
    assert reported(b"w1") == b"flush <ms> shard 0: nothing arrived"
    assert reported(b"s1") == b"schedule <ms> no full state"
    shard.heartbeat(HOUR, "w1")
    shard.take("s1")
    assert reported(b"w1") == b"flush <ms>"
    assert reported(b"s1") == b"schedule <ms>"


def test_calls_without_a_word_on_health_are_green(shard: Shard) -> None:
    """Older callers do not pass the argument."""
    k = shard.keys
    workers, channel = [k.meta, k.workers], (k.channel, "PUBLISH", 0, HOUR, b"epoch--1")
    shard.call("heartbeat", workers, *channel, "old", "flush", "", "")
    shard.call("lease_take", [k.lease, k.meta, k.workers], "s1", 9000)
    assert all(
        re.fullmatch(rb"(flush|schedule) \d{13}", value)
        for value in shard.admin.hgetall(k.workers).values()
    )


def test_workers_unseen_for_ten_minutes_are_forgotten(shard: Shard) -> None:
    """Heartbeats remove them in small steps, whatever their role; those seen since stay."""
    shard.heartbeat(HOUR)
    now = int(shard.admin.time()[0]) * 1000
    minute = 60_000
    gone = {
        "killed": f"flush {now - 11 * minute}",
        "killed red": f"schedule {now - 60 * minute} it was red",
        "of a clock set back": f"flush {now + 11 * minute}",
        "by hand": "nonsense",
    }
    stays = {
        "quiet": f"flush {now - 9 * minute}",
        "quiet and red": f"schedule {now - 9 * minute} 1363000000000 is no time",
    }
    shard.admin.hset(shard.keys.workers, mapping=gone | stays)
    left = {name.encode() for name in stays} | {b"w1"}
    # Each looks at one of 7, any one: this many miss one with a chance of 1 in 10 to the 19.
    for _ in range(300):
        shard.heartbeat(HOUR)
    assert set(shard.admin.hkeys(shard.keys.workers)) == left
