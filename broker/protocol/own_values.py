"""Copies of values, so that a caller's changes stay with the caller. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.protocol.values import CONTAINERS


def owned(value: Any) -> Any:
    """Return a value of the caller's own: lists and maps are copied, at every level.

    Everything else cannot be changed, and is returned as it is. Values nest at most 32 deep.
    """
    kind = type(value)
    if kind is dict:
        if CONTAINERS.isdisjoint(map(type, value.values())):
            return value.copy()
        return {key: owned(item) for key, item in value.items()}
    if kind is list:
        if CONTAINERS.isdisjoint(map(type, value)):
            return value.copy()
        return [owned(item) for item in value]
    return value


def owned_map(values: dict[str, Any]) -> dict[str, Any]:
    """Return the map itself, which nobody else holds, or one with copies of its values."""
    if can_change(values.values()):
        return {key: owned(value) for key, value in values.items()}
    return values


def can_change(values: Iterable[Any]) -> bool:
    """Whether any of these values could be changed by a caller: whether one is a list or a map."""
    return not CONTAINERS.isdisjoint(map(type, values))
