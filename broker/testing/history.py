"""All records of a run by kind, and the lineage that the witness recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, TypeVar

from broker.testing.lineage import Lineage
from broker.testing.records import Applied, Final, Logged, Record, ShardPosition

R = TypeVar("R", bound=Record)

WITNESS = "folded"


class Violation(NamedTuple):
    """Something in a history that breaks a promise.

    Attributes:
        words: description.
        at: time in monotonic seconds; None if there is no specific time.
    """

    words: str
    at: float | None = None

    def __str__(self) -> str:
        """Return the words."""
        return self.words


class History:
    """The records of all processes of a run; those of each process in order.

    Args:
        records: of all files, one file after the other.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_kind: dict[type, list[Record]] = defaultdict(list)
        for record in records:
            self._by_kind[type(record)].append(record)

    def of(self, kind: type[R]) -> list[R]:
        """Return all records of a kind."""
        return self._by_kind[kind]  # type: ignore[return-value]

    @cached_property
    def lineage(self) -> Lineage:
        """The order of all batches that the witness read, or a replica applied."""
        return Lineage(self.of(Logged), self.of(Applied))

    @cached_property
    def heads(self) -> dict[int, ShardPosition]:
        """The final position of each shard, as read from Redis."""
        return {final.place.shard: final.place for final in self.of(Final) if final.who == WITNESS}
