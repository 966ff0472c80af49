"""Check sums, and the head that every field of the full state begins with. No I/O.

A check sum finds faults, not attacks: CRC-32 misses one random change in 2^32.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

from broker.errors import DecodeError
from broker.protocol.constants import CHECK_BYTES, FIELD_HEAD_BYTES

_CHECK: Final = struct.Struct(">I")
_OFFSET: Final = struct.Struct(">Q")


def check_of(data: bytes, before: bytes = b"") -> bytes:
    """Return the check sum of `before` and `data` together, as 4 bytes."""
    return _CHECK.pack(crc32(data, crc32(before)))


def with_head(name: bytes, offset: int, content: bytes) -> bytes:
    """Return a field of the full state: check sum, offset, content.

    Args:
        name: of the field; the check sum covers it, so a field under another name does not fit.
        offset: up to which it was folded.
        content: flags and what follows them.
    """
    rest = _OFFSET.pack(offset) + content
    return check_of(rest, name) + rest


def without_head(name: bytes, field: bytes) -> tuple[int, bytes]:
    """Return offset and content of a field that `with_head` made.

    Raises:
        DecodeError: it is too short, or does not fit its check sum.
    """
    if len(field) <= FIELD_HEAD_BYTES:
        raise DecodeError("a field of the full state has no content")
    rest = field[CHECK_BYTES:]
    if check_of(rest, name) != field[:CHECK_BYTES]:
        raise DecodeError("a field of the full state does not fit its check sum")
    return _OFFSET.unpack_from(rest)[0], field[FIELD_HEAD_BYTES:]
