"""Model to bytes and back, and every rule that bytes can break."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given

from broker.errors import DecodeError
from broker.protocol import codec
from broker.protocol.codec import (
    bulk_of,
    decode_chunk,
    decode_head,
    decode_packet,
    encode_chunk,
    encode_packet,
    pack_value,
    unpack,
)
from broker.protocol.constants import (
    BULK_BYTES,
    INT_MAX,
    INT_MIN,
    KIND_BATCH,
    MAX_CHUNK_BYTES,
    MAX_DEPTH,
    MAX_KEY_BYTES,
    MAX_TABLE_DELTAS,
    PROTOCOL_VERSION,
)
from broker.protocol.fields import pack_field, unpack_fields
from broker.protocol.messages import (
    Batch,
    Chunk,
    Heartbeat,
    IdRange,
    Notice,
    Packet,
    Run,
    TableKey,
    TableRun,
)
from broker.protocol.operations import OP_DELETE, OP_SET
from tests.check_sums import batch_of as batch
from tests.check_sums import checked, head_check, with_check
from tests.unit.exactness import exact
from tests.unit.strategies import CELLS, CHUNKS, INTEGERS, PACKETS, VALUES

# -- there and back -------------------------------------------------------------------------------


@given(VALUES)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    """Type and bits included."""
    assert exact(unpack(pack_value(value))) == exact(value)


def same_chunk(one: Chunk, other: Chunk) -> bool:
    """Whether two chunks are equal to a reader of any language."""

    def columns(chunk: Chunk) -> list[Any]:
        return [[run.op, run.keys, exact(run.values), run.timestamps] for run in chunk.runs]

    heads = [(chunk.node, chunk.incarnation, chunk.number, chunk.time_ms) for chunk in (one, other)]
    return heads[0] == heads[1] and columns(one) == columns(other)


@given(CHUNKS)
def test_every_chunk_comes_back_as_it_was(chunk: Chunk) -> None:
    """So does its number of deltas, which producers write and readers count."""
    back = decode_chunk(encode_chunk(chunk))
    assert same_chunk(back, chunk)
    assert back.deltas == sum(len(run.keys) for run in chunk.runs)


@given(PACKETS)
def test_every_packet_comes_back_as_it_was(packet: Packet) -> None:
    """Chunks stay the bytes they were."""
    assert decode_packet(encode_packet(packet)) == packet


@given(PACKETS, st.lists(VALUES, max_size=2))
def test_packets_may_grow_at_their_end(packet: Packet, more: list[Any]) -> None:
    """Elements that a later version adds are ignored."""
    fields = msgpack.unpackb(encode_packet(packet))
    assert decode_packet(packed([*fields, *more])) == packet


def packed(fields: list[Any]) -> bytes:
    """Return the elements of a packet, packed as short as possible; of a batch with its check."""
    if fields[1:2] == [KIND_BATCH]:
        return batch(fields)
    return msgpack.packb(fields, datetime=True)  # type: ignore[no-any-return]


@given(PACKETS)
def test_additions_are_before_the_check_of_a_batch_and_last_in_other_packets(
    packet: Packet,
) -> None:
    """A batch has a map of them, also if it is empty; other packets only if there are some."""
    fields = msgpack.unpackb(encode_packet(packet))
    since = None if isinstance(packet, Notice) else packet.pending_since_ms
    additions = {} if since is None else {"pending_since": since}
    if isinstance(packet, Batch):
        assert len(fields) == 15
        assert fields[12] == additions
    else:
        assert fields[9:] == ([additions] if additions else [])


@given(PACKETS)
def test_a_packet_is_read_in_any_form_of_the_same_content(packet: Packet) -> None:
    """The check of a batch is that of its own bytes, not of those that Lua would have written."""
    assert decode_packet(packed(msgpack.unpackb(encode_packet(packet)))) == packet


@given(PACKETS.filter(lambda packet: isinstance(packet, Batch)), st.integers(0, 1 << 20))
def test_a_batch_with_a_flipped_bit_in_its_head_is_refused(packet: Packet, bit: int) -> None:
    """In the form that Lua writes and in the shortest one; before the check, and in it."""
    for data in (encode_packet(packet), packed(msgpack.unpackb(encode_packet(packet)))):
        head = head_of(data)
        assert data.startswith(head + head_check(head))
        damaged = bytearray(data)
        damaged[bit // 8 % (len(head) + 5)] ^= 1 << bit % 8
        for decode in (decode_packet, decode_head):
            with pytest.raises(DecodeError, match=r"."):
                decode(bytes(damaged))


def head_of(data: bytes) -> bytes:
    """Return the bytes of a batch before its check."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(data)
    unpacker.read_array_header()
    for _ in range(13):
        unpacker.skip()
    return data[: unpacker.tell()]


