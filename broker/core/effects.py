"""The effects that a shard of a replica returns for each input: reads to do, changes to report.

`ShardState` does no I/O. Each of its inputs returns effects, and the caller carries them out in
order, as with the events of h11. At most one read is requested at a time: the newest request
replaces the one before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from broker.core.changes import ChangeColumns
from broker.core.transitions import Event
from broker.model import Status
from broker.protocol.messages import Position


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read the head and the log after a position; pass the result to `log_page`."""

    after: Position


@dataclass(frozen=True, slots=True)
class LoadState:
    """Read the full state; pass it to `begin_load`, `load_page` (many times) and `end_load`.

    Attributes:
        attempt: loads since a packet last followed the position; the more, the longer the wait.
    """

    attempt: int


@dataclass(frozen=True, slots=True)
class StopReading:
    """Stop the requested read; its result is no longer needed."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Nothing arrived within the staleness bound; open a new connection."""


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The shard's phase changed."""

    before: Status
    after: Status
    event: Event


@dataclass(frozen=True, slots=True)
class ChangesVisible:
    """These changes became visible, in this order; only where changes are watched."""

    changes: list[ChangeColumns]


@dataclass(frozen=True, slots=True)
class FullStateWritten:
    """A scheduler wrote the full state up to this offset; the log to read after it is short."""

    offset: int


@dataclass(frozen=True, slots=True)
class KeysRepaired:
    """These keys differed from the history, and were corrected; log them.

    A key of a table is `table[key]`.
    """

    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class DeltasRefused:
    """Increments were refused, of what is not a number; log them, not too often."""

    named: Sequence[str]


@dataclass(frozen=True, slots=True)
class LoadAltered:
    """The full state that was loaded is not what schedulers wrote; log it.

    Attributes:
        ranges: key ranges, 0 to 255.
    """

    ranges: Collection[int]


@dataclass(frozen=True, slots=True)
class ForeignHistory:
    """The channel also carries the history of another database; its packets are ignored; log it."""

    epoch: bytes


Read: TypeAlias = ReadLog | LoadState
Effect: TypeAlias = (
    ReadLog
    | LoadState
    | StopReading
    | Reconnect
    | PhaseChanged
    | ChangesVisible
    | FullStateWritten
    | KeysRepaired
    | DeltasRefused
    | LoadAltered
    | ForeignHistory
)
