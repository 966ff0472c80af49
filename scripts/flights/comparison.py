"""Comparison of two states: digests, and the keys that differ."""

from collections.abc import Mapping
from hashlib import sha256

import msgpack

NOTHING = object()


def digest(state: Mapping[str, object]) -> str:
    """Return the SHA-256 of a state, the same for equal states whatever the order of their keys."""
    total = sha256()
    for key in sorted(state):
        total.update(packed(key))
        total.update(packed(state[key]))
    return total.hexdigest()


def differences(state: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Return one line for each key that is missing, unexpected, or has another value; sorted."""
    lines = []
    for key in sorted(state.keys() | expected.keys()):
        here, there = state.get(key, NOTHING), expected.get(key, NOTHING)
        if here is NOTHING or there is NOTHING or packed(here) != packed(there):
            lines.append(f"{key}: {shown(here)}, expected {shown(there)}")
    return lines


def packed(value: object) -> bytes:
    """Return bytes that are equal only for values of the same type and content."""
    data: bytes = msgpack.packb(ordered(value), datetime=True)
    return data


def ordered(value: object) -> object:
    """Return the value with every map sorted by its keys."""
    if isinstance(value, Mapping):
        return {key: ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [ordered(part) for part in value]
    return value


def shown(value: object) -> str:
    """Return a value as text."""
    return "nothing" if value is NOTHING else repr(value)