def test_the_check_is_found_without_reading_on_from_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a batch as Lua writes it, whatever it holds: that is what readers can afford."""
    bulk = bytes(BULK_BYTES)
    batches = [
        Batch(0, b"epoch--1", 5, b"batch--5", b"batch--4", 1, 1, 1, 1, 2, chunks, since)
        for chunks in ([], [b""], [b"one", b"two"] * 40, [bulk], [b"one", bulk, b"two", bulk])
        for since in (None, 5)
    ]
    monkeypatch.setattr(codec, "_end_of_head", None)
    for one in batches:
        assert decode_packet(encode_packet(one), bulk_of(one)) == one


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (9, 3, r"trigger 3 \(by time\) needs the word `ttl` or `leases`"),
        (12, {"clock": 5}, "addition clock needs the word `ttl` or `leases`"),
        (12, {"pending_since": 5, "ended": []}, "addition ended needs the word `leases`"),
    ],
)
def test_what_is_reserved_is_refused_by_name(place: int, value: Any, what: str) -> None:
    """A reader that does not know what it means must not go on as if it were not there."""
    with pytest.raises(DecodeError, match=what + ", which this program does not know"):
        decode_packet(with_element(BATCH, place, value))


@pytest.mark.parametrize("since", [None, -1, 1.5, True, "now", b"", [], {}])
def test_a_packet_with_a_damaged_time_of_what_is_pending_is_refused(since: Any) -> None:
    """It is skipped and counted; a proof of unknown age must not be believed."""
    fields = msgpack.unpackb(encode_packet(Heartbeat(0, b"e" * 8, 1, b"i" * 8, b"p" * 8, 1, 1)))
    with pytest.raises(DecodeError, match="pending_since"):
        decode_packet(msgpack.packb([*fields, {"more": 1, "pending_since": since}]))


def fitting(rest: bytes) -> bytes:
    """Return bytes as a field of the key k to which its check sum fits."""
    return crc32(b"k" + rest).to_bytes(4) + rest


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), CELLS), max_size=5))
def test_fields_of_the_full_state_come_back_as_they_were(fields: list[tuple[int, Any]]) -> None:
    """Many at once, in their order."""
    keys = [b"k%d" % n for n in range(len(fields))]
    packed_fields = [pack_field(key, *one) for key, one in zip(keys, fields, strict=True)]
    offsets, cells = unpack_fields(keys, packed_fields)
    assert offsets == [offset for offset, _ in fields]
    assert exact(cells) == exact([cell for _, cell in fields])


@given(st.lists(st.binary(max_size=20) | st.binary(max_size=20).map(fitting), max_size=4))
def test_damaged_fields_are_only_ever_a_decode_error(fields: list[bytes]) -> None:
    """Or as many cells as fields."""
    try:
        offsets, cells = unpack_fields([b"k"] * len(fields), fields)
    except DecodeError:
        return
    assert len(offsets) == len(cells) == len(fields)
    for field, cell in zip(fields, cells, strict=True):
        assert exact(unpack(field[13:])) == exact(cell)


# -- boundaries -----------------------------------------------------------------------------------


CHECK = 5  # bytes of the last element of a chunk


def chunk_of(*runs: Any, head: tuple[Any, ...] = (PROTOCOL_VERSION, "n1", 1, 1, 0)) -> bytes:
    """Return a chunk's bytes, whatever it is made of."""
    return with_check(msgpack.packb([*head, list(runs)], datetime=True))


def set_run(key: Any = "k", value: Any = 1) -> list[Any]:
    """Return a run of one set."""
    return [OP_SET, [key], [value], None]


@pytest.mark.parametrize("value", [INT_MIN, INT_MIN + 1, -1, 0, 1, INT_MAX - 1, INT_MAX])
def test_integers_to_the_ends_of_their_range(value: int) -> None:
    """Signed and unsigned 64 bits; beyond that MessagePack has no form for them."""
    assert decode_chunk(chunk_of(set_run(value=value))).runs[0].values == [value]


