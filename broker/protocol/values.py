"""What a key and a value may be, checked at the caller's own call so that nothing bad is buffered.

The domain is what MessagePack says the same way in every language: None, bool, 64-bit integers,
float64, str, bytes, lists, maps with str keys, and aware datetimes (extension type -1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from numbers import Rational, Real
from operator import index
from typing import Any

import msgpack

from broker.errors import EncodeError
from broker.protocol.constants import INT_MAX, INT_MIN, MAX_DEPTH, MAX_KEY_BYTES, MAX_VALUE_BYTES
from broker.protocol.operations import Column

# Largest MessagePack size of a number, None, bool or timestamp; str, bytes, lists and maps need at
# most 5 bytes beside their content.
SCALAR_BYTES = 15
HEAD_BYTES = 5
STAMP_BYTES = 9

SHOWN = 60  # characters of a bad value in an error
SHOWN_BITS = 160

CONTAINERS = frozenset((list, dict))


def admit_key(key: str) -> int:
    """Return an upper bound of a key's packed size in bytes, or say why it cannot be a key.

    Raises:
        EncodeError: not a str, empty, over 1,024 bytes of UTF-8, or not encodable.
    """
    if type(key) is not str and not isinstance(key, str):
        raise EncodeError(f"key {key!r} is a {type(key).__name__}; keys are str")
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
    """Return the value as it will be sent, and an upper bound of its packed size in bytes.

    Lists and maps are copied, so that a later change by the caller cannot alter what is sent.
    Tuples become lists; numpy-like scalars become int or float.

    Raises:
        EncodeError: a type, range, depth (32) or size (1 MiB) that cannot be sent; the message
            names the value, the limit and the fix.
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
    if size > MAX_VALUE_BYTES + HEAD_BYTES:
        # The bound takes every number for a long one; only now does the true size matter.
        size = len(msgpack.packb(value, datetime=True))
        if size > MAX_VALUE_BYTES + HEAD_BYTES:
            raise EncodeError(
                f"value {_short(value)} packs to {size} bytes, over the limit of "
                f"{MAX_VALUE_BYTES}; split it over several keys"
            )
    return value, size


def admit_amount(amount: object) -> int | float:
    """Return the amount of an increment, or say why it cannot be one.

    Raises:
        EncodeError: not a number (bools are not), or out of the 64-bit range.
    """
    value, _ = admit(amount)
    if type(value) not in (int, float):
        raise EncodeError(f"amount {_short(amount)} is not a number; use an int or a float")
    return value  # type: ignore[no-any-return]


def admit_given(column: Column, given: object) -> tuple[Any, int]:
    """Return what goes into an operation's column, and an upper bound of its packed size in bytes.

    Args:
        column: what the operation comes with; of `Column.NOTHING` it takes no bytes.
        given: the caller's value or amount.

    Raises:
        EncodeError: as `admit` or `admit_amount`.
    """
    if column is Column.VALUES:
        return admit(given)
    if column is Column.AMOUNTS:
        return admit_amount(given), SCALAR_BYTES
    return None, 0


def within_depth(column: Iterable[object]) -> bool:
    """Whether decoded values nest at most 32 deep and their maps have str keys only.

    One level of all values at a time: a call for each of them would cost more than to decode it.
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
    """Every type, at any depth; `admit` has the two or three that matter for speed."""
    if value is None or isinstance(value, bool):
        return value, SCALAR_BYTES
    if isinstance(value, float):
        return float(value), SCALAR_BYTES
    if isinstance(value, str):
        # Not str(value), which a subclass (an enum, say) may answer as it likes.
        return str.__str__(value), _utf8_length(value, "value") + HEAD_BYTES
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), len(bytes(value)) + HEAD_BYTES
    if isinstance(value, datetime):
        return _admit_datetime(value), SCALAR_BYTES
    if isinstance(value, (Mapping, list, tuple)):
        return _admit_container(value, depth)
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(value, Real) and not isinstance(value, Rational):
            return float(value), SCALAR_BYTES
        raise EncodeError(
            f"value {_short(value)} is a {type(value).__name__}; values are None, bool, int, "
            "float, str, bytes, list, dict with str keys, or aware datetime"
        ) from None
    if not INT_MIN <= number <= INT_MAX:
        shown = number if number.bit_length() <= SHOWN_BITS else f"of {number.bit_length()} bits"
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
    return pairs, total


def _admit_datetime(value: datetime) -> datetime:
    if value.utcoffset() is None:
        raise EncodeError(f"datetime {value} has no time zone; use datetime.now(timezone.utc)")
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise EncodeError(
            f"datetime {value} is outside the years 1 to 9999 in UTC; send it as str"
        ) from None
    # Plain, whatever subclass it was.
    return datetime.combine(utc.date(), utc.time(), UTC)


def _utf8_length(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise EncodeError(f"{what} {text[:40]!r} is not valid Unicode: {error.reason}") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
