"""Changes one by one where the core has them in columns, and all that a queue holds at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from broker.core.changes import ChangeColumns
from broker.core.queues import ReaderQueue
from broker.model import Change

T = TypeVar("T")


def rows(columns: Iterable[ChangeColumns]) -> list[Change]:
    """Return changes with cells as values."""
    return [change for one in columns for change in one.changes(one.cells)]  # type: ignore[arg-type]


def columns(changes: Iterable[Change]) -> list[ChangeColumns]:
    """Return changes, with cells as values, as columns of one each."""
    return [
        ChangeColumns(
            *(one.operation, [one.key], [one.value], [one.timestamp_ms]),  # type: ignore[list-item]
            *(one.position, one.shard, one.resync),
        )
        for one in changes
    ]


def all_of(queue: ReaderQueue[Any, T]) -> list[T]:
    """Return everything that waits, maybe nothing; at the end raise what ends the queue."""
    found: list[T] = []
    try:
        while (items := queue.items()) is not None:
            found += items
    except Exception:
        if not found:
            raise
    return found