@pytest.mark.parametrize("value", [INT_MIN - 1, INT_MAX + 1])
def test_integers_beyond_their_range_have_no_bytes(value: int) -> None:
    """`admit` refuses them before; should one slip through, it is no silent damage."""
    with pytest.raises(OverflowError):
        pack_value(value)


@pytest.mark.parametrize("letter", ["x", "ü", "東", "🚌"])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_keys_are_limited_by_their_bytes(letter: str, excess: int) -> None:
    """1,024 bytes of UTF-8 are accepted, more are refused, whatever the letters."""
    key = letter * (MAX_KEY_BYTES // len(letter.encode()) - 1)
    key += "x" * (MAX_KEY_BYTES + excess - len(key.encode()))
    assert len(key.encode()) == MAX_KEY_BYTES + excess
    data = chunk_of(set_run(key=key))
    if excess <= 0:
        assert decode_chunk(data).runs[0].keys == [key]
    else:
        with pytest.raises(DecodeError, match="key over 1024 bytes"):
            decode_chunk(data)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_chunks_are_limited_by_their_bytes(excess: int) -> None:
    """4 MiB are in, one byte more is out."""
    room = MAX_CHUNK_BYTES - len(chunk_of(set_run(value=bytes(1 << 20))))
    data = chunk_of(set_run(value=bytes((1 << 20) + room + excess)))
    assert len(data) == MAX_CHUNK_BYTES + excess
    if excess <= 0:
        assert decode_chunk(data).deltas == 1
    else:
        with pytest.raises(DecodeError, match="limit 4194304"):
            decode_chunk(data)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_readers_do_not_limit_values(size: int) -> None:
    """That is the producer's part; what is in a chunk is taken."""
    for value in (bytes(size), "x" * size):
        assert decode_chunk(chunk_of(set_run(value=value))).runs[0].values == [value]


@pytest.mark.parametrize("depth", [1, MAX_DEPTH, MAX_DEPTH + 1, 500, 1000, 1100, 100_000])
def test_values_that_are_not_packed_do_not_nest(depth: int) -> None:
    """An array or map is packed, or refused; no depth at all brings the reader down."""
    for opening in (b"\x91", b"\x81\xa1k"):
        packed = opening * depth + b"\x01"
        with pytest.raises(DecodeError):
            decode_chunk(raw_value(packed))
        assert decode_chunk(chunk_of(set_run(value=packed))).runs[0].values == [packed]


@given(st.binary(max_size=40))
def test_what_is_inside_a_packed_value_refuses_no_chunk(packed: bytes) -> None:
    """Whoever reads the key finds out; every reader of the chunk agrees without looking."""
    assert decode_chunk(chunk_of(set_run(value=packed))).runs[0].values == [packed]


# -- the rules of chunks, broken one at a time ----------------------------------------------------


def raw_value(packed: bytes) -> bytes:
    """Return a chunk of one set whose value is these bytes."""
    return checked(chunk_of(set_run(value=None))[: -CHECK - 2] + packed + b"\xc0")


def altered(chunk: bytes, before: bytes, after: bytes) -> bytes:
    """Return a chunk with other bytes, to which its check sum fits."""
    assert chunk.count(before) == 1
    return checked(chunk[:-CHECK].replace(before, after))


GOOD = chunk_of(set_run())
NODE_ID = (PROTOCOL_VERSION, "n1", 1, 1, 0)

BROKEN: dict[str, bytes] = {
    "no bytes": b"",
    "cut short": GOOD[:-1],
    "a byte left over": GOOD + b"\xc0",
    "another byte": GOOD.replace(b"\xa1k", b"\xa1l"),
    "cut short, with a check sum": checked(b"\x98" + GOOD[1:-CHECK]),
    "a byte left over, with a check sum": checked(GOOD[:-CHECK] + b"\xc0"),
    "never used byte": checked(GOOD[: -CHECK - 1] + b"\xc1"),
    "text that is not UTF-8": altered(GOOD, b"\xa1k", b"\xa1\xff"),
    "text with a surrogate": altered(chunk_of(set_run(key="kkk")), b"kkk", b"\xed\xa0\x80"),
    "unknown extension": chunk_of(set_run(value=msgpack.ExtType(5, b"abc"))),
    "unknown extension in the future part": with_check(
        msgpack.packb([*NODE_ID, [set_run()], msgpack.ExtType(5, b"abc")])
    ),
    "timestamp of 5 bytes": raw_value(b"\xc7\x05\xff12345"),
    "timestamp beyond year 9999": raw_value(b"\xc7\x0c\xff" + struct.pack(">Iq", 0, 1 << 40)),
    "timestamp before year 1": raw_value(b"\xc7\x0c\xff" + struct.pack(">Iq", 0, -(1 << 40))),
    "timestamp of too many ns": raw_value(b"\xc7\x0c\xff" + struct.pack(">Iq", 10**9, 0)),
    "a map, not an array": with_check(b"\x80\xa1v"),
    "a number": checked(b""),
    "six elements": with_check(msgpack.packb([*NODE_ID])),
    "version 0": chunk_of(set_run(), head=(0, "n1", 1, 1, 0)),
    "version 2": chunk_of(set_run(), head=(2, "n1", 1, 1, 0)),
    "version 4": chunk_of(set_run(), head=(4, "n1", 1, 1, 0)),
    "version true": chunk_of(set_run(), head=(True, "n1", 1, 1, 0)),
    "version 3.0": chunk_of(set_run(), head=(3.0, "n1", 1, 1, 0)),
    "version text": chunk_of(set_run(), head=("3", "n1", 1, 1, 0)),
    "node bytes": chunk_of(set_run(), head=(PROTOCOL_VERSION, b"n1", 1, 1, 0)),
    "node nil": chunk_of(set_run(), head=(PROTOCOL_VERSION, None, 1, 1, 0)),
    "incarnation negative": chunk_of(set_run(), head=(PROTOCOL_VERSION, "n1", -1, 1, 0)),
    "number negative": chunk_of(set_run(), head=(PROTOCOL_VERSION, "n1", 1, -1, 0)),
    "time negative": chunk_of(set_run(), head=(PROTOCOL_VERSION, "n1", 1, 1, -1)),
    "incarnation float": chunk_of(set_run(), head=(PROTOCOL_VERSION, "n1", 1.0, 1, 0)),
    "number true": chunk_of(set_run(), head=(PROTOCOL_VERSION, "n1", 1, True, 0)),
    "time nil": chunk_of(set_run(), head=(PROTOCOL_VERSION, "n1", 1, 1, None)),
    "runs nil": with_check(msgpack.packb([*NODE_ID, None])),
    "runs a map": with_check(msgpack.packb([*NODE_ID, {}])),
    "run a number": chunk_of(1),
    "run a map": chunk_of({"op": 1}),
    "run of three": chunk_of([1, ["k"], [1]]),
    "operation 0": chunk_of([0, ["k"], [1], None]),
    "operation 4": chunk_of([4, ["k"], [1], None]),
    "operation -1": chunk_of([-1, ["k"], [1], None]),
    "operation nil": chunk_of([None, ["k"], [1], None]),
    "operation true": chunk_of([True, ["k"], [1], None]),
    "operation 1.0": chunk_of([1.0, ["k"], [1], None]),
    "operation 2.0": chunk_of([2.0, ["k"], None, None]),
    "operation a list": chunk_of([[1], ["k"], [1], None]),
    "operation a map": chunk_of([{}, ["k"], [1], None]),
    "keys nil": chunk_of([1, None, [1], None]),
    "keys a text": chunk_of([1, "k", [1], None]),
    "keys a map": chunk_of([1, {"k": 1}, [1], None]),
    "no keys": chunk_of([1, [], [], None]),
    "no keys to delete": chunk_of([2, [], None, None]),
    "key bytes": chunk_of(set_run(key=b"k")),
    "key nil": chunk_of(set_run(key=None)),
    "key a list": chunk_of(set_run(key=["k"])),
    "one of the keys a number": chunk_of([1, ["k", 2], [1, 1], None]),
    "key empty": chunk_of(set_run(key="")),
    "one of the keys empty": chunk_of([2, ["k", ""], None, None]),
    "one of the keys too long": chunk_of([2, ["k", "x" * 1025], None, None]),
    "values nil": chunk_of([1, ["k"], None, None]),
    "values a map": chunk_of([1, ["k"], {"k": 1}, None]),
    "values a text": chunk_of([1, ["k"], "v", None]),
    "fewer values": chunk_of([1, ["k", "l"], [1], None]),
    "more values": chunk_of([1, ["k"], [1, 2], None]),
    "delete with values": chunk_of([2, ["k"], [None], None]),
    "delete with no values": chunk_of([2, ["k"], [], None]),
    "increment without amounts": chunk_of([3, ["k"], None, None]),
    "increment by true": chunk_of([3, ["k"], [True], None]),
    "increment by nil": chunk_of([3, ["k"], [None], None]),
    "increment by text": chunk_of([3, ["k"], ["1"], None]),
    "one increment by a list": chunk_of([3, ["k", "l"], [1, [1]], None]),
    "a list that is not packed": chunk_of(set_run(value=[])),
    "a map that is not packed": chunk_of(set_run(value={"a": 1})),
    "a time that is not packed": chunk_of(set_run(value=datetime(2026, 1, 1, tzinfo=UTC))),
    "one of the values not packed": chunk_of([1, ["k", "l"], [1, [1]], None]),
    "map key a number": chunk_of(set_run(value={1: 1})),
    "timestamps a number": chunk_of([1, ["k"], [1], 5]),
    "timestamps a map": chunk_of([1, ["k"], [1], {}]),
    "fewer timestamps": chunk_of([1, ["k", "l"], [1, 1], [5]]),
    "more timestamps": chunk_of([1, ["k"], [1], [5, 6]]),
    "timestamp true": chunk_of([1, ["k"], [1], [True]]),
    "timestamp float": chunk_of([1, ["k"], [1], [5.0]]),
    "timestamp nil": chunk_of([2, ["k", "l"], None, [5, None]]),
    "the second run": chunk_of(set_run(), [9, ["k"], [1], None]),
    "a key of the second run": chunk_of(set_run(), set_run(key=b"k")),
    "an empty key in the first run": chunk_of(set_run(key=""), set_run()),
    "over 4 MiB": chunk_of(set_run(value=bytes(MAX_CHUNK_BYTES))),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_chunk_that_breaks_a_rule_is_a_decode_error(rule: str) -> None:
    """Each rule on its own; every reader refuses it whole, with a reason."""
    with pytest.raises(DecodeError, match=r".") as caught:
        decode_chunk(BROKEN[rule])
    assert ("check sum" in str(caught.value)) is (rule in DAMAGED)


# Whose check sum is missing or does not fit.
DAMAGED = {"no bytes", "cut short", "a byte left over", "another byte"}

ODD_BUT_GOOD: dict[str, bytes] = {
    "no runs": chunk_of(),
    "elements of the future": with_check(
        msgpack.packb([*NODE_ID, [[*set_run(), "new"]], {"new": 1}])
    ),
    "empty node": chunk_of(set_run(), head=(PROTOCOL_VERSION, "", 0, 0, 0)),
    "a key twice": chunk_of([1, ["k", "k"], [1, 2], None]),
    "timestamps below zero": chunk_of([1, ["k"], [1], [-5]]),
    "no value of ours": chunk_of(set_run(value=b"\xc1")),
    "a packed value of no bytes": chunk_of(set_run(value=b"")),
    "set to nil": chunk_of(set_run(value=None)),
    "long forms of short things": with_check(
        b"\xdd\0\0\0\6\xcd\0\3\xd9\2n1\xcf\0\0\0\0\0\0\0\1\1\0\xdc\0\0"
    ),
    "a check sum inside the last element": checked(GOOD[:-CHECK] + b"\xc4\5"),
}


@pytest.mark.parametrize("what", ODD_BUT_GOOD)
def test_what_no_rule_forbids_is_taken(what: str) -> None:
    """Readers refuse exactly the same chunks, so none may be stricter than the rules."""
    decode_chunk(ODD_BUT_GOOD[what])


# -- the rules of packets -------------------------------------------------------------------------

PREFIX = [PROTOCOL_VERSION, 2, 0, b"epoch--1", 5, b"batch--5", b"batch--4", 1_000, 9]
BATCH = [PROTOCOL_VERSION, 1, *PREFIX[2:], 1, 1_000, 2, {}, 0, [b"one", b"two"]]


def with_element(fields: list[Any], place: int, value: Any) -> bytes:
    """Return a packet with one element replaced."""
    return packed([*fields[:place], value, *fields[place + 1 :]])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(PREFIX)[:-1],
        msgpack.packb(PREFIX) + b"\0",
        msgpack.packb(5),
        msgpack.packb({"v": 1}),
        msgpack.packb(PREFIX[:-1]),
        packed(BATCH[:-1]),
        msgpack.packb(BATCH),
        msgpack.packb([*BATCH[:13], None, BATCH[14]]),
        *(with_element(PREFIX, 0, version) for version in (0, 1, 2, 4, True, 3.0, None, "3", [3])),
        *(with_element(PREFIX, 1, kind) for kind in (0, 4, -2, 2.0, None, "2")),
        *(with_element(PREFIX, place, n) for place in (2, 4, 7, 8) for n in (-1, 1.0, None, True)),
        *(
            with_element(PREFIX, place, raw)
            for place in (3, 5, 6)
            for raw in (b"7 bytes", b"9 bytes--", "8 bytes-", None, 5, [1] * 8)
        ),
        *(with_element(BATCH, place, n) for place in (9, 10, 11) for n in (-1, 1.0, None, True)),
        *(
            with_element(BATCH, 12, bad)
            for bad in (None, [], [["pending_since", 1]], {"pending_since": -1}, 1, b"")
        ),
        *(
            with_element(BATCH, 14, bad)
            for bad in (None, b"one", {"k": 1}, ["one"], [b"one", 2], [[b"f", 9]])
        ),
    ],
    ids=lambda data: data.hex()[:60],
)
def test_a_packet_that_breaks_a_rule_is_a_decode_error(data: bytes) -> None:
    """It is skipped as a whole; the replica detects the gap by the next offset."""
    with pytest.raises(DecodeError, match=r"."):
        decode_packet(data)


