"""Following a log: each batch once, in order, up to the goal, and never into another history."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.replay import LogReplay, Progress
from broker.errors import DecodeError
from broker.protocol.codec import encode_packet
from broker.protocol.messages import Batch, LogEntry, Position

EPOCH = b"epoch--1"
START = Position(EPOCH, 4, b"batch--4")


def batch(offset: int) -> Batch:
    """Return the batch of this offset."""
    return Batch(0, EPOCH, offset, b"batch--%d" % offset, b"batch--%d" % (offset - 1), 0, 0, 1)


def entry(one: Batch) -> LogEntry:
    """Return how the log holds a batch."""
    return LogEntry(encode_packet(one))


LOG = [entry(batch(offset)) for offset in (5, 6, 7)]


def test_a_page_is_taken_up_to_the_goal_and_no_further() -> None:
    """What the log has beyond the goal is not even decoded."""
    replay, goal = LogReplay(START), batch(6).position
    taken = [replay.take(one) for one in replay.until(goal, [*LOG[:2], LogEntry(b"damaged")])]
    assert taken == [batch(5), batch(6)]
    assert replay.progress(goal) is Progress.DONE


def test_without_a_goal_the_end_of_the_log_is_one() -> None:
    """All that the log has is taken; only an empty page says that this was all."""
    replay = LogReplay(START)
    assert len([replay.take(one) for one in replay.until(None, LOG)]) == len(LOG)
    assert replay.progress(None) is Progress.READ
    assert replay.progress(None, is_at_end=True) is Progress.DONE
    assert replay.position == batch(7).position


@pytest.mark.parametrize(
    "stray",
    [
        batch(6),
        replace(batch(5), previous_id=b"another!"),
        replace(batch(5), epoch=b"another!"),
    ],
    ids=["gap", "other predecessor", "other epoch"],
)
def test_what_does_not_follow_is_not_taken(stray: Batch) -> None:
    """The replay stays where it was."""
    replay = LogReplay(START)
    with pytest.raises(DecodeError, match="does not continue at offset 5"):
        replay.take(entry(stray))
    assert replay.position == START


@pytest.mark.parametrize(
    ("goal", "is_at_end", "progress"),
    [
        (START, False, Progress.DONE),
        (batch(5).position, False, Progress.READ),
        (batch(5).position, True, Progress.MOVED),
        (Position(EPOCH, 3, b"batch--3"), False, Progress.MOVED),
        (Position(EPOCH, 4, b"another!"), False, Progress.MOVED),
        (Position(b"another!", 4, b"batch--4"), False, Progress.MOVED),
    ],
    ids=["there", "before", "log ends before", "behind", "other batch", "other epoch"],
)
def test_a_goal_is_reached_only_as_the_very_position(
    goal: Position,
    is_at_end: bool,  # noqa: FBT001 - of the table
    progress: Progress,
) -> None:
    """An offset alone does not say that the history is the same."""
    assert LogReplay(START).progress(goal, is_at_end=is_at_end) is progress
