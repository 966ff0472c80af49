"""What one shard of a replica shows: its content, and what that is worth at a moment. No I/O.

Everything here only reads, so any thread may call it.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from broker.core.content import Content
from broker.core.doubts import Doubts
from broker.core.fold import NAMED_REFUSED, Tally
from broker.core.freshness import Freshness
from broker.core.shard_counts import ShardCounts
from broker.core.transitions import Event
from broker.model import Status
from broker.protocol.messages import Position

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables


class ShardView:
    """One shard of a replica, for its readers; `ShardState` changes it.

    Args:
        shard: number of the shard.
        staleness_bound: seconds without proof after which the shard is no longer live.

    Attributes:
        phase: the status, but for `stale` that no input has noticed yet; see `status`.
        phase_reason: the event that led to the phase.
        content: what is visible.
        freshness: how old the proof of it is.
        doubts: what speaks against it though it is live.
        counts: what the shard counts since it was made.
        events: how often each happened.
        tally: the deltas of all batches that were applied.
        refused: key and node of the increments that were refused last.
        trouble: why the last attempt to read or subscribe failed; empty since one succeeded.
    """

    def __init__(self, shard: int, staleness_bound: float) -> None:
        self.shard = shard
        self.staleness_bound = staleness_bound
        self.phase = Status.CONNECTING
        self.phase_reason: Event | None = None
        self.content = Content()
        self.freshness = Freshness()
        self.doubts = Doubts(shard, staleness_bound)
        self.counts = ShardCounts()
        self.events: Counter[Event] = Counter()
        self.tally = Tally()
        self.refused: deque[str] = deque(maxlen=NAMED_REFUSED)
        self.trouble = ""
        self._arrived_at = 0.0

    @property
    def values(self) -> dict[str, Any]:
        """The visible values by key."""
        return self.content.values

    @property
    def tables(self) -> ShardTables | None:
        """The visible tables; None without numpy."""
        return self.content.tables

    @property
    def position(self) -> Position:
        """The position of the visible content."""
        return self.content.position

    @property
    def is_loaded(self) -> bool:
        """Whether the visible content is the state of some moment."""
        return self.content.is_loaded

    @property
    def covered(self) -> int:
        """Append number up to which the visible content contains all chunks."""
        return self.content.covered

    @property
    def damaged(self) -> frozenset[str]:
        """Keys that the visible content lacks: their fields of the full state cannot be read."""
        return frozenset(self.content.damaged)

    def lag(self, now: float) -> float:
        """Seconds since the moment as of which the content is proved to hold all that was accepted.

        inf if it never was.
        """
        return self.freshness.age(now)

    def overdue(self, now: float) -> float:
        """Seconds by which proof is older than the staleness bound; below 0 while it is not."""
        return self.lag(now) - self.staleness_bound

    def status(self, now: float) -> Status:
        """The status at this moment, whether or not `tick` was called in time."""
        is_overdue = self.overdue(now) > 0
        # The phase is read last: another thread may apply a proof between the two reads.
        phase = self.phase
        return Status.STALE if phase is Status.LIVE and is_overdue else phase

    def why_overdue(self, now: float) -> Event:
        """Why the proof is too old: nothing arrives, or what is accepted is not published."""
        is_silent = now - self._arrived_at > self.staleness_bound
        return Event.UNPUBLISHED if self.freshness.is_behind and not is_silent else Event.SILENCE

    @property
    def is_to_be_compared(self) -> bool:
        """Whether the visible content was not compared since it was loaded."""
        return self.phase is Status.LIVE and not self.content.is_compared
