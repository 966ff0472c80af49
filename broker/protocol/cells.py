"""Cells: values between writer and reader, packed once, at the call, and unpacked by who reads.

A number, bool, None or text is a cell as it is: a column packs and unpacks it in one call with its
neighbours. Everything else is a cell of `bytes`, which are always one packed value. Buffers,
chunks, full state, digests, replicas and queues of changes hold cells, and look into none.

What a value may be made of is checked at the call by the rules of `broker.protocol.values`, never
by what the C library happens to accept; and again at the read, for others may have packed it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from broker.errors import DecodeError
from broker.protocol.codec import pack_cell, pack_value
from broker.protocol.messages import Cell, Value
from broker.protocol.operations import Column
from broker.protocol.packed import packed, unpacked
from broker.protocol.values import CONTAINERS, HEAD_BYTES, admit, admit_amount

PACKED_TYPES: Final = CONTAINERS | {bytes}


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


def readable(
    cells: Mapping[str, Cell], note: Callable[[str, DecodeError], object]
) -> dict[str, Value]:
    """Return the values of a map of cells; those that cannot be read are left out.

    Args:
        cells: by key.
        note: called with key and fault of each that was left out.
    """
    if bytes not in set(map(type, cells.values())):
        return dict(cells)
    values: dict[str, Value] = {}
    for key, cell in cells.items():
        try:
            values[key] = unpacked(cell) if type(cell) is bytes else cell
        except DecodeError as error:
            note(key, error)
    return values