BULK = [b"face and the rest", b"face of another"]
STAND_INS = [[chunk[:4], len(chunk)] for chunk in BULK]


def batch_of(*items: Any) -> bytes:
    """Return a batch with these in the place of its chunks."""
    return with_element(BATCH, 14, list(items))


def test_a_batch_takes_the_bulk_chunks_that_it_stands_for() -> None:
    """The last ones that came, in their order, between the chunks that are in it."""
    data = batch_of(b"one", STAND_INS[0], b"two", [*STAND_INS[1], "later"])
    whole = [b"one", BULK[0], b"two", BULK[1]]
    assert decode_packet(data, BULK).chunks == whole  # type: ignore[union-attr]
    assert decode_packet(data, [b"of none", *BULK]).chunks == whole  # type: ignore[union-attr]
    none = decode_packet(batch_of(b"one"), BULK)
    assert isinstance(none, Batch)
    assert none.chunks == [b"one"]


@pytest.mark.parametrize(
    ("items", "bulk"),
    {
        "none came": (STAND_INS, []),
        "one came": (STAND_INS, BULK[1:]),
        "in another order": (STAND_INS, BULK[::-1]),
        "one twice": (STAND_INS, [BULK[0], BULK[0]]),
        "another one": ([STAND_INS[0]], [b"some" + BULK[0][4:]]),
        "a longer one": ([STAND_INS[0]], [BULK[0] + b"!"]),
        "without size": ([STAND_INS[0][:1]], BULK[:1]),
        "face of text": ([["face", len(BULK[0])]], BULK[:1]),
        "size of text": ([[b"face", "17"]], BULK[:1]),
    }.values(),
)
def test_a_batch_without_its_bulk_chunks_is_a_decode_error(
    items: list[Any], bulk: list[bytes]
) -> None:
    """Lost, repeated or mixed up on the way: never one chunk in the place of another."""
    with pytest.raises(DecodeError, match=r"."):
        decode_packet(batch_of(*items), bulk)


