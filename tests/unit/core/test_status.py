"""The combined status of all shards: exact when read, each change reported with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.core.effects import PhaseChanged, Reconnect
from broker.core.shard import ShardState
from broker.core.status import OPENED, REASON_HELP, STATUSES_LIMIT, StatusQueue, StatusTracker
from broker.core.transitions import TRANSITIONS, Event
from broker.errors import ReplicaFailedError
from broker.model import Status, StatusChange
from broker.protocol.codec import encode_packet
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Head, Heartbeat, Position
from tests.unit.change_rows import all_of

BOUND = 3.0
BEGUN = 500.0
WALL = 1_700_000_000.0
EPOCH, ID = b"epoch--1", b"batch--1"

Step = tuple[str, str, str, int | None]


class TrackedShard:
    """A shard that reports its phase changes to the tracker."""

    def __init__(self, number: int, tracker: StatusTracker) -> None:
        self.shard = ShardState(number, BOUND)
        self.tracker = tracker
        tracker.add_shard(self.shard)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.shard, name)
        return partial(self._perform, found) if callable(found) else found

    def _perform(self, call: Callable[..., Any], *args: Any) -> Any:
        effects = call(*args)
        for effect in effects or ():
            if isinstance(effect, PhaseChanged):
                self.tracker.phase_changed(self.shard, effect)
        return effects


class Tracked:
    """Shards of one replica, a settable clock, and the reported changes."""

    def __init__(self, shards: int = 1) -> None:
        self.now = BEGUN
        self.tracker = StatusTracker(lambda: (self.now, WALL + self.now))
        self.queue = StatusQueue(lambda: None)
        self.tracker.add_queue(self.queue, begins=False)
        self.shards = [TrackedShard(number, self.tracker) for number in range(shards)]

    def head(self, quiet_s: float = 0.0) -> Head:
        """Return the head, at which every shard is, asked for now."""
        position = Position(EPOCH, 1, ID)
        return Head(position, position, 1, quiet_s=quiet_s, time_s=self.now)

    def join(self, number: int = 0, *, asked_ago: float = 0.0) -> None:
        """Bring a shard from where it is to the head of the log."""
        shard = self.shards[number]
        shard.subscribed(self.now)
        if shard.phase is Status.LOADING:
            shard.begin_load(self.head())
            shard.end_load()
        shard.log_page(self.head(), [], self.now - asked_ago)

    def beat(self, number: int = 0) -> None:
        """Deliver a heartbeat published now."""
        shard = self.shards[number]
        packet = Heartbeat(number, EPOCH, 1, ID, NO_ID, round(self.now * 1000), 1)
        shard.packet(encode_packet(packet), self.now)

    @property
    def told(self) -> list[Step]:
        """Return the changes reported since the last call."""
        return [(one.before, one.after, one.reason, one.shard) for one in all_of(self.queue)]


def test_the_status_is_exact_though_nobody_noticed() -> None:
    """A replica is live up to the bound and stale beyond it, with or without a timer."""
    tracked = Tracked()
    tracked.join()
    tracked.now += BOUND
    assert tracked.tracker.status is Status.LIVE
    tracked.now += 0.001
    assert tracked.shards[0].phase is Status.LIVE
    assert tracked.tracker.status is Status.STALE
    tracked.shards[0].tick(tracked.now)
    assert tracked.tracker.status is Status.STALE


def test_a_silence_that_no_timer_saw_is_reported_before_what_ends_it() -> None:
    """A status read in between is `stale`, so the changes include it."""
    tracked = Tracked()
    tracked.join()
    assert tracked.told
    tracked.now += BOUND + 1
    tracked.beat()
    assert tracked.told == [
        ("live", "stale", "silence", 0),
        ("stale", "live", "current", 0),
    ]
    tracked.now += BOUND + 1
    tracked.join()
    assert [step[2] for step in tracked.told] == ["silence", "subscribed", "caught_up"]


def test_a_link_is_given_up_for_silence_only_after_that_is_reported() -> None:
    """The link is kept until both the last packet and the log's proof are too old."""
    tracked = Tracked()
    (shard,) = tracked.shards
    shard.subscribed(tracked.now)
    shard.begin_load(tracked.head())
    shard.end_load()
    tracked.now += 1
    shard.log_page(tracked.head(), [], tracked.now)
    tracked.now += BOUND - 0.5
    assert Reconnect() not in shard.tick(tracked.now)
    assert tracked.tracker.status is Status.LIVE
    tracked.now += 1
    assert Reconnect() in shard.tick(tracked.now)
    assert tracked.told[-1] == ("live", "stale", "silence", 0)


