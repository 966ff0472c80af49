"""The check sums that bytes written by a test need: as PROTOCOL.md says, without the product."""

from __future__ import annotations

import struct
from hashlib import sha1
from typing import Any
from zlib import crc32

import msgpack


def with_check(chunk: bytes) -> bytes:
    """Return an array or a map, which lacks its last object, with the check sum of a chunk there.

    What is neither gets the check sum behind it.
    """
    head = chunk[:1]
    if head and 0x80 <= head[0] < 0xA0 and head[0] & 15 != 15:
        chunk = bytes((head[0] + 1,)) + chunk[1:]
    elif head == b"\xdd":
        chunk = head + struct.pack(">I", int.from_bytes(chunk[1:5]) + 1) + chunk[5:]
    return checked(chunk)


def checked(chunk: bytes) -> bytes:
    """Return bytes with a check sum behind them, whatever they are."""
    chunk += b"\xce"
    return chunk + struct.pack(">I", crc32(chunk))


def batch_of(fields: list[Any]) -> bytes:
    """Return the elements of a batch, packed, with the check that its bytes before it need."""
    packed = [msgpack.packb(one, datetime=True) for one in fields]
    header = msgpack.Packer().pack_array_header(len(fields))
    return b"".join(
        (header, *packed[:13], head_check(header + b"".join(packed[:13])), *packed[14:])
    )


def head_check(head: bytes) -> bytes:
    """Return the check of a batch, packed, for its bytes before it."""
    return b"\xce" + sha1(head, usedforsecurity=False).digest()[:4]
