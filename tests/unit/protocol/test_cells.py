"""Cells: what is packed at the call is, byte for byte, what the exact path would have sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import DecodeError, EncodeError
from broker.protocol.cells import (
    are_same,
    cell_of,
    plain_columns,
    readable,
    readable_items,
    size_of_cell,
    value_of,
    values_of,
)
from broker.protocol.codec import pack_cell, pack_value
from broker.protocol.constants import INT_MAX, MAX_DEPTH, MAX_VALUE_BYTES
from broker.protocol.messages import CELL_TYPES, Cell
from broker.protocol.operations import Column
from broker.protocol.values import admit
from tests.unit.exactness import exact
from tests.unit.protocol.test_values import ADMITTED, REFUSED, Shouting, nested
from tests.unit.strategies import KEYS, VALUES


def bytes_of(cell: Any) -> bytes:
    """Return the packed value of a cell."""
    return cell if type(cell) is bytes else pack_value(cell)


@pytest.mark.parametrize("name", ADMITTED)
@pytest.mark.parametrize("inside", [False, True])
def test_a_cell_has_the_bytes_of_the_admitted_value(name: str, *, inside: bool) -> None:
    """Alone and in a map; and the size is never too small."""
    given_value, expected = ADMITTED[name]
    if inside and name != "deepest":
        given_value, expected = {"a": given_value}, {"a": expected}
    cell, size = cell_of(given_value)
    assert bytes_of(cell) == pack_value(expected)
    assert len(pack_cell(cell)) <= size
    assert size_of_cell(Column.VALUES, cell) >= len(pack_cell(cell))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_with_the_same_words(name: str) -> None:
    """Alone, and inside containers that the quick way would look at."""
    value, message = REFUSED[name]
    with pytest.raises(EncodeError, match=message):
        cell_of(value)
    with pytest.raises(EncodeError):
        cell_of({"a": [value]})


@given(VALUES)
def test_any_value_is_packed_as_the_exact_path_packs_it(value: Any) -> None:
    """Whatever way it takes."""
    assert bytes_of(cell_of(value)[0]) == pack_value(admit(value)[0])


# -- columns --------------------------------------------------------------------------------------

COLUMNS = st.one_of(
    *(
        st.dictionaries(KEYS, values, min_size=1, max_size=6)
        for values in (
            st.floats() | st.none() | st.booleans(),
            st.integers(-(1 << 65), 1 << 65),
            st.text(max_size=5),
            st.binary(max_size=5) | st.lists(st.integers()) | st.dictionaries(KEYS, st.floats()),
            VALUES,
        )
    )
)


@given(COLUMNS)
def test_columns_are_the_cells_of_their_values(mapping: dict[str, Any]) -> None:
    """Those of one value after the other, or each value has to be looked at by itself."""
    found = plain_columns(dict(mapping))
    if found is not None:
        keys, column, size = found
        assert keys == [*mapping]
        assert exact(column) == exact([cell_of(value)[0] for value in mapping.values()])
        assert sum(len(pack_cell(one)) for one in [*keys, *column]) <= size


@pytest.mark.parametrize(
    "values",
    [
        [1.5, None, True],
        [0, INT_MAX],
        ["", "x" * 1000],
        [{"lat": 1.5}, {"lat": 2.5}],
        [[1], {}, b"x"],
    ],
)
def test_columns_of_one_kind_are_taken_together(values: list[Any]) -> None:
    """The shapes that services write."""
    assert plain_columns({f"k{n}": value for n, value in enumerate(values)}) is not None


@pytest.mark.parametrize(
    "mapping",
    [
        {"": 1},
        {"k" * 1025: 1},
        {"ü": 1},
        {1: 1},
        {Shouting("k"): 1},
        {"k": INT_MAX + 1},
        {"k": Shouting("v")},
        {"k": "x" * (MAX_VALUE_BYTES + 1)},
        {"k": "\ud800"},
        {"k": [{1}]},
        {"k": nested(MAX_DEPTH + 1)},
        {"k": datetime(2026, 1, 1, tzinfo=UTC)},
        {"k": 1, "l": "x"},
    ],
    ids=ascii,
)
def test_what_has_to_be_looked_at_is_left_to_the_exact_path(mapping: dict[Any, Any]) -> None:
    """It admits or refuses each by our rules."""
    assert plain_columns(mapping) is None


# -- reading --------------------------------------------------------------------------------------


@given(VALUES)
def test_every_value_comes_back_from_its_cell(value: Any) -> None:
    """Type and bits included; what is neither a scalar nor text is packed."""
    cell, size = cell_of(value)
    assert type(cell) in CELL_TYPES
    assert (type(cell) is bytes) is (type(value) not in {type(None), bool, int, float, str})
    assert exact(value_of(cell)) == exact(admit(value)[0])
    assert len(pack_cell(cell)) <= size


def test_a_value_is_the_readers_own() -> None:
    """Each read makes another one."""
    cell, _ = cell_of({"a": [1]})
    first = value_of(cell)
    assert value_of(cell) == first
    first["a"].append(2)  # type: ignore[index, call-overload, union-attr]
    assert value_of(cell) == {"a": [1]}


def test_a_packed_scalar_is_read_as_what_it_is() -> None:
    """Our writers do not pack them alone; others may."""
    assert value_of(b"\x05") == 5
    assert value_of(b"\xa1x") == "x"
    assert value_of(b"\xc4\x01x") == b"x"


def test_what_cannot_be_read_is_left_out_and_named() -> None:
    """The others are read all the same."""
    found: list[str] = []
    cells_by_key = {"a": 1, "b": b"\xc1", "c": b"\x91\x01", "d": "x"}
    read = dict(readable_items(cells_by_key, lambda key, _fault: found.append(key)))
    assert read == {"a": 1, "c": [1], "d": "x"}
    assert readable(cells_by_key, lambda key, _fault: found.append(key)) == read
    assert found == ["b", "b"]


def test_of_many_exactly_those_that_cannot_be_read_are_left_out() -> None:
    """Wherever they stand."""
    bad = {"k0", "k499", "k500", "k501", "k1299"}
    cells_by_key: dict[str, Cell] = {
        f"k{n}": b"\xc1" if f"k{n}" in bad else b"\x91" + pack_cell(n) for n in range(1_300)
    }
    found: list[str] = []
    read = readable(cells_by_key, lambda key, _fault: found.append(key))
    assert read == {f"k{n}": [n] for n in range(1_300) if f"k{n}" not in bad}
    assert sorted(found) == sorted(bad)


@given(st.lists(st.one_of(st.binary(max_size=6), st.integers(0, 9), st.none(), st.text())))
def test_a_column_of_cells_is_read_as_each_of_them(cells: list[Cell]) -> None:
    """Or the fault of each is named, by its place."""
    values, faults = values_of(cells)
    for n, (cell, value) in enumerate(zip(cells, values, strict=True)):
        if n in faults:
            assert value is None
            with pytest.raises(DecodeError):
                value_of(cell)
        else:
            assert exact(value) == exact(value_of(cell))


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_refused(cell: bytes) -> None:
    """What is read is of our domain, so it can be written again."""
    try:
        value = value_of(cell)
    except DecodeError:
        return
    assert exact(admit(value)[0]) == exact(value)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_a_map_of_cells_is_read_as_its_values(values: dict[str, Any]) -> None:
    """In its order, all at once in place, or one after the other and nothing changed."""
    held = {key: cell_of(value)[0] for key, value in values.items()}
    before = held.copy()
    right = exact({key: admit(value)[0] for key, value in values.items()})
    one_by_one = dict(readable_items(held, lambda key, fault: pytest.fail(f"{key}: {fault}")))
    assert [*one_by_one] == [*values]
    assert exact(one_by_one) == right
    assert exact(held) == exact(before)
    found = readable(held, lambda key, fault: pytest.fail(f"{key}: {fault}"))
    assert [*found] == [*values]
    assert exact(found) == right
    assert found is held


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1, True),
        (1, 1.0, False),
        (1, True, False),
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
        (None, None, True),
        ("a", "a", True),
        (b"\x91\x01", b"\x91\x01", True),
        (b"\x91\x01", b"\xdc\x00\x01\x01", False),
        (b"\x05", 5, False),
        ("a", b"a", False),
    ],
)
def test_cells_are_the_same_if_their_bytes_are(one: Any, other: Any, same: bool) -> None:  # noqa: FBT001
    """As they stand in the full state, so that a self-check finds no difference where none is."""
    assert are_same(one, other) is same
    assert (pack_cell(one) == pack_cell(other)) is same