def test_an_answer_that_took_too_long_is_never_told_as_live() -> None:
    """A read that began longer ago than the bound proves nothing about the present."""
    tracked = Tracked()
    tracked.join(asked_ago=BOUND + 1)
    assert tracked.told[-1] == ("catching_up", "stale", "silence", 0)
    assert tracked.shards[0].phase is Status.LIVE


def test_the_worst_shard_decides_and_is_named() -> None:
    """The reason is that of the shard with the worst status."""
    tracked = Tracked(shards=2)
    assert tracked.tracker.status is Status.CONNECTING
    tracked.join(0)
    assert tracked.told == []
    tracked.shards[1].subscribed(tracked.now)
    assert tracked.told == [("connecting", "loading", "subscribed", 1)]
    tracked.shards[0].disconnected()
    assert tracked.told == []
    tracked.shards[1].begin_load(tracked.head())
    tracked.shards[1].end_load()
    assert tracked.told == [("loading", "stale", "lost", 0)]
    tracked.shards[1].log_page(tracked.head(), [], tracked.now)
    assert tracked.told == []
    tracked.join(0)
    assert tracked.told == [
        ("stale", "catching_up", "subscribed", 0),
        ("catching_up", "live", "caught_up", 0),
    ]


def test_a_shard_beyond_its_bound_keeps_the_others_from_being_live() -> None:
    """One shard beyond its bound keeps the replica stale, also if its timer did not run yet."""
    tracked = Tracked(shards=2)
    tracked.join(0)
    tracked.now += BOUND + 1
    tracked.join(1)
    assert tracked.told[-1] == ("catching_up", "stale", "silence", 0)
    assert tracked.tracker.status is Status.STALE
    tracked.beat(0)
    assert tracked.told == [("stale", "live", "current", 0)]


@pytest.mark.parametrize(
    ("status", "reason"), [(Status.CLOSED, "close"), (Status.FAILED, "give_up")]
)
@pytest.mark.parametrize("shards", [0, 2])
def test_the_end_is_reported_once(status: Status, reason: str, shards: int) -> None:
    """Closing is reported once, with or without shards, and later events change nothing."""
    tracked = Tracked(shards)
    tracked.tracker.end(status, reason)
    for shard in tracked.shards:
        shard.close()
    assert tracked.told == [("connecting", status, reason, None)]
    assert tracked.tracker.status is status


def test_a_reader_begins_with_what_holds_now() -> None:
    """The first change is the present status with its reason, and later ones follow from it."""
    tracked = Tracked()
    tracked.join()
    late = StatusQueue(lambda: None)
    tracked.tracker.add_queue(late)
    at = WALL + tracked.now
    assert all_of(late) == [StatusChange(Status.LIVE, Status.LIVE, "caught_up", 0, at)]
    tracked.now += BOUND + 1
    tracked.shards[0].tick(tracked.now)
    later = StatusQueue(lambda: None)
    tracked.tracker.add_queue(later)
    assert [(one.before, one.after) for one in all_of(later)] == [(Status.STALE, Status.STALE)]
    tracked.tracker.remove_queue(late)
    assert [one.after for one in all_of(late)] == [Status.STALE]
    with pytest.raises(StopIteration):
        all_of(late)


# -- slow readers ---------------------------------------------------------------------------------


WALKS = st.lists(st.one_of(st.sampled_from(list(Status)), st.none()), max_size=60)


