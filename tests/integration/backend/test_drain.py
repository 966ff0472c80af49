"""The Lua commands of flush workers, called as their heads say, on a real server."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ResponseError

from broker.backend.stored import QueueEntry
from broker.protocol.codec import decode_packet, encode_packet
from broker.protocol.constants import TRIGGER_AGE, TRIGGER_COUNT
from broker.protocol.messages import Batch, Heartbeat
from tests.integration.lua_shard import EPOCH, HOUR, Shard, chunk, packed_entry

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
    """Chunks of many nodes come out as they went in, whatever the limits of a batch are."""
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
    for most in (5, 3, 7):
        status, offset, trigger, deltas, chunks, *_ = shard.drain(max_chunks=most)
        batch = decode_packet(subscription.next())
        assert isinstance(batch, Batch)
        assert (status, offset, trigger) == (b"BATCH", batch.offset, TRIGGER_AGE)
        assert deltas == chunks == len(batch.chunks)
        got += batch.chunks
        assert batch.covered == appends[len(got) - 1]
    assert got == sent
    assert shard.number("accepted") == shard.number("published") == 13
    assert shard.number("pending_bytes") == 0
    assert not shard.admin.exists(shard.keys.queue)


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


def test_chunks_without_deltas_are_drained(shard: Shard) -> None:
    """Chunks that only define ids change no count."""
    shard.opened("n1", "n2", "n3")
    shard.append(1, deltas=0, waited=HOUR)
    shard.append(2, deltas=0, waited=HOUR)
    shard.append(1, node="n3", deltas=0, waited=HOUR)
    shard.append(2, node="n3", deltas=2, waited=HOUR)
    shard.append(1, node="n2", deltas=3, waited=HOUR)
    assert shard.drain(max_chunks=1)[3:5] == [0, 1]
    assert shard.drain(max_chunks=2)[3:5] == [0, 2]
    assert shard.drain()[3:5] == [5, 2]
    assert (shard.number("accepted"), shard.number("published")) == (5, 5)


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


def test_count_takes_a_prefix_and_age_takes_all(shard: Shard) -> None:
    """A batch by count ends with the append that reached it; later ones wait until they are due."""
    shard.opened("n1", "n2")
    shard.append(1, node="n2")
    shard.append(1, deltas=9, max_count=10)
    shard.append(2, deltas=1, max_count=10)
    shard.append(2, node="n2", max_age=2 * HOUR)
    shard.append(3, deltas=9, max_count=10)
    _, _, trigger, deltas, chunks, _, _, wait, _ = shard.drain()
    assert (trigger, deltas, chunks) == (TRIGGER_COUNT, 11, 3)
    assert HOUR - 10_000 < wait <= HOUR
    status, wait = shard.drain()
    assert status == b"IDLE"
    assert HOUR - 10_000 < wait <= HOUR
    shard.append(3, node="n2", waited=HOUR)
    _, _, trigger, deltas, chunks, _, _, wait, _ = shard.drain()
    assert (trigger, deltas, chunks, wait) == (TRIGGER_AGE, 11, 3, -1)
    assert (shard.number("by_count"), shard.number("by_age")) == (1, 1)


def test_age_is_due_to_the_millisecond(shard: Shard) -> None:
    """Drained once the clock has reached the deadline, and not before."""
    shard.opened()
    shard.append(1, max_age=40)
    due = shard.entries()[0].due_ms
    assert due == shard.number("due_ms")
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
    shard.rewrite(0, due_ms=1, append=1_000_000)
    shard.append(5, waited=HOUR)
    assert shard.drain()[6] > shard.now() - HOUR


def test_a_clock_that_was_set_back_lets_nothing_wait_longer_than_its_age(shard: Shard) -> None:
    """Chunks that a batch by count leaves are also due within their own age from now."""
    shard.opened("n1", "n2")
    shard.append(1, deltas=1000, max_age=50)
    shard.append(1, node="n2", max_age=50)
    old = shard.now() + HOUR
    for index in (0, 1):
        shard.rewrite(index, due_ms=old + 50, append=old * 1000 + index)
    numbers = {"appends": old * 1000 + 1, "count_due": old * 1000}
    shard.put(due_ms=old + 50, published_at=old, **numbers)
    reply = shard.drain()
    assert reply[:3] == [b"BATCH", 1, TRIGGER_COUNT]
    assert reply[7] <= 50


def test_no_chunk_waits_longer_for_being_far_behind(shard: Shard) -> None:
    """A chunk that is overdue is drained at once, however many patient chunks are before it."""
    shard.opened("n1", "n2")
    for number in range(1, 7):
        shard.append(number, node="n1", max_age=HOUR)
    shard.append(1, node="n2", max_age=0)
    assert shard.drain(max_chunks=2)[7] == 0


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


GARBAGE = {
    "text": b"x",
    "empty": b"",
    "long": b"x" * 100_000,
    "an entry of nobody": packed_entry(QueueEntry(1, 2, 3, "no/name")),
    "an entry without a name": packed_entry(QueueEntry(1, 2, 3, "")),
    "an entry without a chunk": packed_entry(QueueEntry(1, 2, 3, "n1")),
    "an entry far ahead": packed_entry(QueueEntry(1 << 63, 1 << 63, 1 << 31, "n1")),
}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("kind", GARBAGE)
def test_what_belongs_to_no_chunk_stops_nothing(shard: Shard, kind: str, place: int) -> None:
    """It is passed over and counted as missing; the chunks on both sides of it are published."""
    subscription = shard.subscription
    shard.opened()
    shard.append(1, b"one", waited=HOUR)
    covered = shard.append(2, b"two", waited=HOUR)[1]
    elements = shard.admin.lrange(shard.keys.queue, 0, -1)
    elements.insert(place, GARBAGE[kind])
    shard.admin.delete(shard.keys.queue)
    shard.admin.rpush(shard.keys.queue, *elements)
    reply = shard.drain()
    assert (reply[0], reply[3], reply[4], reply[7], reply[8]) == (b"BATCH", 2, 2, -1, 1)
    batch = decode_packet(subscription.next())
    assert isinstance(batch, Batch)
    assert (batch.chunks, batch.covered) == ([b"one", b"two"], covered)
    assert shard.number("missing") == 1
    assert not shard.admin.exists(shard.keys.queue)


@pytest.mark.parametrize("at", range(4))
def test_half_a_pair_is_counted_and_its_neighbour_published(shard: Shard, at: int) -> None:
    """A chunk whose entry is gone, or an entry whose chunk is gone, is missing."""
    subscription = shard.subscription
    shard.opened()
    shard.append(1, b"one", waited=HOUR)
    shard.append(2, b"two", waited=HOUR)
    shard.admin.lset(shard.keys.queue, at, b"gone")
    shard.admin.lrem(shard.keys.queue, 1, b"gone")
    reply = shard.drain()
    assert (reply[0], reply[4], reply[8]) == (b"BATCH", 1, 1)
    assert subscription.batch().chunks == [[b"two"], [b"one"]][at // 2]
    assert not shard.admin.exists(shard.keys.queue)


def test_entries_without_their_chunks_are_no_chunks(shard: Shard) -> None:
    """Also where one is behind another, as a chunk before its entry would be."""
    subscription = shard.subscription
    shard.opened()
    for number in (1, 2, 3):
        shard.append(number, b"gone" if number < 3 else b"three", waited=HOUR)
    shard.admin.lrem(shard.keys.queue, 2, b"gone")
    reply = shard.drain()
    assert (reply[4], reply[8]) == (1, 2)
    assert subscription.batch().chunks == [b"three"]


def test_a_pair_from_far_ahead_stops_nothing(shard: Shard) -> None:
    """A count that is due publishes what is first, whatever number its entry has."""
    shard.opened()
    shard.append(1, b"one", deltas=1000)
    covered = shard.number("appends")
    entry = packed_entry(QueueEntry(1 << 63, 1 << 63, 1, "n1"))
    shard.admin.lpush(shard.keys.queue, entry, b"ahead")
    before = shard.number("pending_bytes")
    assert shard.drain()[:5] == [b"BATCH", 1, TRIGGER_COUNT, 1001, 2]
    assert shard.number("covered") == covered
    assert before == 3
    assert shard.drain() == [b"IDLE", -1]


@pytest.mark.parametrize("data", [b"", b"\1", b"\1" * 21, b"\1" + bytes(40), b"\1" * 100])
def test_a_chunk_that_begins_like_an_entry_is_one(shard: Shard, data: bytes) -> None:
    """Whatever a producer packs into a chunk, it goes to the readers as it is."""
    subscription = shard.subscription
    shard.opened()
    shard.append(1, data, waited=HOUR)
    assert shard.drain()[4] == 1
    assert subscription.batch().chunks == [data]


@pytest.mark.parametrize("pending_bytes", [1 << 40, 1, None])
def test_a_backlog_is_drained_whatever_its_bytes_are_said_to_be(
    shard: Shard, pending_bytes: int | None
) -> None:
    """The count of bytes only decides how much of the queue is read at once."""
    subscription = shard.subscription
    shard.opened()
    sent = [b"x" * (number * 7 % 60) for number in range(1, 41)]
    for number, data in enumerate(sent, start=1):
        shard.append(number, data, waited=HOUR)
    if pending_bytes is not None:
        shard.put(pending_bytes=pending_bytes)
    got: list[bytes] = []
    while shard.drain(max_bytes=100)[0] == b"BATCH":
        chunks = subscription.batch().chunks
        assert sum(map(len, chunks)) <= 100
        got += chunks
    assert got == sent


def test_a_queue_that_is_gone_is_not_due(shard: Shard) -> None:
    """A deleted queue causes no endless loop."""
    shard.opened()
    shard.append(1, deltas=1000)
    shard.admin.delete(shard.keys.queue)
    assert shard.drain() == [b"IDLE", -1]
    assert shard.number("due_ms") == 0
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
    """When each chunk of the queue was accepted."""
    return [entry.accepted_ms for entry in shard.entries()]


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
    shard.drain()
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
    for at in (0, 1):
        shard.rewrite(at, append=ahead * 1000 + at)
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


@pytest.mark.parametrize("due", [0, 1 << 60, (1 << 64) - 1])
def test_a_heartbeat_lowers_a_due_that_cannot_be_meant(shard: Shard, due: int) -> None:
    """What is pending waits for its own age, whatever somebody wrote."""
    shard.opened()
    shard.append(1, max_age=HOUR // 2)
    shard.put(due_ms=due)
    assert HOUR // 2 - 10_000 < shard.heartbeat(HOUR)[1] <= HOUR // 2
    assert shard.number("due_ms") == shard.entries()[0].due_ms


@pytest.mark.parametrize("key", ["queue", "intake"])
def test_a_heartbeat_makes_anew_what_is_of_another_type(shard: Shard, key: str) -> None:
    """What was in it is lost, and the shard goes on."""
    shard.opened()
    shard.append(1, waited=HOUR)
    assert shard.drain()[0] == b"BATCH"
    shard.append(2, deltas=7)
    shard.admin.delete(getattr(shard.keys, key))
    shard.admin.set(getattr(shard.keys, key), "x")
    assert shard.heartbeat(HOUR)[1] == (-1 if key == "queue" else 0)
    pending = 0 if key == "queue" else 7
    assert shard.number("accepted") == shard.number("published") + pending
    if key == "intake":
        assert shard.append(3) == [b"MISSING", 1, 0]
        assert shard.open(incarnation=5, chunk=2, deltas=8)[0] == b"OPEN"
    assert shard.append(3, waited=HOUR)[0] == b"OK"
    assert shard.drain()[1] == 2


def test_a_covered_from_far_ahead_is_damage_of_meta(shard: Shard) -> None:
    """The head is right then, and is not made anew from it."""
    shard.opened()
    shard.append(1, waited=HOUR)
    head = shard.head()
    shard.admin.hset(shard.keys.meta, "covered", (shard.now() + 48 * HOUR) * 1000)
    for command in (shard.drain, shard.heartbeat):
        with pytest.raises(ResponseError, match=f"DAMAGED {shard.keys.meta} covered"):
            command()
    assert shard.head() == head
    shard.admin.hdel(shard.keys.meta, "covered")
    assert shard.drain()[0] == b"BATCH"


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
    workers, channel = (
        [k.meta, k.intake, k.queue, k.workers],
        (k.channel, "PUBLISH", 0, HOUR, b"epoch--1"),
    )
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
