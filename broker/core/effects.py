"""What a shard of a replica answers to each input: what to read next, what changed, what to tell.

`ShardState` does no I/O. Each of its inputs returns the effects that the caller has to carry out,
in their order, as h11 returns events. At most one read is wanted at a time: the newest request
counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.core.transitions import Event
from broker.model import Change, Status
from broker.protocol.messages import Position


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read the head and the log after a position; give the answer to `log_page`."""

    after: Position


@dataclass(frozen=True, slots=True)
class LoadState:
    """Read the full state; give it to `begin_load`, `load_page` (many times) and `end_load`.

    Attributes:
        attempt: loads since a packet last fitted; wait longer the more there were.
    """

    attempt: int


@dataclass(frozen=True, slots=True)
class StopReading:
    """The answer to the last request is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Nothing arrived within the staleness bound; try another connection."""


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The shard is in another phase now."""

    before: Status
    after: Status
    event: Event


@dataclass(frozen=True, slots=True)
class ChangesVisible:
    """These changes became visible, in this order; only where changes are watched."""

    changes: list[Change]


@dataclass(frozen=True, slots=True)
class FullStateWritten:
    """A scheduler wrote the full state up to this offset; the log to read after it is short."""

    offset: int


@dataclass(frozen=True, slots=True)
class KeysRepaired:
    """These keys differed from the history, and hold what it says now."""

    keys: list[str]


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
)
