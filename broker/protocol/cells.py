"""Cells: values as a producer's buffer holds them, packed once, at the call.

A number, bool, None or text is a cell as it is: the column packs it in one call with its
neighbours. Everything else is packed at once, so a `bytes` cell always holds one packed value. What
a value is made of is checked there by the rules of `broker.protocol.values`, never by what the C
library happens to accept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgpack

from broker.protocol.codec import RUN_FIELDS, encode_chunk, pack_value
from broker.protocol.constants import MAX_DEPTH, PROTOCOL_VERSION
from broker.protocol.messages import Chunk
from broker.protocol.operations import Column
from broker.protocol.table_codec import packed_part
from broker.protocol.values import CONTAINERS, MAX_PACKED_BYTES, admit, admit_amount

# What the library packs, and what is no value of ours or has to be looked at.
_NOT_ALONE: Final = CONTAINERS | {memoryview, msgpack.ExtType, msgpack.Timestamp}
PACKED_TYPES: Final = CONTAINERS | {bytes}


class _NotPlain(Exception):  # noqa: N818 - no error: `admit` looks at the value
    """A value has a part that only the exact path knows."""


def _refuse(_value: object) -> NoReturn:
    raise _NotPlain


def _new_packer() -> msgpack.Packer:
    # No datetimes: they go the exact way, which makes them UTC.
    return msgpack.Packer(default=_refuse, strict_types=True)


# Free packers. Taking one is a single step of the interpreter, so each is used by one call at a
# time, in any thread, signal handler or finalizer.
_packers: Final = [_new_packer()]


def packed(value: list[Any] | dict[str, Any] | bytes) -> bytes | None:
    """Return a value of exact types as MessagePack; None if `admit` has to look at it.

    It is copied before it is checked, so nobody can change it in between.
    """
    try:
        packer = _packers.pop()
    except IndexError:
        packer = _new_packer()
    try:
        cell: bytes = packer.pack(value if type(value) is bytes else _own(value, 1))
    except (_NotPlain, TypeError, ValueError):
        # The packer may hold a part of it.
        return None
    _packers.append(packer)
    return cell if len(cell) <= MAX_PACKED_BYTES else None


def _own(value: Any, depth: int) -> Any:
    """Return a copy of a list or map, whose containers are copies too."""
    if depth > MAX_DEPTH:
        raise _NotPlain
    copy = value.copy()
    if type(copy) is dict:
        "".join(copy)  # a TypeError unless every key is a str
        if _NOT_ALONE.isdisjoint(map(type, copy.values())):
            return copy
        places: Iterable[tuple[Any, Any]] = copy.items()
    else:
        if _NOT_ALONE.isdisjoint(map(type, copy)):
            return copy
        places = enumerate(copy)
    for place, item in places:
        kind = type(item)
        if kind in CONTAINERS:
            copy[place] = _own(item, depth + 1)
        elif kind in _NOT_ALONE:
            raise _NotPlain
    return copy


def cell_of(value: object) -> tuple[Any, int]:
    """Validate a value; return its cell, and an upper bound of its packed size in bytes.

    Raises:
        EncodeError: as `admit`.
    """
    if type(value) in PACKED_TYPES:
        cell = packed(value)  # type: ignore[arg-type]
        if cell is not None:
            return cell, len(cell)
    admitted, size = admit(value)
    if admitted is None or type(admitted) in {bool, int, float, str}:
        return admitted, size
    cell = pack_value(admitted)
    return cell, len(cell)


def _nothing(_given: object) -> tuple[None, int]:
    return None, 0


# What validates the argument of an operation, by what its column holds: the cell, and an upper
# bound of its packed size in bytes. It raises EncodeError.
CELLS: Final[Mapping[Column, Callable[[object], tuple[Any, int]]]] = {
    Column.NOTHING: _nothing,
    Column.VALUES: cell_of,
    Column.AMOUNTS: admit_amount,
}


def size_of_cell(column: Column, cell: Any) -> int:
    """Return an upper bound of a cell's packed size in bytes."""
    return len(cell) if type(cell) is bytes else CELLS[column](cell)[1]


def column_of(cells: Sequence[Any]) -> bytes:
    """Return a column of cells as a MessagePack array."""
    kinds = set(map(type, cells))
    if bytes not in kinds:
        return pack_value(cells)
    if len(kinds) > 1:
        cells = [cell if type(cell) is bytes else pack_value(cell) for cell in cells]
    head: bytes = msgpack.Packer().pack_array_header(len(cells))
    return head + b"".join(cells)


def chunk_of_cells(chunk: Chunk) -> bytes:
    """Return the bytes that a producer appends, of a chunk whose values are cells."""
    if not any(bytes in set(map(type, run.values or ())) for run in chunk.runs):
        return encode_chunk(chunk)
    packer = msgpack.Packer(datetime=True)
    head, pack = packer.pack_array_header, packer.pack
    fields = (PROTOCOL_VERSION, chunk.node, chunk.incarnation, chunk.number, chunk.time_ms)
    parts = [head(len(fields) + (2 if chunk.tables else 1)), *map(pack, fields)]
    parts.append(head(len(chunk.runs)))
    for run in chunk.runs:
        values = pack(None) if run.values is None else column_of(run.values)
        parts += (head(RUN_FIELDS), pack(run.op), pack(run.keys), values, pack(run.timestamps))
    if chunk.tables:
        parts.append(pack([packed_part(part) for part in chunk.tables]))
    return b"".join(parts)
