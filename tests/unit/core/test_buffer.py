"""The producer's buffer: each call is accepted once and in order, or counted."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.buffer import AddResult, ProducerBuffer
from broker.core.chunk_size import CHUNK_HEAD_BYTES, RUN_BYTES, check_group
from broker.core.sent_chunks import Packed
from broker.errors import EncodeError
from broker.protocol.cells import cell_of
from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.constants import MAX_CHUNK_BYTES, MAX_NAME_LENGTH
from broker.protocol.messages import Chunk
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.protocol.values import STAMP_BYTES, admit_amount, admit_key
from tests.unit.exactness import read


def buffer(**options: Any) -> ProducerBuffer:
    """Return a buffer of one shard that keeps everything, but for these options."""
    settings: dict[str, Any] = {
        "node": "n1",
        "shards": 1,
        "max_bytes": 1 << 20,
        "max_count": 1000,
        "chunk_bytes": 1 << 16,
        "keep_s": 60.0,
        "keep_bytes": 1 << 20,
    }
    return ProducerBuffer(**(settings | options))


def size_of(op: int, key: str, value: Any, *, stamped: bool = False) -> int:
    """Return the size that the producer counts for a delta."""
    size = admit_key(key) + (STAMP_BYTES if stamped else 0)
    if op == OP_SET:
        size += cell_of(value)[1]
    elif op == OP_INCREMENT:
        size += admit_amount(value)[1]
    return size


def put(
    one: ProducerBuffer, op: int, key: str, value: Any = None, *, now: float = 0.0, shard: int = 0
) -> AddResult:
    """Add one delta."""
    cell = cell_of(value)[0] if op == OP_SET else value
    return one.add(shard, op, key, cell, size_of(op, key, value), None, now)


def put_many(one: ProducerBuffer, pairs: dict[str, Any], *, now: float = 0.0) -> AddResult:
    """Add a group of sets."""
    size = sum(size_of(OP_SET, key, value) for key, value in pairs.items())
    cells = [cell_of(value)[0] for value in pairs.values()]
    return one.add_many(0, list(pairs), cells, size, None, now)


def send(one: ProducerBuffer, *, now: float = 0.0) -> Packed | None:
    """Take the next chunk and let it be accepted."""
    packed, _ = one.next_chunk(0, now, 0.0, 0)
    if packed is not None:
        one.accepted(0, now)
    return packed


def keys_of(packed: Packed | None) -> list[str]:
    """Return the keys of a chunk, in their order."""
    assert packed is not None
    return [key for run in decode_chunk(packed.data).runs for key in run.keys]


# -- gathering ------------------------------------------------------------------------------------


def test_the_first_delta_and_a_full_chunk_are_news() -> None:
    """The sender is woken for these deltas and for no others."""
    one = buffer(max_count=3)
    assert [put(one, OP_SET, "k", n) for n in range(7)] == [
        *(AddResult.WAKE, AddResult.BUFFERED, AddResult.WAKE),
        *(AddResult.WAKE, AddResult.BUFFERED, AddResult.WAKE),
        AddResult.WAKE,
    ]


def test_deltas_linger_from_the_first_of_them() -> None:
    """Later deltas do not extend the wait; a full chunk, or `close_all`, ends it."""
    one = buffer(max_count=3)
    assert one.next_chunk(0, 10.0, 0.5, 0) == (None, None)
    put(one, OP_SET, "k", 1, now=10.0)
    put(one, OP_SET, "k", 2, now=10.4)
    packed, wait = one.next_chunk(0, 10.4, 0.5, 0)
    assert packed is None
    assert wait == pytest.approx(0.1)
    packed, wait = one.next_chunk(0, 10.5, 0.5, 0)
    assert (keys_of(packed), wait) == (["k", "k"], None)
    one.accepted(0, 10.5)
    for n in range(3):
        put(one, OP_SET, "k", n, now=11.0)
    assert len(keys_of(one.next_chunk(0, 11.0, 0.5, 0)[0])) == 3
    one.accepted(0, 11.0)
    put(one, OP_SET, "k", 1, now=12.0)
    one.close_all()
    assert len(keys_of(one.next_chunk(0, 12.0, 0.5, 0)[0])) == 1


def test_chunks_in_flight_are_the_same_until_they_are_answered() -> None:
    """Sent again after a lost answer they have the same numbers and bytes, whatever was added."""
    one = buffer()
    put(one, OP_SET, "k", 1)
    first, _ = one.next_chunk(0, 1.0, 0.0, 5)
    put(one, OP_SET, "k", 2)
    second, _ = one.next_chunk(0, 2.0, 0.0, 6)
    put(one, OP_SET, "k", 3)
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (1, 2)
    assert (first.total, second.total) == (1, 2)
    assert decode_chunk(second.data).time_ms == 6
    one.requeue(0)
    assert [one.next_chunk(0, 3.0, 0.0, 7)[0] for _ in range(2)] == [first, second]
    one.accepted(0, 3.0)
    one.requeue(0)
    one.requeue(0)
    assert send(one) is second
    third = send(one)
    assert third is not None
    assert (third.number, third.total) == (3, 3)
    assert one.counts().accepted == 3
    assert one.bytes == 0


def test_a_chunk_says_whose_it_is() -> None:
    """A chunk names node, incarnation and number; each shard counts on its own."""
    one = buffer(shards=2, node="EWR")
    for lane, incarnation in zip(one.lanes, (7, 8), strict=True):
        lane.incarnation = incarnation
        put(one, OP_DELETE, "k", shard=lane.shard)
        packed, _ = one.next_chunk(lane.shard, 0.0, 0.0, 99)
        assert packed is not None
        chunk = decode_chunk(packed.data)
        assert (chunk.node, chunk.incarnation, chunk.number) == ("EWR", incarnation, 1)


# -- limits ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_leaves_no_trace() -> None:
    """The limit counts what is not accepted; room comes back with each acceptance."""
    one = buffer(max_bytes=1250)
    assert [put(one, OP_SET, "k", "x" * 300) for _ in range(4)] == [
        *(AddResult.WAKE, AddResult.BUFFERED, AddResult.BUFFERED, AddResult.NO_ROOM)
    ]
    assert 900 < one.bytes <= 1250
    assert (one.pending, one.lanes[0].buffered) == (3, 3)
    assert put_many(one, {"k": "x" * 300}) is AddResult.NO_ROOM
    send(one)
    assert (one.bytes, one.pending) == (0, 0)
    assert put(one, OP_SET, "k", "x" * 300) is AddResult.WAKE


def test_limit_counts_what_surrounds_the_deltas() -> None:
    """Runs of one delta each, the heads of chunks, packing: nothing takes it over the limit."""
    one = buffer(max_bytes=2000, chunk_bytes=600)
    calls = [(OP_SET, "k", 1), (OP_DELETE, "k", None), (OP_INCREMENT, "k", 1)] * 100
    taken = [put(one, *call) for call in calls]
    assert AddResult.NO_ROOM in taken
    assert one.bytes <= 2000
    while one.pending:
        assert send(one) is not None
        assert one.bytes <= 2000
    assert one.bytes == 0


def test_head_of_a_chunk_is_never_larger_than_counted() -> None:
    """The longest node name, the largest numbers; many runs need four bytes more."""
    chunk = Chunk("n" * MAX_NAME_LENGTH, 2**63, 2**63, 2**63, [])
    assert len(encode_chunk(chunk)) + 4 <= CHUNK_HEAD_BYTES


def test_a_group_bigger_than_the_buffer_passes_when_it_is_empty() -> None:
    """A group larger than the buffer is taken when the buffer is empty."""
    one = buffer(max_bytes=1024)
    group = {f"k{n}": "x" * 100 for n in range(20)}
    assert put_many(one, group) is AddResult.WAKE
    assert put_many(one, {"k": 1}) is AddResult.NO_ROOM
    assert put(one, OP_SET, "k", 1) is AddResult.NO_ROOM
    assert keys_of(send(one)) == list(group)
    assert one.bytes == 0


def test_a_delta_bigger_than_the_buffer_passes_when_it_is_empty() -> None:
    """A delta larger than the buffer is taken when the buffer is empty."""
    one = buffer(max_bytes=1024)
    assert put(one, OP_SET, "k", "x" * 5000) is AddResult.WAKE
    assert put(one, OP_SET, "k", 1) is AddResult.NO_ROOM
    assert keys_of(send(one)) == ["k"]
    assert one.bytes == 0


def test_a_group_keeps_what_was_packed() -> None:
    """Maps and bytes of `set_many` are packed once."""
    one = buffer()
    group = {"a": {"x": [1]}, "b": b"\xc0", "c": "text", "d": 1.5}
    put_many(one, group)
    packed = send(one)
    assert packed is not None
    (run,) = decode_chunk(packed.data).runs
    assert read(dict(zip(run.keys, run.values or (), strict=True))) == group


def test_a_group_is_in_one_chunk_even_if_that_is_too_long() -> None:
    """A group that becomes visible at once is never split, and keeps its place in the order."""
    one = buffer(max_count=3, chunk_bytes=600)
    put(one, OP_SET, "before", 1)
    assert put_many(one, {f"k{n}": n for n in range(20)}) is AddResult.WAKE
    put(one, OP_SET, "after", 1)
    assert [keys_of(send(one)) for _ in range(3)] == [
        ["before"],
        [f"k{n}" for n in range(20)],
        ["after"],
    ]


def test_a_group_that_no_chunk_can_hold_is_refused() -> None:
    """Before any of it is buffered, with the limit and the fix."""
    check_group(10, MAX_CHUNK_BYTES - CHUNK_HEAD_BYTES - RUN_BYTES)
    with pytest.raises(EncodeError, match=r"set_many of 10 keys .* limit of 4194304 .* split"):
        check_group(10, MAX_CHUNK_BYTES - CHUNK_HEAD_BYTES - RUN_BYTES + 1)


@pytest.mark.parametrize("stamp", [None, 1_700_000_000_000])
@pytest.mark.parametrize("key", ["k" * 40, "k" * 300, "ü" * 512])
@pytest.mark.parametrize(
    ("first", "second"),
    [(OP_SET, OP_DELETE), (OP_INCREMENT, OP_DELETE), (OP_SET, OP_INCREMENT)],
)
def test_no_chunk_is_too_big_for_readers(
    first: int, second: int, key: str, stamp: int | None
) -> None:
    """Every reader skips a chunk over 4 MiB; also operations in turns must not add up to that."""
    one = buffer(chunk_bytes=MAX_CHUNK_BYTES, max_bytes=1 << 30, max_count=100_000)
    values = {OP_SET: (1 << 64) - 1, OP_INCREMENT: (1 << 64) - 1, OP_DELETE: None}
    deltas = [
        (op, key, values[op], size_of(op, key, values[op], stamped=stamp is not None))
        for op in (first, second)
    ]
    while not one.lanes[0].closed:
        for delta in deltas:
            one.add(0, *delta, stamp, 0.0)
    packed, _ = one.next_chunk(0, 0.0, 0.0, 1_700_000_000_000)
    assert packed is not None
    assert len(packed.data) <= MAX_CHUNK_BYTES
    assert len(packed.data) > MAX_CHUNK_BYTES // 4 or packed.deltas == 100_000


# -- conflating -----------------------------------------------------------------------------------


def test_conflating_keeps_what_still_matters() -> None:
    """Deltas before the newest set or delete of a key go; increments after it stay."""
    one = buffer(max_count=4)
    put(one, OP_INCREMENT, "a", 1)
    put(one, OP_SET, "a", 1)
    put(one, OP_SET, "b", 1)
    put(one, OP_INCREMENT, "a", 10)
    put(one, OP_DELETE, "b")
    put(one, OP_INCREMENT, "c", 1)
    put(one, OP_INCREMENT, "c", 2)
    before = one.bytes
    freed = one.conflate()
    assert freed == before - one.bytes > 0
    assert one.lanes[0].conflated == 2
    assert one.pending == 5
    assert keys_of(send(one)) == ["a", "a"]
    assert keys_of(send(one)) == ["b", "c", "c"]
    assert one.conflate() == one.bytes == 0


def test_a_conflating_producer_sends_the_newest_of_each_key() -> None:
    """Within a chunk; increments behind the newest set stay, and every count is right."""
    one = buffer(conflates=True)
    for n in range(100):
        put(one, OP_INCREMENT, "a", 1)
        put(one, OP_SET, "a", n)
        put(one, OP_SET, f"k{n % 3}", n)
        put(one, OP_INCREMENT, "a", 0.5)
    put(one, OP_DELETE, "k0")
    packed, _ = one.next_chunk(0, 0.0, 0.0, 0)
    assert packed is not None
    chunk = decode_chunk(packed.data)
    sent = [
        (run.op, key, run.values and run.values[n])
        for run in chunk.runs
        for n, key in enumerate(run.keys)
    ]
    assert sent == [
        (OP_SET, "k1", 97),
        (OP_SET, "k2", 98),
        (OP_SET, "a", 99),
        (OP_INCREMENT, "a", 0.5),
        (OP_DELETE, "k0", None),
    ]
    assert packed.deltas == chunk.deltas == 5
    one.accepted(0, 0.0)
    counts = one.counts()
    assert (counts.buffered, counts.accepted, counts.conflated) == (401, 5, 396)
    assert (counts.pending, counts.buffer_bytes) == (0, 0)


def test_conflating_gives_back_no_more_room_than_there_is() -> None:
    """Dropping a small delta beside a large one makes little room, however often."""
    one = buffer(max_bytes=20_000, chunk_bytes=8000)
    large = 0
    for n in range(100):
        if put(one, OP_SET, f"large{n}", "x" * 1000) is AddResult.NO_ROOM:
            break
        large += 1
        for _ in range(20):
            put(one, OP_SET, "small", 1)
        one.conflate()
    sizes = []
    while (packed := send(one)) is not None:
        sizes.append(len(packed.data))
    assert sum(sizes) <= 20_000
    assert max(sizes) <= 8000
    assert large < 20


def test_conflating_never_takes_room() -> None:
    """Conflating never increases the counted size."""
    one = buffer(max_bytes=1000)
    put(one, OP_SET, "k", 1)
    while put(one, OP_INCREMENT, "n", 1) is not AddResult.NO_ROOM:
        pass
    put(one, OP_DELETE, "k")
    before = one.bytes
    assert one.conflate() == before - one.bytes >= 0
    assert one.bytes <= one.max_bytes


def test_chunks_in_flight_are_not_conflated() -> None:
    """Their bytes may be in Redis already."""
    one = buffer()
    put(one, OP_SET, "k", 1)
    packed, _ = one.next_chunk(0, 0.0, 0.0, 0)
    put(one, OP_SET, "k", 2)
    assert one.conflate() == 0
    one.requeue(0)
    assert one.next_chunk(0, 0.0, 0.0, 0)[0] is packed


# -- what Redis forgot ----------------------------------------------------------------------------


def test_kept_chunks_are_sent_again_as_they_were() -> None:
    """From the first that is missing, in order, before anything new; nothing is lost."""
    one = buffer()
    sent = []
    for n in range(4):
        put(one, OP_SET, f"k{n}", n)
        sent.append(send(one))
    put(one, OP_SET, "new", 1)
    in_flight, _ = one.next_chunk(0, 0.0, 0.0, 0)
    assert one.rewind(0, 3, 2, 0.0) == (2, 2, 0)
    assert [send(one) for _ in range(4)] == [sent[2], sent[3], in_flight, None]
    lane = one.lanes[0]
    assert (lane.sent.resent, lane.sent.lost, lane.sent.accepted, one.bytes) == (2, 0, 5, 0)


def test_what_is_no_longer_kept_is_lost_and_counted() -> None:
    """By age and by bytes; the numbers go on after what can still be sent."""
    one = buffer(keep_s=10.0)
    for n in range(4):
        put(one, OP_SET, f"k{n}", n)
        put(one, OP_SET, f"k{n}", n)
        send(one, now=float(4 * n))
    assert one.rewind(0, 1, 0, 14.5) == (2, 4, 4)
    assert [keys_of(send(one))[0] for _ in range(2)] == ["k2", "k3"]
    nothing = buffer(keep_bytes=0)
    put(nothing, OP_SET, "k", 1)
    send(nothing)
    assert nothing.rewind(0, 1, 0, 0.0) == (1, 1, 1)
    assert nothing.lanes[0].sent.lost == 1
    assert nothing.next_chunk(0, 0.0, 0.0, 0) == (None, None)


def test_a_loss_is_counted_once() -> None:
    """A loss is counted once, also if Redis reports it again after a lost reply."""
    one = buffer(keep_bytes=0)
    put(one, OP_SET, "k", 1)
    send(one)
    one.rewind(0, 1, 0, 0.0)
    one.rewind(0, 1, 0, 0.0)
    assert one.lanes[0].sent.lost == 1


def test_an_older_loss_is_not_counted_with_a_newer_one() -> None:
    """A second loss does not count the chunks of the first one again."""
    one = buffer(keep_bytes=0)
    for _ in range(2):
        put(one, OP_SET, "k", 1)
        send(one)
        one.rewind(0, 1, 0, 0.0)
    assert one.lanes[0].sent.lost == 2


def test_waiting_for_tickets_is_waiting_for_what_was_before() -> None:
    """A wait covers only earlier calls, and again if Redis lost them meanwhile."""
    one = buffer()
    assert one.is_accepted(one.close_all())
    put(one, OP_SET, "k", 1)
    tickets = one.close_all()
    put(one, OP_SET, "later", 1)
    assert not one.is_accepted(tickets)
    one.next_chunk(0, 0.0, 0.0, 0)
    assert not one.is_accepted(tickets)
    one.accepted(0, 0.0)
    assert one.is_accepted(tickets)
    assert not one.is_accepted(one.close_all())
    one.rewind(0, 1, 0, 0.0)
    assert not one.is_accepted(tickets)


def test_reached_is_behind_whatever_is_on_its_way() -> None:
    """The last number that was accepted without a hole: before a chunk in flight, or sent again."""
    one = buffer()
    assert one.reached() == [0]
    for n in range(3):
        put(one, OP_SET, f"k{n}", n)
        assert one.reached() == [n]
        one.next_chunk(0, 0.0, 0.0, 0)
        assert one.reached() == [n]
        one.accepted(0, 0.0)
        assert one.reached() == [n + 1]
    one.rewind(0, 2, 1, 0.0)
    assert one.reached() == [1]
    send(one)
    assert one.reached() == [2]


# -- threads --------------------------------------------------------------------------------------


def test_many_threads_lose_and_double_nothing() -> None:
    """Callers on threads, the sender on its own: all deltas arrive, each caller's in order."""
    one = buffer(max_count=7, max_bytes=1 << 30)
    per_thread, threads = 400, 4
    arrived: list[tuple[str, int]] = []

    def call(name: str) -> None:
        for n in range(per_thread):
            put(one, OP_SET, name, n)

    callers = [threading.Thread(target=call, args=(f"t{n}",)) for n in range(threads)]
    for caller in callers:
        caller.start()
    while len(arrived) < per_thread * threads:
        if (packed := send(one)) is not None:
            for run in decode_chunk(packed.data).runs:
                arrived += zip(run.keys, run.values or (), strict=True)  # type: ignore[arg-type]
    for caller in callers:
        caller.join()
    assert one.bytes == one.pending == 0
    for n in range(threads):
        assert [value for key, value in arrived if key == f"t{n}"] == list(range(per_thread))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(300, 2000))
def test_chunks_are_filled_to_their_limit_and_not_beyond(lengths: list[int], limit: int) -> None:
    """Chunks are filled up to the limit in bytes; only a single delta may exceed it."""
    one = buffer(chunk_bytes=limit)
    for length in lengths:
        put(one, OP_SET, "k", "x" * length)
    one.close_all()
    while (packed := send(one)) is not None:
        assert len(packed.data) <= limit or packed.deltas == 1
    assert one.bytes == 0
