"""The replica's table: what each event does in each phase.

PROTOCOL.md shows it; the tests visit every cell.
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
    """A batch that follows mine: next offset, and it names my batch id as its predecessor."""
    CURRENT = "current"
    """A heartbeat at exactly my position."""
    LATE = "late"
    """What would be `next` or `current`, but was published longer ago than the staleness bound."""
    DUPLICATE = "duplicate"
    """A batch whose offset and id I already hold."""
    GAP = "gap"
    """A packet ahead of me: something in between is missing."""
    BEHIND = "behind"
    """A packet behind me that I cannot place: late, or history was cut back. Ask the server."""
    FORK = "fork"
    """A packet that contradicts what I hold: other epoch, or another id at an offset of mine."""
    LOADED = "loaded"
    """The full state was read to its end."""
    CAUGHT_UP = "caught_up"
    """The log was read to the head, and the shard spoke within the staleness bound."""
    QUIET = "quiet"
    """The log was read to the head, but no packet was published within the staleness bound."""
    CUT = "cut"
    """The log or the head shows that my position is not part of the server's history any more."""
    SILENCE = "silence"
    """No packet proved within the staleness bound that I am complete."""
    GIVE_UP = "give_up"
    """Loading again and again did not help, or the server refuses us for good."""
    CLOSE = "close"
    """The owner closed the replica."""


def _row(phase: Status, **changes: Status) -> dict[Event, Status]:
    """One phase's line of the table: it stays, but for `changes` and the two ways to end."""
    row = dict.fromkeys(Event, phase)
    row |= {Event.GIVE_UP: Status.FAILED, Event.CLOSE: Status.CLOSED}
    return row | {Event(name): after for name, after in changes.items()}


TRANSITIONS: dict[Status, dict[Event, Status]] = {
    # Not subscribed yet: a packet cannot come, a read is not under way.
    Status.CONNECTING: _row(Status.CONNECTING, subscribed=Status.LOADING),
    # Reading the full state. Packets are only kept for later.
    Status.LOADING: _row(Status.LOADING, loaded=Status.CATCHING_UP),
    # Reading the log. Packets are only kept for later; a load that this catch-up completes becomes
    # visible at its end, in one step.
    Status.CATCHING_UP: _row(
        Status.CATCHING_UP,
        fork=Status.LOADING,
        cut=Status.LOADING,
        caught_up=Status.LIVE,
        quiet=Status.STALE,
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
    ),
    # Complete as far as known, but nothing was heard for too long. A packet that fits ends it.
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
