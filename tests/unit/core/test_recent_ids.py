"""Where packets stand; the rules in the document are tested in tests/unit/protocol."""

from __future__ import annotations

import pytest

from broker.core.recent_ids import RECENT_IDS, RecentIds
from broker.core.transitions import Event
from broker.protocol.messages import Batch, Heartbeat, Packet, Position

EPOCH = b"epoch--1"


def batch(offset: int, history: bytes = b"a", epoch: bytes = EPOCH) -> Batch:
    """Return an empty batch; its id and that of the batch before it name the history."""
    before, own = (history * 4 + b"%04d" % at for at in (offset - 1, offset))
    return Batch(0, epoch, offset, own, before, 0, 0)


def beat(offset: int, history: bytes = b"a") -> Heartbeat:
    """Return a heartbeat at a batch."""
    at = batch(offset, history)
    return Heartbeat(0, EPOCH, offset, at.id, at.previous_id, 0, 0)


@pytest.fixture
def recent() -> RecentIds:
    """Give the ids of batches 3 to 5."""
    ids = RecentIds()
    for offset in (3, 4, 5):
        ids.add(batch(offset))
    return ids


@pytest.mark.parametrize(
    ("packet", "event"),
    [
        (batch(6), Event.NEXT),
        (batch(6, b"b"), Event.FORK),
        (batch(6, epoch=b"epoch--2"), Event.FORK),
        (batch(7), Event.GAP),
        (beat(6), Event.GAP),
        (beat(5), Event.CURRENT),
        (batch(5), Event.DUPLICATE),
        (batch(5, b"b"), Event.FORK),
        (beat(5, b"b"), Event.FORK),
        (batch(4), Event.DUPLICATE),
        (batch(4, b"b"), Event.FORK),
        (batch(2), Event.BEHIND),
        (beat(4), Event.BEHIND),
    ],
)
def test_a_packet_is_classified_by_offset_and_id(
    recent: RecentIds, packet: Packet, event: Event
) -> None:
    """A packet is the next one, a repeated one, ahead, behind, or of another history."""
    assert recent.classify(packet, batch(5).position) is event


def test_forgotten_ids_prove_nothing(recent: RecentIds) -> None:
    """Then an older batch is behind, whatever its id is."""
    recent.clear()
    position = Position(EPOCH, 5, batch(5).id)
    assert recent.classify(batch(4), position) is Event.BEHIND
    assert recent.classify(batch(4, b"b"), position) is Event.BEHIND


def test_memory_is_bounded() -> None:
    """Only the newest ids are kept."""
    ids = RecentIds()
    for offset in range(RECENT_IDS + 5):
        ids.add(batch(offset))
    assert len(ids) == RECENT_IDS
