"""Looks at columns: the extension and its twins see the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.codec import pack_value, unpack_by_msgpack
from broker.protocol.columns import kinds_by_python, length_bounds_by_python
from tests.extension import compiled
from tests.unit.protocol.test_packed import reading
from tests.unit.strategies import TEXTS, VALUES


@given(st.lists(VALUES, max_size=8))
def test_kinds_are_the_types_of_items(column: list[Any]) -> None:
    """Each once; none of an empty column."""
    assert compiled().kinds_of(column) == kinds_by_python(column) == {type(one) for one in column}


@given(st.lists(TEXTS, max_size=8))
def test_lengths_are_in_characters(texts: list[str]) -> None:
    """Of the shortest and the longest."""
    assert compiled().length_bounds(texts) == length_bounds_by_python(texts)


@pytest.mark.parametrize("given", [(), None, {"a"}, ["a", 1]])
def test_what_is_no_column_is_an_error(given: Any) -> None:
    """And no fault of memory."""
    with pytest.raises(TypeError):
        compiled().length_bounds(given)
    with pytest.raises(TypeError):
        compiled().kinds_of(tuple(given or ()))


@given(VALUES, st.data())
def test_whole_objects_are_read_as_msgpack_reads_them(value: Any, data: st.DataObject) -> None:
    """Whole or damaged: with a byte changed, cut, or with bytes behind."""
    read = compiled().whole_unpacker(unpack_by_msgpack)
    whole = bytearray(pack_value([value]))
    match data.draw(st.sampled_from(["whole", "changed", "cut", "longer"])):
        case "changed":
            place = data.draw(st.integers(0, len(whole) - 1))
            whole[place] ^= data.draw(st.integers(1, 255))
        case "cut":
            del whole[data.draw(st.integers(0, len(whole) - 1)) :]
        case "longer":
            whole += data.draw(st.binary(min_size=1, max_size=3))
    assert reading(read, bytes(whole)) == reading(unpack_by_msgpack, bytes(whole))
