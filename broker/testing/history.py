"""A whole run's records, sorted by kind, with the lineage that the witness saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, TypeVar

from broker.testing.lineage import Lineage
from broker.testing.records import Final, Logged, Place, Record

R = TypeVar("R", bound=Record)

WITNESS = "folded"


class Violation(NamedTuple):
    """Something in a history that breaks a promise.

    Attributes:
        words: what, for a person.
        at: monotonic seconds at which it shows; None where no moment can be named.
    """

    words: str
    at: float | None = None

    def __str__(self) -> str:
        """Return the words."""
        return self.words


class History:
    """What all processes of a run recorded; each process' records in their order.

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
        """All batches that the witness read."""
        return Lineage(self.of(Logged))

    @cached_property
    def heads(self) -> dict[int, Place]:
        """Where each shard stood in the end, by Redis' own word."""
        return {final.place.shard: final.place for final in self.of(Final) if final.who == WITNESS}
