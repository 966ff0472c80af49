"""Packed values: one value as MessagePack, made at the call and read at the read. No I/O.

The extension packs and unpacks plain values (`broker.speedups`), and leaves all others, and all
faults, to its twins here, which have `ormsgpack` do the work. That is two to three times as fast
as `msgpack`, and takes only text as map keys; where there is no wheel of it, `msgpack` does the
same. Tests compare all of them. What is a value of ours is decided here and in
`broker.protocol.values`, never by what a library happens to accept.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgpack

from broker.errors import DecodeError
from broker.protocol.constants import MAX_DEPTH
from broker.protocol.messages import CELL_TYPES, Value
from broker.protocol.values import CONTAINERS, MAX_PACKED_BYTES, within_depth
from broker.speedups import native

try:
    import ormsgpack
except ImportError:  # pragma: no cover - tests call both ways by name
    ormsgpack = None  # type: ignore[assignment]

# First bytes of arrays and maps; as many of them as levels are allowed cannot nest deeper.
_HEADS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
FEW: Final = 8
_EXTENSION_FAULT: Final = "ext_hook"
_TIMESTAMP: Final = -1
_TIMESTAMP_HEAD: Final = struct.Struct(">BBb")


class _NotPlain(Exception):  # noqa: N818 - no error: `admit` looks at the value
    """A value has a part that only the exact path knows."""


# -- at the call ----------------------------------------------------------------------------------


def packed_by_python(value: list[Any] | dict[str, Any] | bytes) -> bytes | None:
    """Return a value of exact types as MessagePack; None if `admit` has to look at it."""
    try:
        if type(value) is not bytes and not _is_plain(value, 1):
            return None
        cell = _pack(value)
    except (_NotPlain, TypeError, ValueError):
        return None
    return cell if len(cell) <= MAX_PACKED_BYTES else None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a list or map holds only exact types, and does not nest too deep.

    Another thread that changes it meanwhile harms only this value: nobody else looks into it.
    """
    # A copy in one step: a map that another thread changes meanwhile cannot be iterated over.
    items = (*value.values(),) if type(value) is dict else value
    # Of few items a loop is the quickest look.
    if len(items) > FEW and CELL_TYPES.issuperset(map(type, items)):
        return True
    for item in items:
        kind = type(item)
        if kind not in CELL_TYPES and (
            kind not in CONTAINERS or depth >= MAX_DEPTH or not _is_plain(item, depth + 1)
        ):
            return False
    return True


def _refuse(_value: object) -> NoReturn:
    raise _NotPlain


def pack_by_msgpack(value: Any) -> bytes:
    """Pack a value of plain types whose map keys are text; any error otherwise."""
    if not within_depth((value,)):
        raise _NotPlain
    return msgpack.packb(value, default=_refuse, strict_types=True)  # type: ignore[no-any-return]


_pack: Final = pack_by_msgpack if ormsgpack is None else ormsgpack.packb

# Returns a value of exact types as MessagePack; None if `admit` has to look at it.
packed: Final[Callable[[list[Any] | dict[str, Any] | bytes], bytes | None]] = (
    packed_by_python if native is None else native.packed
)


# -- at the read ----------------------------------------------------------------------------------


def _no_value(error: Exception) -> DecodeError:
    return DecodeError(f"not MessagePack of our domain: {str(error) or type(error).__name__}")


def _no_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"unknown extension type {code}")


def unpack_by_msgpack(data: bytes) -> Any:
    """Return the value of packed bytes, as `unpacked`."""
    unpacker = msgpack.Unpacker(timestamp=3, ext_hook=_no_extension, max_buffer_size=0)
    unpacker.feed(data)
    try:
        value = unpacker.unpack()
    except (ValueError, OverflowError, msgpack.UnpackException) as error:
        raise _no_value(error) from None
    if type(value) in CONTAINERS and not within_depth((value,)):
        raise DecodeError("it nests too deep, or a map key is not a str")
    return value


def _timestamp(code: int, data: bytes) -> Any:
    if code != _TIMESTAMP:
        _no_extension(code, data)
    # By the rules of the other library.
    return unpack_by_msgpack(_TIMESTAMP_HEAD.pack(0xC7, len(data), code) + data)


def unpack_by_ormsgpack(data: bytes) -> Any:
    """Return the value of packed bytes, as `unpacked`."""
    try:
        value = ormsgpack.unpackb(data, ext_hook=_timestamp)
    except (ValueError, OverflowError) as error:
        if _EXTENSION_FAULT in str(error):
            # The library does not say why.
            return unpack_by_msgpack(data)
        raise _no_value(error) from None
    if (
        len(data) > MAX_DEPTH
        and len(data) - len(data.translate(None, _HEADS)) > MAX_DEPTH
        and not within_depth((value,))
    ):
        raise DecodeError("it nests too deep")
    return value


unpacked_by_python: Final = unpack_by_msgpack if ormsgpack is None else unpack_by_ormsgpack

# Returns the value that packed bytes begin with; lists and maps are the caller's own. It raises
# DecodeError unless that is one of our domain: a map key is no text, it nests deeper than 32
# levels, holds an unknown extension, or is no MessagePack.
unpacked: Final[Callable[[bytes], Value]] = (
    unpacked_by_python if native is None else native.unpacker(unpacked_by_python)
)
