"""Cells: what is packed at the call is, byte for byte, what the exact path would have sent."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given

from broker.errors import EncodeError
from broker.protocol import cells
from broker.protocol.cells import cell_of, chunk_of_cells, column_of, packed, size_of_cell
from broker.protocol.codec import encode_chunk, pack_value
from broker.protocol.constants import INT_MAX, MAX_DEPTH, MAX_VALUE_BYTES
from broker.protocol.messages import Chunk, Run, TableDefine, TableKey
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET, Column
from broker.protocol.values import admit
from tests.unit.protocol.test_values import ADMITTED, REFUSED, Shouting, nested
from tests.unit.strategies import KEYS, VALUES


def bytes_of(cell: Any) -> bytes:
    """Return what a cell is in a chunk."""
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
    assert len(bytes_of(cell)) <= size
    assert size_of_cell(Column.VALUES, cell) >= len(bytes_of(cell))


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


def outcome(path: Callable[[Any], tuple[Any, int]], value: Any) -> bytes | str:
    """Return the bytes that a path sends for a value, or why it refuses it."""
    try:
        return bytes_of(path(value)[0])
    except EncodeError as error:
        return str(error)


# What the library would pack without a word.
@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        {b"k": 1},
        {None: 1},
        {"a": 1, 2: 3},
        {"a": {1: 2}},
        [[{1.5: 1}]],
        {Shouting("k"): 1},
        [Shouting("k")],
        [(1, 2)],
        {"a": OrderedDict(b=1)},
        [memoryview(b"ab")],
        {"a": memoryview(b"ab").cast("H")},
        [msgpack.ExtType(3, b"x")],
        {"a": msgpack.Timestamp(1, 1)},
        [INT_MAX + 1],
        ["\ud800"],
        {"\ud800": 1},
        nested(MAX_DEPTH + 1),
        bytes(MAX_VALUE_BYTES + 1),
        ["x" * MAX_VALUE_BYTES, 1, 2],
    ],
)
def test_what_the_library_would_take_is_looked_at(value: Any) -> None:
    """The quick way leaves it to the exact one, which admits or refuses it by our rules."""
    assert packed(value) is None
    assert outcome(cell_of, value) == outcome(admit, value)


def test_what_is_quick_is_quick() -> None:
    """The shapes that services write need no exact look."""
    assert packed({"lat": 52.37, "lon": 4.89}) == pack_value({"lat": 52.37, "lon": 4.89})
    record = {"id": "AA1", "late": 12, "ok": True, "at": None, "position": [52.3, 4.9]}
    assert packed(record) == pack_value(record)
    assert packed(nested(MAX_DEPTH)) == pack_value(nested(MAX_DEPTH))
    assert packed(b"\x00\xff") == b"\xc4\x02\x00\xff"


def test_a_failed_attempt_leaves_nothing_behind() -> None:
    """The next value does not begin with a part of the refused one."""
    assert packed(["x" * 100, {1: 2}]) is None
    assert packed([1]) == b"\x91\x01"


class Meddling:
    """Packs another value when it is collected, in the middle of whatever runs."""

    seen: list[bytes | None] = []  # noqa: RUF012 - of the test

    def __init__(self) -> None:
        self.loop = self

    def __del__(self) -> None:
        self.seen.append(packed({"in": "between"}))


def test_a_finalizer_may_set_in_the_middle() -> None:
    """No packer is used by two calls at once, though both are on one thread."""
    value = {f"k{n}": [n, [n]] for n in range(300)}
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            Meddling()
            assert packed(value) == pack_value(value)
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    assert Meddling.seen
    assert set(Meddling.seen) == {pack_value({"in": "between"})}
    assert len(cells._packers) <= 8


RUNS = st.lists(
    st.one_of(
        st.builds(
            lambda pairs, stamp: (OP_SET, pairs, stamp),
            st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=20),
            st.none() | st.integers(0, 1 << 40),
        ),
        st.just((OP_DELETE, [("k", None)], None)),
        st.just((OP_INCREMENT, [("k", 1), ("m", -2.5)], None)),
    ),
    max_size=4,
)


@given(RUNS, st.booleans())
def test_a_chunk_of_cells_is_the_chunk_of_its_values(runs: Any, has_tables: bool) -> None:  # noqa: FBT001
    """Byte for byte, columns of one kind or mixed, with parts for tables and without."""
    tables = [TableDefine(TableKey("t", "str-f64"), 0, ["a"])] if has_tables else []
    of_values, of_cells = [], []
    for op, pairs, stamp in runs:
        keys = [key for key, _ in pairs]
        stamps = None if stamp is None else [stamp] * len(keys)
        values = None if op == OP_DELETE else [value for _, value in pairs]
        packed_values = values and [cell_of(v)[0] for v in values] if op == OP_SET else values
        of_values.append(Run(op, keys, values, stamps))
        of_cells.append(Run(op, keys, packed_values, stamps))
    head = ("EWR", 1_700_000_000_000, 7, 12)
    expected = encode_chunk(Chunk(*head, of_values, [*tables]))
    assert chunk_of_cells(Chunk(*head, of_cells, [*tables])) == expected


@pytest.mark.parametrize("count", [1, 15, 16, 65_535, 65_536])
def test_columns_of_every_length(count: int) -> None:
    """The head of the array is the shortest one."""
    assert column_of([b"\xc0"] * count) == pack_value([None] * count)
