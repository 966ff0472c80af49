"""Check sums, of chunks, batches and fields of the full state. No I/O.

A check sum finds faults, not attacks: CRC-32 misses one random change in 2^32.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from zlib import crc32

from broker.errors import DecodeError
from broker.protocol.constants import CHECK_BYTES, FIELD_HEAD_BYTES

# What a chunk ends with until its check sum is known: a number of the same form.
ANY_CHECK: Final = (1 << 8 * CHECK_BYTES) - 1

_UINT32: Final = 0xCE
_CHECK: Final = struct.Struct(">I")
_OFFSET: Final = struct.Struct(">Q")


def _fast_sha1() -> Callable[[bytes], Any]:
    """Return SHA-1 without the keyword, which costs half as much again as the hash."""
    try:
        hashlib.sha1(b"")  # noqa: S324 - detects faults, not attacks
    except ValueError:
        # The system permits it only for what is not security.
        return partial(hashlib.sha1, usedforsecurity=False)
    return hashlib.sha1


# For digests of states and checks of batches.
sha1: Final = _fast_sha1()


def check_of(data: bytes | memoryview, before: bytes = b"") -> bytes:
    """Return the check sum of `before` and `data` together, as 4 bytes."""
    return _CHECK.pack(crc32(data, crc32(before)))


def sealed(chunk: bytes) -> bytes:
    """Return a chunk, whose last element is `ANY_CHECK`, with its check sum in that place."""
    body = memoryview(chunk)[:-CHECK_BYTES]
    return b"".join((body, check_of(body)))


def check_sealed(chunk: bytes) -> None:
    """Refuse a chunk whose bytes are not those that its producer wrote.

    Raises:
        DecodeError: it does not end with the check sum of its bytes.
    """
    if len(chunk) <= CHECK_BYTES or chunk[-CHECK_BYTES - 1] != _UINT32:
        raise DecodeError("chunk does not end with a check sum")
    given, found = chunk[-CHECK_BYTES:], check_of(memoryview(chunk)[:-CHECK_BYTES])
    if found != given:
        raise DecodeError(f"check sum of the chunk is {given.hex()}, its bytes give {found.hex()}")


def check_of_head(head: bytes) -> int:
    """Return the check of a batch, made from its bytes in front of that element."""
    return int.from_bytes(sha1(head).digest()[:CHECK_BYTES])


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