@pytest.mark.parametrize("size", [BULK_BYTES - 1, BULK_BYTES, BULK_BYTES + 1])
def test_a_batch_is_written_with_stand_ins_for_its_bulk_chunks(size: int) -> None:
    """Chunks of 65,536 bytes and more are published apart and put back by the reader."""
    chunks = [b"small", bytes(range(256)) * 300 + b"x" * (size - 76_800), b""]
    chunks[1] = chunks[1][:size]
    batch = Batch(0, b"epoch--1", 5, b"batch--5", b"batch--4", 1, 1, 1, 1, 2, chunks)
    data = encode_packet(batch)
    assert bulk_of(batch) == (chunks[1:2] if size >= BULK_BYTES else [])
    assert (len(data) < 300) == (size >= BULK_BYTES)
    assert decode_packet(data, bulk_of(batch)) == batch


def test_a_head_is_read_with_or_without_its_bulk_chunks() -> None:
    """A batch or heartbeat has a head; a notice has none."""
    head = Heartbeat(0, b"epoch--1", 5, b"batch--5", b"batch--4", 1_000, 9)
    assert decode_head(batch_of(*STAND_INS)) == decode_head(msgpack.packb(PREFIX)) == head
    assert decode_head(msgpack.packb([PROTOCOL_VERSION, 3, *PREFIX[2:]])) is None
    with pytest.raises(DecodeError, match="version"):
        decode_head(msgpack.packb([2, *PREFIX[1:]]))


