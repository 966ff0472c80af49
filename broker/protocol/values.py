"""Validate keys and values in the caller's call, so that nothing invalid is buffered.

Valid are the types that MessagePack represents equally in every language: None, bool, 64-bit
integers, float64, str, bytes, lists, maps with str keys, and aware datetimes (extension type -1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from numbers import Rational, Real
from operator import index
from typing import Any

import msgpack

from broker.errors import EncodeError
from broker.protocol.constants import INT_MAX, INT_MIN, MAX_DEPTH, MAX_KEY_BYTES, MAX_VALUE_BYTES

# Maximum MessagePack size of a number, None, bool or timestamp; and of the header of str, bytes,
# lists and maps.
SCALAR_BYTES = 15
HEAD_BYTES = 5
STAMP_BYTES = 9
MAX_PACKED_BYTES = MAX_VALUE_BYTES + HEAD_BYTES  # of a value

MAX_SHOWN_CHARS = 60  # of an invalid value in an error text
MAX_SHOWN_BITS = 160

CONTAINERS = frozenset((list, dict))
RAW_FORMATS = frozenset("Bbc")  # of memory that holds bytes, and not numbers


def admit_key(key: str) -> int:
    """Validate a key; return an upper bound of its packed size in bytes.

    Raises:
        EncodeError: not a str, empty, over 1,024 bytes of UTF-8, or not encodable.
    """
    if type(key) is not str and not isinstance(key, str):
        raise EncodeError(f"key {_short(key)} is a {type(key).__name__}; keys are str")
    if not key:
        raise EncodeError(f"key is empty; a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8")
    size = len(key) if key.isascii() else _utf8_length(key, "key")
    if size > MAX_KEY_BYTES:
        raise EncodeError(
            f"key {key[:40]!r}... has {size} bytes of UTF-8, over the limit of {MAX_KEY_BYTES}; "
            "shorten it"
        )
    return size + HEAD_BYTES


def admit(value: object) -> tuple[Any, int]:
    """Validate a value; return it as it will be sent, and an upper bound of its packed size.

    Lists and maps are copied, so that later changes by the caller have no effect. Tuples become
    lists; numpy-like scalars become int or float.

    Raises:
        EncodeError: unsupported type, or out of the limits of range, depth (32) or size (1 MiB).
    """
    kind = type(value)
    if kind is float or kind is bool or value is None:
        return value, SCALAR_BYTES
    if kind is int:
        if INT_MIN <= value <= INT_MAX:  # type: ignore[operator]
            return value, SCALAR_BYTES
    elif kind is str and value.isascii():  # type: ignore[attr-defined]
        size = len(value)  # type: ignore[arg-type]
        if size <= MAX_VALUE_BYTES:
            return value, size + HEAD_BYTES
    value, size = _admit_slowly(value, 1)
    if size > MAX_PACKED_BYTES:
        # The bound assumes the longest form of every number; compute the true size.
        size = len(msgpack.packb(value, datetime=True))
        if size > MAX_PACKED_BYTES:
            raise EncodeError(
                f"value {_short(value)} packs to {size} bytes, over the limit of "
                f"{MAX_VALUE_BYTES}; split it over several keys"
            )
    return value, size


def admit_amount(amount: object) -> tuple[int | float, int]:
    """Validate the amount of an increment; return it and an upper bound of its packed size.

    Raises:
        EncodeError: not a number (bools are not), or out of the 64-bit range.
    """
    value, size = admit(amount)
    if type(value) is not int and type(value) is not float:
        raise EncodeError(f"amount {_short(amount)} is not a number; use an int or a float")
    return value, size


def within_depth(column: Iterable[object]) -> bool:
    """Whether decoded values nest at most 32 deep and their maps have str keys only.

    It checks one level of all values at a time: a call per value would cost more than decoding.
    """
    level: list[Any] = list(column)
    for _ in range(MAX_DEPTH):
        kinds = set(map(type, level))
        if kinds.isdisjoint(CONTAINERS):
            return True
        lists = level if kinds == {list} else [one for one in level if type(one) is list]
        maps = [one for one in level if type(one) is dict] if dict in kinds else []
        if not set(map(type, chain.from_iterable(maps))) <= {str}:
            return False
        level = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, maps))]
    return CONTAINERS.isdisjoint(map(type, level))


def _admit_slowly(value: object, depth: int) -> tuple[Any, int]:  # noqa: PLR0911 - one a type
    """Handle every type at any depth; `admit` has the fast paths."""
    if value is None or isinstance(value, bool):
        return value, SCALAR_BYTES
    if isinstance(value, float):
        return float(value), SCALAR_BYTES
    if isinstance(value, str):
        # Not str(value), which a subclass (such as an enum) may override.
        return str.__str__(value), _utf8_length(value, "value") + HEAD_BYTES
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _admit_bytes(value)
    if isinstance(value, datetime):
        return _admit_datetime(value), SCALAR_BYTES
    if isinstance(value, (Mapping, list, tuple)):
        return _admit_container(value, depth)
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(value, Real) and not isinstance(value, Rational):
            return _admit_real(value), SCALAR_BYTES
        raise EncodeError(
            f"value {_short(value)} is a {type(value).__name__}; values are None, bool, int, "
            "float, str, bytes, list, dict with str keys, or aware datetime"
        ) from None
    if not INT_MIN <= number <= INT_MAX:
        shown = (
            number if number.bit_length() <= MAX_SHOWN_BITS else f"of {number.bit_length()} bits"
        )
        raise EncodeError(
            f"integer {shown} is outside {INT_MIN} to {INT_MAX}; send it as str or float"
        )
    return number, SCALAR_BYTES


def _admit_container(
    value: Mapping[object, object] | Sequence[object], depth: int
) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise EncodeError(f"value nests deeper than {MAX_DEPTH} levels; flatten it")
    total = HEAD_BYTES
    if not isinstance(value, Mapping):
        items = []
        for item in value:
            admitted, size = _admit_slowly(item, depth + 1)
            items.append(admitted)
            total += size
        return items, total
    pairs = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise EncodeError(f"map key {_short(key)} is a {type(key).__name__}; map keys are str")
        admitted, size = _admit_slowly(item, depth + 1)
        pairs[str.__str__(key)] = admitted
        total += size + _utf8_length(key, "map key") + HEAD_BYTES
    if len(pairs) != len(value):
        raise EncodeError(f"map {_short(value)} has keys that are the same text; a key comes once")
    return pairs, total


def _admit_bytes(value: bytes | bytearray | memoryview) -> tuple[bytes, int]:
    if isinstance(value, memoryview) and value.format not in RAW_FORMATS:
        raise EncodeError(
            f"value is a memoryview of numbers ({value.format}); send a list, or its tobytes()"
        )
    copy = bytes(value)
    return copy, len(copy) + HEAD_BYTES


def _admit_real(value: Any) -> float:
    """Return a real number as float64, if it is one: a long double may have more digits."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value and value == value:  # noqa: PLR0124 - NaN alone is not itself
        raise EncodeError(
            f"value {_short(value)} is a {type(value).__name__}, of which float64 would make "
            f"{number!r}; send float(value) or str(value)"
        )
    return number


def _admit_datetime(value: datetime) -> datetime:
    try:
        offset = value.utcoffset()
        # A Timestamp of pandas has a part that no datetime holds.
        nanoseconds = getattr(value, "nanosecond", 0)
        utc = value if offset is None else value.astimezone(UTC)
        # A plain datetime, not a subclass.
        plain = datetime.combine(utc.date(), utc.time(), UTC)
    except OverflowError:
        raise EncodeError(
            f"datetime {value} is outside the years 1 to 9999 in UTC; send it as str"
        ) from None
    except ValueError as error:  # that of pandas which is not a time
        raise EncodeError(f"datetime {value} is no time ({error}); send None") from None
    if offset is None:
        raise EncodeError(f"datetime {value} has no time zone; use datetime.now(timezone.utc)")
    if nanoseconds:
        raise EncodeError(f"datetime {value} has nanoseconds; round it to microseconds")
    return plain


def _utf8_length(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise EncodeError(f"{what} {text[:40]!r} is not valid Unicode: {error.reason}") from None


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a value's own, or too deep: the error is about something else
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
