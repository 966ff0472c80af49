"""Fields of the full state: a damaged one hides no other, and is never read beyond its end."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import DecodeError
from broker.protocol.codec import unpack
from broker.protocol.fields import Page, name_of, pack_field, read_page, unpack_fields
from tests.unit.exactness import exact
from tests.unit.strategies import CELLS

FIELDS = st.lists(st.tuples(st.integers(0, (1 << 64) - 1), CELLS), min_size=1, max_size=6)


@given(FIELDS, st.data())
def test_a_damaged_field_changes_nothing_of_the_others(
    content: list[tuple[int, Any]], data: st.DataObject
) -> None:
    """Whatever is flipped in one field, the others are read; it is read alone, or named."""
    fields = [pack_field(*one) for one in content]
    keys = [b"k%d" % n for n in range(len(fields))]
    at = data.draw(st.integers(0, len(fields) - 1))
    place = data.draw(st.integers(0, len(fields[at]) - 1))
    bad = bytearray(fields[at])
    bad[place] ^= data.draw(st.integers(1, 255))
    fields[at] = bytes(bad)
    page = read_page(keys, fields)
    read = dict(zip(page.names, zip(page.offsets, page.cells, strict=True), strict=True))
    for n, one in enumerate(content):
        if n != at:
            assert exact([*read.pop(f"k{n}")]) == exact([*one])
    if page.damaged:
        assert (page.damaged, read) == ([keys[at]], {})
    else:
        offset, value = read.pop(f"k{at}")
        assert offset == int.from_bytes(fields[at][:8])
        assert exact(value) == exact(unpack(fields[at][8:]))


def test_a_value_that_claims_its_neighbour_is_named() -> None:
    """One bit of a length lets a value go on into the next field, which makes up for the count."""
    first, second = bytearray(pack_field(5, b"abc")), pack_field(5, "d" * 12 + "xyz")
    # 3 bytes become 35, up to the `x`; x, y and z are numbers by themselves.
    first[9] ^= 0x20
    page = read_page([b"a", b"b"], [bytes(first), second])
    assert page == Page(["b"], [5], ["d" * 12 + "xyz"], [b"a"])
    with pytest.raises(DecodeError):
        unpack_fields([bytes(first), second])


@pytest.mark.parametrize(
    "field",
    [b"", b"\0" * 8, b"\0" * 8 + b"\x91\x01", b"\0" * 8 + b"\x80", b"\0" * 8 + b"\xc4\x01"],
)
def test_what_no_producer_can_have_written_is_damaged(field: bytes) -> None:
    """A field without a value, with an array or map that is not packed, or one cut short."""
    assert read_page([b"bad", b"ok"], [field, pack_field(1, 2)]) == Page(["ok"], [1], [2], [b"bad"])


def test_a_key_that_is_not_utf8_is_named() -> None:
    """It hides no other key either, and has a printable name."""
    page = read_page([b"\xff\n", b"ok"], [pack_field(1, 1), pack_field(1, 2)])
    assert page == Page(["ok"], [1], [2], [b"\xff\n"])
    assert ascii(name_of(page.damaged[0])) == r"'\\xff\n'"
