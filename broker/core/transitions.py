"""The transition table of a replica's shard: the next phase for each phase and event.

PROTOCOL.md shows it; the tests cover every cell.
"""

from __future__ import annotations

from enum import StrEnum

from broker.model import Status


class Event(StrEnum):
    """What can happen to one shard of a replica."""

    SUBSCRIBED = "subscribed"
    """The server confirmed a subscription, the first or a repeated one."""
    LOST = "lost"
    """The subscription's connection broke."""
    NEXT = "next"
    """The next batch: its offset follows, and it names the held batch id as its predecessor."""
    CURRENT = "current"
    """A heartbeat at exactly the shard's position."""
    LATE = "late"
    """What would be `next` or `current`, but was published longer ago than the staleness bound."""
    DUPLICATE = "duplicate"
    """A batch whose offset and id are applied already."""
    GAP = "gap"
    """A packet ahead of the position: batches in between are missing."""
    BEHIND = "behind"
    """A packet behind the position with an unknown id: late, or history was cut back."""
    FORK = "fork"
    """A packet that contradicts the history: another epoch, or another id at a known offset."""
    LOADED = "loaded"
    """The full state was read to its end."""
    CAUGHT_UP = "caught_up"
    """The log was read to the head, and a packet was published within the staleness bound."""
    QUIET = "quiet"
    """The log was read to the head, but no packet was published within the staleness bound."""
    CUT = "cut"
    """The log or the head shows that the position is no longer part of the server's history."""
    SILENCE = "silence"
    """No packet proved within the staleness bound that the content is complete."""
    UNPUBLISHED = "unpublished"
    """What would be `next`, `current` or `caught_up`, but tells of a chunk that was accepted longer
    ago than the staleness bound and is not published yet."""
    GIVE_UP = "give_up"
    """Repeated loads did not help, or the server refuses this replica permanently."""
    CLOSE = "close"
    """The owner closed the replica."""


def _row(phase: Status, **changes: Status) -> dict[Event, Status]:
    """One row of the table: the phase stays the same, except for `changes` and the two ends."""
    row = dict.fromkeys(Event, phase)
    row |= {Event.GIVE_UP: Status.FAILED, Event.CLOSE: Status.CLOSED}
    return row | {Event(name): after for name, after in changes.items()}


TRANSITIONS: dict[Status, dict[Event, Status]] = {
    # Not subscribed yet: no packet can arrive, and no read is in progress.
    Status.CONNECTING: _row(Status.CONNECTING, subscribed=Status.LOADING),
    # Reading the full state. Packets are kept until it ends.
    Status.LOADING: _row(Status.LOADING, loaded=Status.CATCHING_UP),
    # Reading the log. Packets are kept until it ends. A load that this completes becomes visible
    # at the end, in one step.
    Status.CATCHING_UP: _row(
        Status.CATCHING_UP,
        fork=Status.LOADING,
        cut=Status.LOADING,
        caught_up=Status.LIVE,
        quiet=Status.STALE,
        unpublished=Status.STALE,
    ),
    # Complete and proved current. Every new subscription may hide a gap.
    Status.LIVE: _row(
        Status.LIVE,
        subscribed=Status.CATCHING_UP,
        lost=Status.STALE,
        late=Status.CATCHING_UP,
        gap=Status.CATCHING_UP,
        behind=Status.CATCHING_UP,
        fork=Status.LOADING,
        cut=Status.LOADING,
        silence=Status.STALE,
        quiet=Status.STALE,
        unpublished=Status.STALE,
    ),
    # Complete as far as known, but without proof for too long. A packet that follows ends it.
    Status.STALE: _row(
        Status.STALE,
        subscribed=Status.CATCHING_UP,
        next=Status.LIVE,
        current=Status.LIVE,
        late=Status.CATCHING_UP,
        gap=Status.CATCHING_UP,
        behind=Status.CATCHING_UP,
        fork=Status.LOADING,
        cut=Status.LOADING,
    ),
    Status.FAILED: dict.fromkeys(Event, Status.FAILED) | {Event.CLOSE: Status.CLOSED},
    Status.CLOSED: dict.fromkeys(Event, Status.CLOSED),
}
