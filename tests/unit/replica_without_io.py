"""A replica of one shard without I/O: `ShardState` driven call by call.

The shell does what `broker.aio.Replica` does, but each read is asked and answered apart, so that
anything can happen in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.core.effects import ChangesVisible, Effect, LoadState, Read, ReadLog, StopReading
from broker.core.shard import ShardState
from broker.core.transitions import Event
from broker.model import Change, Status
from broker.protocol.messages import Head, LogEntry, Position
from tests.unit.change_rows import rows
from tests.unit.exactness import exact, read
from tests.unit.model_history import BUCKETS, History, Message, Moment

STALENESS_BOUND = 3.0
CLOCK_ERROR = 770.0  # a replica's monotonic clock has nothing to do with the server's


@dataclass
class LogRead:
    """A pending reply: head and log at one moment."""

    head: Head | None
    entries: list[LogEntry]
    life: int
    asked_at: float


@dataclass
class LoadRead:
    """A pending load: the head is read first, then the pages, then the server's run id."""

    head: Head | None
    run: int
    begun: bool = False
    buckets: list[int] = field(default_factory=lambda: [*range(BUCKETS)])


class Follower:
    """One replica.

    Args:
        name: its channel's name.
        history: the server.
        watched: whether somebody looks at its changes, which takes another path through `fold`.
    """

    def __init__(self, name: str, history: History, *, watched: bool) -> None:
        self.name = name
        self.history = history
        self.state = ShardState(history.shard, STALENESS_BOUND)
        self.copy: dict[str, Any] = {}
        self.reading: LogRead | LoadRead | None = None
        # It has to know of every life of the server that began before this one.
        self.knows = 0
        self.watched = watched
        self.wanted: Read | None = None
        self.changes: list[Change] = []

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out the actions that the shard asks for."""
        for effect in effects:
            if isinstance(effect, ReadLog | LoadState):
                self.wanted = effect
            elif isinstance(effect, StopReading):
                self.wanted = None
            elif isinstance(effect, ChangesVisible):
                self._take_changes(rows(effect.changes))

    def _take_changes(self, changes: Sequence[Change]) -> None:
        self.changes += changes
        for change in changes:
            if change.operation == "delete":
                del self.copy[change.key]
            else:
                self.copy[change.key] = change.value

    def events_of(self, data: bytes) -> list[Event]:
        """Apply a packet; return the events that it caused."""
        before = self.state.events.copy()
        self.packet(data)
        return [event for event in Event if self.state.events[event] > before[event]]

    def packet(self, data: bytes) -> None:
        """Apply a packet from any source."""
        self.perform(self.state.packet(data, self.now, watched=self.watched))

    @property
    def now(self) -> float:
        """This replica's own clock."""
        return self.history.now - CLOCK_ERROR

    @property
    def is_subscribed(self) -> bool:
        """Whether packets reach it."""
        return self.name in self.history.channels

    @property
    def inbox(self) -> list[Message]:
        """Messages that are not delivered yet."""
        return self.history.channels.get(self.name, [])

    # -- the subscription -------------------------------------------------------------------------

    def subscribe(self) -> None:
        """Open a new subscription; messages of the older one are discarded."""
        self.history.channels[self.name] = []
        self.knows = self.history.life
        self.perform(self.state.subscribed(self.now))

    def disconnect(self) -> None:
        """Lose the subscription."""
        self.history.channels.pop(self.name, None)
        self.perform(self.state.disconnected())

    def receive(self, place: int = 0, *, again: bool = False) -> None:
        """Deliver the message at this index of the inbox; `again` keeps it for another delivery."""
        message = self.inbox[place] if again else self.inbox.pop(place)
        if message.is_bulk:
            self.state.bulk(message.data)
        else:
            self.packet(message.data)

    def receive_all(self) -> None:
        """Deliver all packets in their order."""
        while self.inbox:
            self.receive()

    # -- reading ----------------------------------------------------------------------------------

    def ask(self, count: int = 2) -> None:
        """Send the read that the shard needs; the reply stays pending."""
        history = self.history
        if isinstance(self.wanted, ReadLog):
            after = self.wanted.after.offset
            self.reading = LogRead(*history.read_log(after, count), history.life, self.now)
        elif self.wanted is not None:
            self.reading = LoadRead(history.read_head(), history.run)

    def answer(self) -> None:
        """Deliver the reply; of a load, its next step."""
        reading = self.reading
        if isinstance(reading, LogRead):
            self.reading = None
            if self.state.phase is Status.CATCHING_UP:
                self.knows = min(self.knows, reading.life)
            if isinstance(self.wanted, ReadLog) and self.state.phase is Status.CATCHING_UP:
                self.wanted = None
            self.perform(
                self.state.log_page(
                    *(reading.head, reading.entries, reading.asked_at), watched=self.watched
                )
            )
        elif reading is not None:
            self._answer_load(reading)

    def _answer_load(self, load: LoadRead) -> None:
        if load.head is None:
            self.reading = None
        elif not load.begun:
            load.begun = True
            self.perform(self.state.begin_load(load.head))
        elif load.buckets:
            if not isinstance(self.wanted, LoadState):
                self.reading = None
            else:
                self.state.load_page(*self.history.read_bucket(load.buckets.pop(0)))
        else:
            self.reading = None
            if load.run == self.history.run:
                self.perform(self.state.end_load())

    def read_all(self) -> None:
        """Read until nothing is needed."""
        for _ in range(200):
            if self.reading is not None:
                self.answer()
            elif self.wanted is None or not self.history.stored.epoch:
                return
            else:
                self.ask()
        raise AssertionError(f"still reading in phase {self.state.phase}: {self.state.counts}")

    def settle(self) -> None:
        """Recover: subscribe, read, receive one heartbeat, read."""
        if not self.is_subscribed:
            self.subscribe()
        self.receive_all()
        self.read_all()
        self.history.heartbeat()
        self.receive_all()
        self.read_all()

    # -- what must hold ---------------------------------------------------------------------------

    @property
    def moment(self) -> Moment:
        """What the server held at this replica's position."""
        position: Position = self.state.position
        return self.history.moments[position]

    def check(self) -> None:
        """Fail if a promise is broken that must hold at any time."""
        state, moment = self.state, self.moment
        assert exact(read(state.values)) == exact(moment.values), (
            "values are not those of the position"
        )
        assert state.covered <= moment.covered, "claims to show appends that it does not show"
        if self.watched:
            assert exact(self.copy) == exact(state.values), "the changes told do not add up"
        if state.freshness.as_of is not None:
            as_of = state.freshness.as_of + CLOCK_ERROR
            assert moment.was_all_at(as_of, self.history.accepted), "lag is told too small"
        if state.phase is Status.LIVE:
            assert self.is_subscribed, "live without a subscription"
            assert max(moment.lives) >= self.knows, "live in a history that it knows to be over"
        tally = state.tally
        parts = (tally.applied, tally.superseded, tally.refused, tally.skipped)
        assert min(parts) >= 0
        assert sum(parts) == tally.deltas
