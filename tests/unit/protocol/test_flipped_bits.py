"""A bit that was flipped on the way from producer to reader: its chunk is refused, never folded."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import DecodeError
from broker.protocol.codec import bulk_of, decode_chunk, decode_packet, encode_chunk, encode_packet
from broker.protocol.messages import Batch, Chunk
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


BATCHES = st.builds(
    lambda chunks, since: Batch(
        *(3, b"epoch--1", 5, b"batch--5", b"batch--4", 1_000, 9, 1, 900, 7, chunks, since)
    ),
    st.lists(CHUNKS.map(encode_chunk), max_size=3),
    st.none() | st.integers(0, (1 << 64) - 1),
)


@given(BATCHES, st.integers(0, 1 << 20))
def test_a_batch_with_a_flipped_bit_is_refused_or_its_damaged_chunk_is(
    batch: Batch, bit: int
) -> None:
    """On the channel or in the log: nothing is folded that was not published."""
    try:
        read = decode_packet(flipped(encode_packet(batch), bit))
    except DecodeError:
        return
    assert isinstance(read, Batch)
    assert read != batch
    for chunk, before in zip(read.chunks, batch.chunks, strict=True):
        if chunk != before:
            with pytest.raises(DecodeError, match="check sum"):
                decode_chunk(chunk)
    read.chunks[:] = batch.chunks
    assert read == batch


@pytest.mark.parametrize("bit", range(0, 108 * 8, 3))
def test_a_flipped_bit_of_a_stand_in_is_no_other_chunk(bit: int) -> None:
    """The bulk chunk is not the one that it stands for."""
    batch = Batch(3, b"e" * 8, 5, b"i" * 8, b"p" * 8, 1, 9, 1, 900, 7, [bytes(range(256)) * 300])
    data = encode_packet(batch)
    stand_in = len(data) - 104
    with pytest.raises(DecodeError):
        decode_packet(flipped(data, (stand_in - 4) * 8 + bit), bulk_of(batch))
