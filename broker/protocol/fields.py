"""Fields of the full-state hash: check sum, offset up to which it was folded, flags, cell. No I/O.

Whoever may write to Redis may damage a field. One that cannot be read must not hide the others, and
nothing of it may be taken for a part of its neighbour.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add
from typing import Final
from zlib import crc32

import msgpack

from broker.errors import DecodeError
from broker.protocol.codec import pack_cell, unpack
from broker.protocol.constants import CHECK_BYTES, FIELD_HEAD_BYTES
from broker.protocol.digest import Digest
from broker.protocol.messages import CELL_TYPES, Cell
from broker.protocol.refusal import refuses
from broker.protocol.sums import check_of, with_head

_OFFSET: Final = struct.Struct(">Q")
_CHECK: Final = struct.Struct(">I")
_ARRAY32: Final = struct.Struct(">BI")
_NO_FLAGS: Final = b"\0"
_CELL_AT: Final = FIELD_HEAD_BYTES + len(_NO_FLAGS)

# Stands behind each field of a page. It is random, so no value can contain it: if it is found where
# it was put, the field before it was decoded up to its border and no further.
_BORDER: Final = os.urandom(8)
_PACKED_BORDER: Final = b"\xc4" + bytes([len(_BORDER)]) + _BORDER
_ITEMS: Final = 3  # offset, cell, border


@dataclass(frozen=True, slots=True)
class Page:
    """The readable fields of a page in columns, and the keys of the others.

    Attributes:
        names: keys.
        offsets: up to which each was folded.
        cells: as many.
        damaged: the keys, as bytes, of fields that cannot be read, or keys that are not UTF-8.
    """

    names: list[str]
    offsets: list[int]
    cells: list[Cell]
    damaged: list[bytes]


def content_of(cell: Cell) -> bytes:
    """Return what a key with this cell holds, as a digest counts it: flags, then the cell."""
    return _NO_FLAGS + pack_cell(cell)


def content_in(field: bytes) -> bytes:
    """Return what a digest counts of a field of the full-state hash, also of a damaged one."""
    return field[FIELD_HEAD_BYTES:]


def contents_in(fields: Iterable[bytes]) -> list[bytes]:
    """Return the content of each field, as `content_in`."""
    return [field[FIELD_HEAD_BYTES:] for field in fields]


def pack_field(key: str | bytes, offset: int, cell: Cell) -> bytes:
    """Return a field of the full-state hash.

    Args:
        key: whose field it is, or its UTF-8 bytes; the check sum covers it.
        offset: of the newest batch that was folded into it.
        cell: what the key holds.
    """
    return with_head(key.encode() if isinstance(key, str) else key, offset, content_of(cell))


def pack_fields(
    keys: Sequence[bytes], offset: int, cells: Iterable[Cell], digest: Digest
) -> list[bytes]:
    """Return fields of the full-state hash, and add their entries to its digest; in columns.

    Args:
        keys: as UTF-8 bytes.
        offset: of the newest batch that was folded into all of them.
        cells: as many.
        digest: changed in place.
    """
    contents = [_NO_FLAGS + packed for packed in map(msgpack.Packer().pack, cells)]
    digest.add_all(keys, contents)
    at = _OFFSET.pack(offset)
    rests = [at + content for content in contents]
    return [*map(add, map(_CHECK.pack, map(crc32, rests, map(crc32, keys))), rests)]


def read_page(keys: Sequence[bytes], fields: Sequence[bytes]) -> Page:
    """Decode a page of the full-state hash; what cannot be read is left out and named."""
    try:
        return Page(decode_keys(keys), *unpack_fields(keys, fields), [])
    except DecodeError:
        page = Page([], [], [], [])
    for key, one in zip(keys, fields, strict=True):
        try:
            (name,), ((offset,), (cell,)) = decode_keys([key]), unpack_fields([key], [one])
        except DecodeError:
            page.damaged.append(key)
        else:
            page.names.append(name)
            page.offsets.append(offset)
            page.cells.append(cell)
    return page


def name_of(key: bytes) -> str:
    """Return how a damaged field is named: its key, with escapes where that is not UTF-8."""
    return key.decode(errors="backslashreplace")


def decode_keys(keys: Iterable[bytes]) -> list[str]:
    """Decode keys of the full-state hash.

    Raises:
        DecodeError: one is not UTF-8.
    """
    try:
        return [key.decode() for key in keys]
    except UnicodeDecodeError:
        raise DecodeError("a key of the full-state hash is not UTF-8") from None


def _are_whole(keys: Sequence[bytes], fields: Sequence[bytes]) -> bool:
    """Whether all fields fit their check sums and have no flags, at half the cost of each alone."""
    if min(map(len, fields), default=_CELL_AT + 1) <= _CELL_AT:
        return False
    found = map(crc32, [field[CHECK_BYTES:] for field in fields], map(crc32, keys))
    given = b"".join([field[:CHECK_BYTES] for field in fields])
    flags = {field[FIELD_HEAD_BYTES] for field in fields}
    return struct.pack(f">{len(fields)}I", *found) == given and flags <= {0}


def _refuse_damaged(keys: Sequence[bytes], fields: Sequence[bytes]) -> None:
    """Raise for the first field that is damaged."""
    for key, field in zip(keys, fields, strict=True):
        if len(field) <= _CELL_AT:
            raise DecodeError("a field of the full-state hash has no value")
        if check_of(field[CHECK_BYTES:], key) != field[:CHECK_BYTES]:
            raise DecodeError("a field of the full-state hash does not fit its check sum")
        if field[FIELD_HEAD_BYTES]:
            raise DecodeError(
                f"a field of the full-state hash has the flags {field[FIELD_HEAD_BYTES]}, "
                "which this program does not know"
            )


@refuses
def unpack_fields(keys: Sequence[bytes], fields: Sequence[bytes]) -> tuple[list[int], list[Cell]]:
    """Decode fields of the full-state hash into two columns, offsets and cells.

    One call of the MessagePack library decodes all fields: with a type byte in front, the offset is
    an item too.

    Raises:
        DecodeError: the check sum of a field does not fit, it has flags, or it is not exactly one
            cell.
    """
    if not _are_whole(keys, fields):
        _refuse_damaged(keys, fields)
    count = len(fields)
    items = unpack(
        _ARRAY32.pack(0xDD, _ITEMS * count)
        + b"".join(
            [
                b"\xcf" + one[CHECK_BYTES:FIELD_HEAD_BYTES] + one[_CELL_AT:] + _PACKED_BORDER
                for one in fields
            ]
        ),
    )
    offsets, cells, borders = items[::_ITEMS], items[1::_ITEMS], items[2::_ITEMS]
    if borders.count(_BORDER) != count:
        raise DecodeError("a field of the full-state hash is not exactly one value")
    if not set(map(type, cells)) <= CELL_TYPES:
        raise DecodeError("a field of the full-state hash is neither a scalar nor a packed value")
    return offsets, cells
