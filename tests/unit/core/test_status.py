"""The status of all shards together: exact when read, and every change told with its reason."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.core.shard import Head, ShardState
from broker.core.status import OPENED, REASON_HELP, STATUSES_LIMIT, StatusQueue, StatusTrack
from broker.core.transitions import TRANSITIONS, Event
from broker.errors import ReplicaFailedError
from broker.model import Status, StatusChange
from broker.protocol.codec import encode_packet
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Heartbeat, Position

BOUND = 3.0
BEGUN = 500.0
WALL = 1_700_000_000.0
EPOCH, ID = b"epoch--1", b"batch--1"

Step = tuple[str, str, str, int | None]


class Stage:
    """Shards of one replica, a clock that a test sets, and what was told."""

    def __init__(self, shards: int = 1) -> None:
        self.now = BEGUN
        self.track = StatusTrack(lambda: (self.now, WALL + self.now))
        self.queue = StatusQueue(lambda: None)
        self.track.add_queue(self.queue, begins=False)
        self.shards = [ShardState(number, BOUND) for number in range(shards)]
        for shard in self.shards:
            shard.on_moved = self.track.moved
            self.track.add_shard(shard)

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
        """Let a heartbeat of this moment arrive."""
        shard = self.shards[number]
        packet = Heartbeat(number, EPOCH, 1, ID, NO_ID, round(self.now * 1000), 1)
        shard.packet(encode_packet(packet), self.now)

    @property
    def told(self) -> list[Step]:
        """What was told since the last look."""
        return [(one.before, one.after, one.reason, one.shard) for one in self.queue.take()]


def test_the_status_is_exact_though_nobody_noticed() -> None:
    """At the bound it is live, beyond it is not, whether or not a timer came."""
    stage = Stage()
    stage.join()
    stage.now += BOUND
    assert stage.track.status is Status.LIVE
    stage.now += 0.001
    assert stage.shards[0].phase is Status.LIVE
    assert stage.track.status is Status.STALE
    stage.shards[0].tick(stage.now)
    assert stage.track.status is Status.STALE


def test_a_silence_that_no_timer_saw_is_told_before_what_ends_it() -> None:
    """Who looked meanwhile saw `stale`, so the changes say the same."""
    stage = Stage()
    stage.join()
    assert stage.told
    stage.now += BOUND + 1
    stage.beat()
    assert stage.told == [
        ("live", "stale", "silence", 0),
        ("stale", "live", "current", 0),
    ]
    stage.now += BOUND + 1
    stage.join()
    assert [step[2] for step in stage.told] == ["silence", "subscribed", "caught_up"]


def test_a_link_is_given_up_for_silence_only_after_that_is_told() -> None:
    """The log proved more than the last packet: until that is over too, the link is left alone."""
    stage = Stage()
    (shard,) = stage.shards
    shard.subscribed(stage.now)
    shard.begin_load(stage.head())
    shard.end_load()
    stage.now += 1
    shard.log_page(stage.head(), [], stage.now)
    stage.now += BOUND - 0.5
    assert not shard.tick(stage.now)
    assert stage.track.status is Status.LIVE
    stage.now += 1
    assert shard.tick(stage.now)
    assert stage.told[-1] == ("live", "stale", "silence", 0)


def test_an_answer_that_took_too_long_is_never_told_as_live() -> None:
    """A log that was asked for longer ago than the bound proves nothing about now."""
    stage = Stage()
    stage.join(asked_ago=BOUND + 1)
    assert stage.told[-1] == ("catching_up", "stale", "silence", 0)
    assert stage.shards[0].phase is Status.LIVE


def test_the_worst_shard_decides_and_is_named() -> None:
    """A reason is that of the shard that has the status, not of the one that moved."""
    stage = Stage(shards=2)
    assert stage.track.status is Status.CONNECTING
    stage.join(0)
    assert stage.told == []
    stage.shards[1].subscribed(stage.now)
    assert stage.told == [("connecting", "loading", "subscribed", 1)]
    stage.shards[0].lost()
    assert stage.told == []
    stage.shards[1].begin_load(stage.head())
    stage.shards[1].end_load()
    assert stage.told == [("loading", "stale", "lost", 0)]
    stage.shards[1].log_page(stage.head(), [], stage.now)
    assert stage.told == []
    stage.join(0)
    assert stage.told == [
        ("stale", "catching_up", "subscribed", 0),
        ("catching_up", "live", "caught_up", 0),
    ]


def test_a_shard_beyond_its_bound_keeps_the_others_from_being_live() -> None:
    """Also when nobody noticed it before the last other shard became live."""
    stage = Stage(shards=2)
    stage.join(0)
    stage.now += BOUND + 1
    stage.join(1)
    assert stage.told[-1] == ("catching_up", "stale", "silence", 0)
    assert stage.track.status is Status.STALE
    stage.beat(0)
    assert stage.told == [("stale", "live", "current", 0)]


@pytest.mark.parametrize(
    ("status", "reason"), [(Status.CLOSED, "close"), (Status.FAILED, "give_up")]
)
@pytest.mark.parametrize("shards", [0, 2])
def test_the_end_is_told_once(status: Status, reason: str, shards: int) -> None:
    """With and without shards; what these do afterwards changes nothing."""
    stage = Stage(shards)
    stage.track.end(status, reason)
    for shard in stage.shards:
        shard.close()
    assert stage.told == [("connecting", status, reason, None)]
    assert stage.track.status is status


def test_a_reader_begins_with_what_holds_now() -> None:
    """The first it gets says so, with its reason, and the chain begins there."""
    stage = Stage()
    stage.join()
    late = StatusQueue(lambda: None)
    stage.track.add_queue(late)
    assert late.take() == [StatusChange(Status.LIVE, Status.LIVE, "caught_up", 0, WALL + stage.now)]
    stage.now += BOUND + 1
    later = StatusQueue(lambda: None)
    stage.track.add_queue(later)
    assert [(one.before, one.after) for one in later.take()] == [(Status.STALE, Status.STALE)]
    stage.track.remove_queue(late)
    assert [one.after for one in late.take()] == [Status.STALE]
    with pytest.raises(StopIteration):
        late.take()


# -- slow readers ---------------------------------------------------------------------------------


WALKS = st.lists(st.one_of(st.sampled_from(list(Status)), st.none()), max_size=60)


@given(WALKS, st.integers(2, 6))
def test_a_slow_reader_gets_a_chain_that_ends_right(walk: list[Status | None], limit: int) -> None:
    """Whenever it reads: never more than the limit, each before is the after it got last."""
    queue = StatusQueue(lambda: None, limit)
    at = shown = Status.CONNECTING
    told = taken = 0

    def read() -> None:
        nonlocal shown, taken
        found = queue.take()
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
    """For a reader that is behind; it still counts as not told one by one."""
    queue = StatusQueue(lambda: None, 2)
    chain = (Status.LIVE, Status.STALE, Status.LIVE, Status.LOADING)
    for before, after in itertools.pairwise(chain):
        queue.put([StatusChange(before, after, "any")])
    assert queue.take() == [StatusChange(Status.LIVE, Status.LOADING, "any")]
    assert queue.conflated == 2


def test_the_newest_changes_are_kept_one_by_one() -> None:
    """Only the oldest of many are made one."""
    stage = Stage()
    stage.join()
    for _ in range(STATUSES_LIMIT):
        stage.shards[0].lost()
        stage.join()
    told = stage.queue.take()
    assert len(told) <= STATUSES_LIMIT
    assert told[0].before is Status.CONNECTING
    assert [one.reason for one in told[-6:]] == ["lost", "subscribed", "caught_up"] * 2
    assert stage.track.conflated == stage.track.changes - len(told)


# -- health ---------------------------------------------------------------------------------------


def test_health_tells_status_since_when_why_and_what_to_do() -> None:
    """And is fine again by itself."""
    stage = Stage(shards=2)
    (reason,) = stage.track.health(stage.track.status).reasons
    assert "because of open" in reason
    stage.join(0)
    stage.join(1)
    health = stage.track.health(stage.track.status)
    assert (health.ok, health.reasons) == (True, ())
    stage.shards[1].lost()
    stage.now += 1.5
    health = stage.track.health(stage.track.status)
    assert not health.ok
    (reason,) = health.reasons
    # 1,700,000,500 s after 1970.
    assert reason.startswith("stale since 2023-11-14T22:21:40.000+00:00, not live for 1.5 s, ")
    assert "because of lost of shard 1: the subscription's connection broke" in reason
    assert "check Redis" in reason
    stage.join(1)
    assert stage.track.health(stage.track.status).ok


def test_health_of_a_silence_that_nobody_noticed() -> None:
    """It is red since the bound, not since somebody looked."""
    stage = Stage()
    stage.join()
    stage.now += BOUND + 10
    (reason,) = stage.track.health(stage.track.status).reasons
    assert reason.startswith("stale since 2023-11-14T22:21:43.000+00:00, because of silence of")
    assert "is a flush worker running? (statebroker status)" in reason


def test_health_of_what_has_ended() -> None:
    """A failure is told in its own words; what is closed says so."""
    stage = Stage()
    stage.track.end(Status.FAILED, Event.GIVE_UP)
    failure = ReplicaFailedError("two histories are mixed")
    (reason,) = stage.track.health(Status.FAILED, failure).reasons
    assert reason.endswith("because of give_up: two histories are mixed")
    stage.track.end(Status.CLOSED, Event.CLOSE)
    (reason,) = stage.track.health(Status.CLOSED).reasons
    assert "because of close: it was closed" in reason


def test_every_reason_not_to_be_live_is_explained() -> None:
    """No cell of the table leads out of `live` without a word about it."""
    reasons = {
        event
        for phase, row in TRANSITIONS.items()
        for event, after in row.items()
        if after is not phase and after is not Status.LIVE
    }
    assert set(REASON_HELP) == reasons | {OPENED}
    assert not any(told.endswith(" ") for told in REASON_HELP.values())
