"""Looks at whole columns: by the extension, or by its twins here. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from broker.speedups import native


def kinds_by_python(column: list[Any]) -> set[type]:
    """Return the types of items."""
    return set(map(type, column))


def length_bounds_by_python(texts: list[str]) -> tuple[int, int]:
    """Return the min and max length of texts, in characters; (0, 0) for none."""
    lengths = list(map(len, texts))
    return min(lengths, default=0), max(lengths, default=0)


kinds_of: Final[Callable[[list[Any]], set[type]]] = (
    kinds_by_python if native is None else native.kinds_of
)
length_bounds: Final[Callable[[list[str]], tuple[int, int]]] = (
    length_bounds_by_python if native is None else native.length_bounds
)
