"""A bit that was flipped on the way from producer to reader: its chunk is refused, never folded."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.messages import Chunk
from tests.unit.strategies import CHUNKS


def flipped(data: bytes, bit: int) -> bytes:
    """Return bytes of which one bit, counted modulo their number, is another one."""
    bad = bytearray(data)
    bad[bit // 8 % len(bad)] ^= 1 << bit % 8
    return bytes(bad)


@given(CHUNKS, st.integers(0, 1 << 20))
def test_a_chunk_with_a_flipped_bit_is_refused(chunk: Chunk, bit: int) -> None:
    """Whichever it is, and before anything else is looked at."""
    data = encode_chunk(chunk)
    assert decode_chunk(data)
    with pytest.raises(DecodeError, match="check sum"):
        decode_chunk(flipped(data, bit))


@given(CHUNKS, st.binary(min_size=1, max_size=4), st.integers(0, 1 << 20))
def test_a_chunk_with_other_bytes_is_refused(chunk: Chunk, other: bytes, place: int) -> None:
    """Up to four in a row, which no check sum of 32 bits misses."""
    data = encode_chunk(chunk)
    place %= len(data)
    bad = data[:place] + other[: len(data) - place] + data[place + len(other) :]
    if bad != data:
        with pytest.raises(DecodeError, match="check sum"):
            decode_chunk(bad)
