"""Check sums and heads of fields: the bytes of the draft, and that no altered byte passes."""

from __future__ import annotations

from zlib import crc32

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import DecodeError
from broker.protocol.constants import FIELD_HEAD_BYTES
from broker.protocol.sums import check_of, with_head, without_head


def test_a_check_sum_is_crc32_big_endian() -> None:
    """The check value of CRC-32, of the whole and of two parts."""
    assert check_of(b"123456789").hex() == check_of(b"456789", b"123").hex() == "cbf43926"


def test_a_head_is_check_sum_and_offset() -> None:
    """The bytes of PROTOCOL.md for the key EWR/min."""
    content = bytes.fromhex("00cbc004000000000000")
    field = with_head(b"EWR/min", 2, content)
    assert field.hex() == "d6f60b23" + "0000000000000002" + content.hex()
    assert int.from_bytes(field[:4]) == crc32(b"EWR/min" + field[4:])
    assert without_head(b"EWR/min", field) == (2, content)


@given(
    st.binary(max_size=20),
    st.integers(0, (1 << 64) - 1),
    st.binary(min_size=1, max_size=40),
    st.data(),
)
def test_an_altered_field_does_not_pass(
    name: bytes, offset: int, content: bytes, data: st.DataObject
) -> None:
    """One bit of it, or another name: nothing of it is believed."""
    field = with_head(name, offset, content)
    assert without_head(name, field) == (offset, content)
    bad = bytearray(field)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for read_as, one in ((name, bytes(bad)), (name + b"x", field)):
        with pytest.raises(DecodeError, match="does not fit its check sum"):
            without_head(read_as, one)


@pytest.mark.parametrize("size", [0, 3, FIELD_HEAD_BYTES])
def test_a_field_without_content_is_refused(size: int) -> None:
    """Even if its check sum fits: flags at least must follow."""
    field = with_head(b"k", 1, b"")[:size]
    with pytest.raises(DecodeError, match="has no content"):
        without_head(b"k", field)
