"""Hostile bytes: every decoder answers with a value or with a short `DecodeError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given

from broker.core.tables.shard import ShardTables
from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk, decode_head, decode_packet
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.fields import read_page, unpack_fields
from broker.protocol.refusal import MAX_SHOWN_CHARS, refuses, shown
from tests.check_sums import head_check, with_check

MAX_ERROR_CHARS = 200
DEEP = b"\x91" * 998 + b"\xc0"  # legal MessagePack, nested deeper than `repr` can follow
LONG = msgpack.packb("x" * (1 << 20))
HOSTILE = {"deep": DEEP, "long": LONG}

VERSION = bytes([PROTOCOL_VERSION])
HEAD = VERSION + b"\xa1n\x01\x01\x00"  # version, node, incarnation, number, time
RUN = b"\x91\x94\x01\x91\xa1k\x91\x01\xc0"
TABLE = b"\x97" + HEAD + RUN + b"\x91\x96"
KIND = b"\xa7u64-f64"

# Chunks with a hostile element in each place.
CHUNKS: dict[str, Callable[[bytes], bytes]] = {
    "version": lambda bad: b"\x96" + bad + HEAD[1:] + b"\x90",
    "node": lambda bad: b"\x96" + VERSION + bad + b"\x01\x01\x00\x90",
    "number": lambda bad: b"\x96" + HEAD[:4] + bad + b"\x00\x90",
    "runs": lambda bad: b"\x96" + HEAD + bad,
    "operation": lambda bad: b"\x96" + HEAD + b"\x91\x94" + bad + RUN[3:],
    "keys": lambda bad: b"\x96" + HEAD + b"\x91\x94\x01" + bad + b"\x91\x01\xc0",
}
# A fault here refuses the part for tables and leaves the rest of the chunk.
TABLE_PARTS: dict[str, Callable[[bytes], bytes]] = {
    "operation": lambda bad: TABLE + bad + b"\xa1t" + KIND + b"\xc0\xc0\xc0",
    "name": lambda bad: TABLE + b"\x01" + bad + KIND + b"\xc0\xc0\xc0",
    "kind": lambda bad: TABLE + b"\x01\xa1t" + bad + b"\xc0\xc0\xc0",
}


def fault_of(decode: Callable[[bytes], Any], data: bytes) -> str:
    """Return why a decoder refuses bytes; empty if it does not."""
    try:
        decode(data)
    except DecodeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", CHUNKS)
def test_a_hostile_chunk_is_refused_in_few_words(place: str, bad: bytes) -> None:
    """Deep nesting or a long text, wherever it is, is a short DecodeError and nothing else."""
    fault = fault_of(decode_chunk, with_check(CHUNKS[place](bad)))
    # A long text is a legal node name for the codec; its length is bounded by that of the chunk.
    assert bool(fault) is ((place, bad) != ("node", LONG))
    assert len(fault) < MAX_ERROR_CHARS


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", TABLE_PARTS)
def test_a_hostile_part_for_tables_is_refused_in_few_words(place: str, bad: bytes) -> None:
    """The fault is named in few words, and the other deltas of the chunk are kept."""
    chunk = decode_chunk(with_check(TABLE_PARTS[place](bad)))
    assert 0 < len(chunk.tables_fault) < MAX_ERROR_CHARS
    assert (chunk.tables, [run.keys for run in chunk.runs]) == ([], [["k"]])


@pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_packet_is_refused_in_few_words(bad: bytes) -> None:
    """The version of a packet and the stand-ins of a batch are treated alike."""
    ids = b"\xc4\x08epoch--1\x01\xc4\x08batch--1\xc4\x08batch--0"
    batch = b"\x9f" + VERSION + b"\x01\x00" + ids + b"\x00\x00\x01\x00\x00\x80"
    batch += head_check(batch)
    for decode, data in (
        (decode_packet, b"\x99" + bad + b"\x01" * 8),
        (decode_head, b"\x99" + bad + b"\x01" * 8),
        (lambda data: decode_packet(data, [b"abc"]), batch + b"\x91\x92\xc4\x01a" + bad),
    ):
        assert 0 < len(fault_of(decode, data)) < MAX_ERROR_CHARS


ANY_BYTES = st.binary(max_size=200)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(),
    st.binary(),
)
ANY_VALUE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=30,
)


def load_tables(data: bytes) -> ShardTables:
    """Load a tables hash of two fields with this content."""
    return ShardTables.loaded({"t:u64-f64:v:0": data, "t:u64-f64:k:0": data}, 1)


DECODERS: list[Callable[[bytes], Any]] = [
    decode_chunk,
    decode_packet,
    decode_head,
    lambda data: unpack_fields([b"k", b"k"], [data, data]),
    lambda data: read_page([data, data], [data, data]),
    load_tables,
]


@given(ANY_BYTES | ANY_VALUE.map(msgpack.packb) | ANY_VALUE.map(msgpack.packb).map(with_check))
def test_decoders_raise_nothing_but_decode_error(data: bytes) -> None:
    """A reader can go on after any bytes."""
    for decode in DECODERS:
        assert len(fault_of(decode, data)) < MAX_ERROR_CHARS


@given(ANY_VALUE)
def test_what_is_shown_of_a_value_is_short_and_printable(value: Any) -> None:
    """An error text holds no control character of a decoded value, and is no longer than a line."""
    text = shown(value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 10 * MAX_SHOWN_CHARS + 40


@pytest.mark.parametrize("raised", [RecursionError, KeyError, OverflowError])
def test_any_exception_of_a_decoder_is_a_decode_error(raised: type[Exception]) -> None:
    """The error names the type and shows nothing of the text, which may hold what was decoded."""

    @refuses
    def decode(_data: bytes) -> None:
        raise raised("secret")

    assert fault_of(decode, b"") == f"cannot be decoded ({raised.__name__})"


def test_lack_of_memory_is_not_a_refusal() -> None:
    """A reader that is short of memory must not skip a chunk that all others apply."""

    @refuses
    def decode(_data: bytes) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode(b"")
