"""Cells: values between writer and reader, packed once, at the call, and unpacked by who reads.

A number, bool, None or text is a cell as it is: a column packs and unpacks it in one call with its
neighbours. Everything else is a cell of `bytes`, which are always one packed value. Buffers,
chunks, full state, digests, replicas and queues of changes hold cells, and look into none.

What a value may be made of is checked at the call by the rules of `broker.protocol.values`, never
by what the C library happens to accept; and again at the read, for others may have packed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from broker.errors import DecodeError
from broker.protocol.codec import pack_cell, pack_value
from broker.protocol.columns import kinds_of, length_bounds
from broker.protocol.constants import INT_MAX, INT_MIN, MAX_KEY_BYTES, MAX_VALUE_BYTES
from broker.protocol.messages import Cell, Value
from broker.protocol.operations import Column
from broker.protocol.packed import packed, unpacked
from broker.protocol.values import CONTAINERS, HEAD_BYTES, SCALAR_BYTES, admit, admit_amount

PACKED_TYPES: Final = CONTAINERS | {bytes}
_FIXED: Final = frozenset((float, bool, type(None)))  # values of any such type


def cell_of(value: object) -> tuple[Cell, int]:
    """Validate a value; return its cell, and an upper bound of that cell's size in a chunk.

    Raises:
        EncodeError: as `admit`.
    """
    if type(value) in PACKED_TYPES:
        cell = packed(value)  # type: ignore[arg-type]
        if cell is not None:
            return cell, len(cell) + HEAD_BYTES
    admitted, size = admit(value)
    if admitted is None or type(admitted) in {bool, int, float, str}:
        return admitted, size
    exact = pack_value(admitted)
    return exact, len(exact) + HEAD_BYTES


def plain_columns(mapping: dict[str, Any]) -> tuple[list[str], list[Cell], int] | None:
    """Return a map of plain keys and values as two columns, and an upper bound of their size.

    Args:
        mapping: a dict that nobody else changes.

    Returns:
        Keys, cells and bytes in a chunk. None if a key or value has to be looked at by itself: it
        may be a subclass, out of a limit, or refused.
    """
    if not mapping:
        return None
    keys = [*mapping]
    names, values = _text_bytes(keys, 1, MAX_KEY_BYTES), _plain_column([*mapping.values()])
    if names is None or values is None:
        return None
    cells, size = values
    return keys, cells, names + size


def _text_bytes(texts: list[Any], least: int, most: int) -> int | None:
    """Return an upper bound of the size of ASCII texts in a chunk; None if one is none."""
    if kinds_of(texts) != {str} or not (joined := "".join(texts)).isascii():
        return None
    shortest, longest = length_bounds(texts)
    if shortest < least or longest > most:
        return None
    return len(joined) + HEAD_BYTES * len(texts)


def _plain_column(values: list[Any]) -> tuple[list[Cell], int] | None:
    """Return values of one kind as cells, and an upper bound of their size in a chunk."""
    kinds = kinds_of(values)
    if kinds <= _FIXED or (kinds == {int} and min(values) >= INT_MIN and max(values) <= INT_MAX):
        return values, SCALAR_BYTES * len(values)
    if kinds <= PACKED_TYPES:
        cells = [packed(value) for value in values]
        found = [cell for cell in cells if cell is not None]
        if len(found) < len(cells):
            return None
        return [*found], sum(map(len, found)) + HEAD_BYTES * len(found)
    size = _text_bytes(values, 0, MAX_VALUE_BYTES)
    return None if size is None else (values, size)


def _nothing(_given: object) -> tuple[None, int]:
    return None, 0


# What validates the argument of an operation, by what its column holds: the cell, and an upper
# bound of its size in a chunk. It raises EncodeError.
CELLS: Final[Mapping[Column, Callable[[object], tuple[Cell, int]]]] = {
    Column.NOTHING: _nothing,
    Column.VALUES: cell_of,
    Column.AMOUNTS: admit_amount,
}


def size_of_cell(column: Column, cell: Cell) -> int:
    """Return an upper bound of a cell's size in a chunk, as it was counted."""
    return len(cell) + HEAD_BYTES if type(cell) is bytes else CELLS[column](cell)[1]


def are_same(one: Cell, other: Cell) -> bool:
    """Whether two cells are the same bytes: 1, 1.0 and True are not, though equal in Python."""
    if type(one) is bytes or type(other) is bytes:
        return one == other
    return pack_cell(one) == pack_cell(other)


def value_of(cell: Cell) -> Value:
    """Return the value of a cell; lists and maps are the caller's own.

    Raises:
        DecodeError: as `unpacked`.
    """
    return unpacked(cell) if type(cell) is bytes else cell


def values_of(cells: Sequence[Cell]) -> tuple[Sequence[Value], dict[int, DecodeError]]:
    """Return the values of a column of cells; lists and maps are the caller's own.

    Args:
        cells: not many, as no other thread runs meanwhile.

    Returns:
        The values, and the faults of those that cannot be read: place -> fault. In their places
        the values are None.
    """
    kinds = {*map(type, cells)}
    if bytes not in kinds:
        return cells, {}
    if len(kinds) == 1:
        with suppress(DecodeError):
            return [*map(unpacked, cells)], {}  # type: ignore[arg-type]
    values: list[Value] = []
    faults: dict[int, DecodeError] = {}
    for n, cell in enumerate(cells):
        try:
            values.append(value_of(cell))
        except DecodeError as error:
            faults[n] = error
            values.append(None)
    return values, faults


def readable_items(
    cells: Mapping[str, Cell], note: Callable[[str, DecodeError], object]
) -> Iterator[tuple[str, Value]]:
    """Yield keys and values of a map of cells; those that cannot be read are left out.

    Args:
        cells: by key; the set of keys must not change meanwhile.
        note: called with key and fault of each that was left out.
    """
    for key, cell in cells.items():
        value: Value = cell
        if type(cell) is bytes:
            try:
                value = unpacked(cell)
            except DecodeError as error:
                note(key, error)
                continue
        yield key, value


def readable(cells: dict[str, Any], note: Callable[[str, DecodeError], object]) -> dict[str, Value]:
    """Replace the cells of a map by their values, and remove those that cannot be read.

    Args:
        cells: by key; changed in place, for a second map of all keys would take a fifth longer.
        note: as `readable_items`.

    Returns:
        The same map.
    """
    unreadable = []
    for key, cell in cells.items():
        if type(cell) is bytes:
            try:
                cells[key] = unpacked(cell)
            except DecodeError as error:
                unreadable.append(key)
                note(key, error)
    for key in unreadable:
        del cells[key]
    return cells