@given(WALKS, st.integers(2, 6))
def test_a_slow_reader_gets_a_chain_that_ends_right(walk: list[Status | None], limit: int) -> None:
    """A slow reader gets at most the limit, and each change begins where the last one ended."""
    queue = StatusQueue(lambda: None, limit)
    at = shown = Status.CONNECTING
    told = taken = 0

    def read() -> None:
        nonlocal shown, taken
        found = all_of(queue)
        assert len(found) <= limit
        for one in found:
            assert one.before is shown
            assert one.after is not one.before
            shown = one.after
        taken += len(found)
        assert shown is at

    for step in walk:
        if step is None:
            read()
        elif step is not at:
            queue.put([StatusChange(at, step, str(step))])
            at = step
            told += 1
            assert queue._waiting[-1].after is at
            assert queue._waiting[-1].reason == str(at)
    read()
    assert told == taken + queue.conflated


def test_a_change_that_was_undone_is_left_out() -> None:
    """A slow reader skips a status that was undone; it counts as conflated."""
    queue = StatusQueue(lambda: None, 2)
    chain = (Status.LIVE, Status.STALE, Status.LIVE, Status.LOADING)
    for before, after in itertools.pairwise(chain):
        queue.put([StatusChange(before, after, "any")])
    assert all_of(queue) == [StatusChange(Status.LIVE, Status.LOADING, "any")]
    assert queue.conflated == 2


def test_the_newest_changes_are_kept_one_by_one() -> None:
    """Only the oldest changes are merged."""
    tracked = Tracked()
    tracked.join()
    for _ in range(STATUSES_LIMIT):
        tracked.shards[0].disconnected()
        tracked.join()
    told = all_of(tracked.queue)
    assert len(told) <= STATUSES_LIMIT
    assert told[0].before is Status.CONNECTING
    assert [one.reason for one in told[-6:]] == ["lost", "subscribed", "caught_up"] * 2
    assert tracked.tracker.conflated == tracked.tracker.changes - len(told)


# -- health ---------------------------------------------------------------------------------------


def test_health_tells_status_since_when_why_and_what_to_do() -> None:
    """Health names status, start, reason and fix, and recovers by itself."""
    tracked = Tracked(shards=2)
    (reason,) = tracked.tracker.health(tracked.tracker.status).reasons
    assert "because of open" in reason
    tracked.join(0)
    tracked.join(1)
    health = tracked.tracker.health(tracked.tracker.status)
    assert (health.ok, health.reasons) == (True, ())
    tracked.shards[1].disconnected()
    tracked.now += 1.5
    health = tracked.tracker.health(tracked.tracker.status)
    assert not health.ok
    (reason,) = health.reasons
    # 1,700,000,500 s after 1970.
    assert reason.startswith("stale since 2023-11-14T22:21:40.000+00:00, not live for 1.5 s, ")
    assert "because of lost of shard 1: the subscription's connection broke" in reason
    assert "check Redis" in reason
    tracked.join(1)
    assert tracked.tracker.health(tracked.tracker.status).ok


def test_health_of_a_silence_that_nobody_noticed() -> None:
    """The start is when the bound passed, not when the status was read."""
    tracked = Tracked()
    tracked.join()
    tracked.now += BOUND + 10
    (reason,) = tracked.tracker.health(tracked.tracker.status).reasons
    assert reason.startswith("stale since 2023-11-14T22:21:43.000+00:00, because of silence of")
    assert "is a flush worker running? (statebroker status)" in reason


def test_health_of_what_has_ended() -> None:
    """A failed replica shows the failure's message; a closed one says that it is closed."""
    tracked = Tracked()
    tracked.tracker.end(Status.FAILED, Event.GIVE_UP)
    failure = ReplicaFailedError("two histories are mixed")
    (reason,) = tracked.tracker.health(Status.FAILED, failure).reasons
    assert reason.endswith("because of give_up: two histories are mixed")
    tracked.tracker.end(Status.CLOSED, Event.CLOSE)
    (reason,) = tracked.tracker.health(Status.CLOSED).reasons
    assert "because of close: it was closed" in reason


def test_every_reason_not_to_be_live_is_explained() -> None:
    """Every transition out of `live` has a reason with an explanation."""
    reasons = {
        event
        for phase, row in TRANSITIONS.items()
        for event, after in row.items()
        if after is not phase and after is not Status.LIVE
    }
    assert set(REASON_HELP) == reasons | {OPENED}
    assert not any(told.endswith(" ") for told in REASON_HELP.values())