def test_a_packet_says_its_position() -> None:
    """Epoch, offset and id."""
    position = decode_packet(msgpack.packb(PREFIX)).position
    assert (position.epoch, position.offset, position.batch_id) == (b"epoch--1", 5, b"batch--5")


# -- nothing else ever ----------------------------------------------------------------------------

DECODERS: list[Callable[[bytes], Any]] = [decode_chunk, decode_packet, unpack]


def only_decode_errors(data: bytes) -> None:
    """Decode; whatever comes out must be good enough to be used and sent again."""
    for decode in DECODERS:
        try:
            model = decode(data)
        except DecodeError:
            continue
        if isinstance(model, Chunk):
            assert same_chunk(decode_chunk(encode_chunk(model)), model)
            assert model.deltas >= 0


@given(st.binary(max_size=200))
def test_random_bytes_are_only_ever_a_decode_error(data: bytes) -> None:
    """No other exception leaves the decoder."""
    only_decode_errors(data)


@given(st.binary(max_size=60), st.sampled_from([b"\x97\x03\xa2n1\x01\x01\x00", b"\x99\x03\x02"]))
def test_random_bytes_behind_a_good_beginning(data: bytes, beginning: bytes) -> None:
    """And in front of a good end: so that they get further in."""
    only_decode_errors(beginning + data)
    only_decode_errors(checked(beginning + data))


