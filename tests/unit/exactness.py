"""Equality by type and value, as a reader in another language compares; and maps of cells."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import isnan
from typing import Any

from broker.protocol.cells import cell_of, value_of


def exact(value: object) -> Any:
    """Return something that is equal only for the same value of the same type.

    To Python 1, 1.0 and True are equal and NaN is not even equal to itself; on the wire it is the
    other way round. Maps are equal whatever the order of their keys, NaNs whatever their sign.
    """
    if isinstance(value, float):
        return ("float", "nan" if isnan(value) else struct.pack(">d", value))
    if isinstance(value, Mapping):
        return ("map", sorted((key, exact(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", [exact(item) for item in value])
    return (type(value).__name__, value)


def held(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as a shard holds them: as cells."""
    return {key: cell_of(value)[0] for key, value in values.items()}


def read(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return cells as a reader gets them."""
    return {key: value_of(cell) for key, cell in cells.items()}
