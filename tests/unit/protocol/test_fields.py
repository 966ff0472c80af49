"""Fields of the full state: a damaged one hides no other, and is never read beyond its end."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import DecodeError
from broker.protocol.digest import Digest
from broker.protocol.fields import (
    Page,
    content_of,
    contents_in,
    name_of,
    pack_field,
    pack_fields,
    read_page,
    unpack_fields,
)
from tests.unit.exactness import exact
from tests.unit.strategies import CELLS

FIELDS = st.lists(st.tuples(st.integers(0, (1 << 64) - 1), CELLS), min_size=1, max_size=6)


def fitting(key: bytes, rest: bytes) -> bytes:
    """Return bytes as a field to which the check sum fits."""
    return crc32(key + rest).to_bytes(4) + rest


@given(FIELDS, st.data())
def test_a_damaged_field_changes_nothing_of_the_others(
    content: list[tuple[int, Any]], data: st.DataObject
) -> None:
    """Whatever is flipped in one field, the others are read, and it is named."""
    keys = [b"k%d" % n for n in range(len(content))]
    fields = [pack_field(key, *one) for key, one in zip(keys, content, strict=True)]
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
    assert (page.damaged, read) == ([keys[at]], {})


@given(st.integers(0, (1 << 64) - 1), st.dictionaries(st.text(min_size=1), CELLS, max_size=6))
def test_a_column_of_fields_is_packed_as_each_alone(offset: int, cells: dict[str, Any]) -> None:
    """And its entries are in the digest, which covers neither check sum nor offset."""
    keys = [key.encode() for key in cells]
    digest, one_by_one = Digest(), Digest()
    fields = pack_fields(keys, offset, cells.values(), digest)
    assert fields == [pack_field(key, offset, cell) for key, cell in cells.items()]
    for key, cell in cells.items():
        one_by_one.add(key, content_of(cell))
    assert digest == one_by_one
    digest.add_all(keys, contents_in(fields), -1)
    assert digest == Digest()


def test_a_value_that_claims_its_neighbour_is_named() -> None:
    """One bit of a length lets a value go on into the next field, which makes up for the count."""
    body, second = bytearray(pack_field("a", 5, b"abc")[4:]), pack_field("b", 5, "d" * 12 + "xyz")
    # 3 bytes become 35, up to the `x`; x, y and z are numbers by themselves. The check sum fits.
    body[10] ^= 0x20
    first = fitting(b"a", bytes(body))
    page = read_page([b"a", b"b"], [first, second])
    assert page == Page(["b"], [5], ["d" * 12 + "xyz"], [b"a"])
    with pytest.raises(DecodeError):
        unpack_fields([b"a", b"b"], [first, second])


@pytest.mark.parametrize("flags", [1, 2, 4, 8, 16, 128, 255])
def test_unknown_flags_are_refused_by_name(flags: int) -> None:
    """They would say that the key has a deadline, or is gone: a reader must not pass over that."""
    field = fitting(b"k", bytes(8) + bytes((flags,)) + b"\x01")
    assert read_page([b"k"], [field]).damaged == [b"k"]
    with pytest.raises(DecodeError, match=f"flags {flags}, which this program does not know"):
        unpack_fields([b"k"], [field])


def test_a_field_under_the_key_of_its_neighbour_is_damaged() -> None:
    """Two that changed places are both named."""
    fields = [pack_field("b", 1, 1), pack_field("a", 1, 2)]
    assert read_page([b"a", b"b"], fields).damaged == [b"a", b"b"]


def test_a_field_belongs_to_its_key() -> None:
    """Under another one its check sum does not fit, whatever it holds."""
    assert read_page([b"a"], [pack_field("b", 1, 1)]).damaged == [b"a"]
    with pytest.raises(DecodeError, match="does not fit its check sum"):
        unpack_fields([b"a"], [pack_field("b", 1, 1)])


@pytest.mark.parametrize(
    "field",
    [b"", bytes(9), bytes(9) + b"\x91\x01", bytes(9) + b"\x80", bytes(9) + b"\xc4\x01"],
)
def test_what_no_producer_can_have_written_is_damaged(field: bytes) -> None:
    """A field without a value, with an array or map that is not packed, or one cut short."""
    for bad in (field, fitting(b"bad", field)):
        page = read_page([b"bad", b"ok"], [bad, pack_field("ok", 1, 2)])
        assert page == Page(["ok"], [1], [2], [b"bad"])


def test_a_key_that_is_not_utf8_is_named() -> None:
    """It hides no other key either, and has a printable name."""
    page = read_page([b"\xff\n", b"ok"], [pack_field(b"\xff\n", 1, 1), pack_field("ok", 1, 2)])
    assert page == Page(["ok"], [1], [2], [b"\xff\n"])
    assert ascii(name_of(page.damaged[0])) == r"'\\xff\n'"