@given(
    st.one_of(CHUNKS.map(encode_chunk), PACKETS.map(encode_packet)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3),
    st.sampled_from(["replace", "insert", "remove", "cut"]),
)
def test_damaged_bytes_are_only_ever_a_decode_error(
    data: bytes, spots: list[tuple[int, int]], how: str
) -> None:
    """Or another valid model, where the damage hit a value."""
    damaged = bytearray(data)
    for spot, byte in spots:
        place = spot % max(1, len(damaged))
        if how == "replace":
            damaged[place : place + 1] = bytes([byte])
        elif how == "insert":
            damaged[place:place] = bytes([byte])
        elif how == "remove":
            del damaged[place : place + 1]
        else:
            del damaged[place:]
    only_decode_errors(bytes(damaged))


@given(st.recursive(VALUES | INTEGERS, lambda inner: st.lists(inner, max_size=7), max_leaves=30))
def test_any_messagepack_is_only_ever_a_decode_error(thing: Any) -> None:
    """Also where it is well formed and only means nothing."""
    only_decode_errors(msgpack.packb(thing, datetime=True))


def test_a_lying_length_does_not_take_the_memory() -> None:
    """An array that claims to have four billion elements is refused at once."""
    for data in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        only_decode_errors(data)
        only_decode_errors(checked(b"\x97\x03\xa2n1\x01\x01\x00" + data))


def test_heartbeats_are_small() -> None:
    """A heartbeat has 63 bytes, so an idle shard costs a subscriber little traffic."""
    beat = Heartbeat(0, b"e" * 8, 1, b"i" * 8, b"p" * 8, 1, 1)
    assert len(encode_packet(beat)) == 63


def test_runs_stay_apart() -> None:
    """Order between runs is part of the meaning; nothing merges or sorts them."""
    runs = [Run(OP_SET, ["a"], [1]), Run(2, ["a"], None), Run(OP_SET, ["a"], [2])]
    assert decode_chunk(encode_chunk(Chunk("n", 1, 1, 1, runs))).runs == runs


@pytest.mark.parametrize("excess", [0, 1])
def test_deltas_on_tables_are_limited(excess: int) -> None:
    """Ranges of ids name millions of rows in a few bytes; only the part for tables is refused."""
    table = TableKey("t", "str-f64")
    parts = [TableRun(OP_DELETE, table, IdRange(0, MAX_TABLE_DELTAS // 4 + excess))] * 4
    chunk = decode_chunk(encode_chunk(Chunk("n", 1, 1, 0, [Run(OP_DELETE, ["k"], None)], parts)))
    assert bool(chunk.tables_fault) is bool(excess)
    assert (len(chunk.runs), len(chunk.tables)) == (1, 0 if excess else 4)
