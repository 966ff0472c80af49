"""The verdict on a worker: times and events in, green or a reason out. No I/O, no waiting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.health import GREEN, MIN_BOUND_S, FlushHealth, ScheduleHealth

OLD, NEW = b"epoch--1", b"epoch--2"


class Flusher:
    """A flush worker with two shards, a heartbeat a second, and a clock that the test moves.

    All is well in every second unless an event is in `without`.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.health = FlushHealth(2, 1.0, self.now)
        self.offset = 0
        self.epoch = OLD

    def second(self, *without: str) -> str:
        """Let a second pass; return the verdict at its end."""
        self.now += 1.0
        health = self.health
        if "answer" not in without:
            health.answered(self.now)
            health.succeeded()
        for shard in range(2):
            if f"heartbeat {shard}" not in without and "heartbeat" not in without:
                health.received(shard, self.epoch, self.offset, self.now)
        return health.verdict(self.now)

    def seconds(self, count: int, *without: str) -> list[str]:
        """Let seconds pass; return the verdict of each."""
        return [self.second(*without) for _ in range(count)]


def colors(verdicts: list[str]) -> str:
    """G for green and R for red."""
    return "".join("R" if verdict else "G" for verdict in verdicts)


@pytest.fixture
def flusher() -> Flusher:
    """Give a flush worker that began just now."""
    return Flusher()


# -- flush workers --------------------------------------------------------------------------------


def test_a_flush_worker_that_receives_its_shards_is_green(flusher: Flusher) -> None:
    """It is green from its start, as long as batches arrive."""
    assert flusher.health.verdict(flusher.now) == GREEN
    assert colors(flusher.seconds(100)) == "G" * 100


@pytest.mark.parametrize("interval", [0.05, 0.1, 1.0, 20.0])
def test_the_bound_is_three_intervals(interval: float) -> None:
    """But never so short that a busy machine looks like a broken one."""
    assert FlushHealth(1, interval, 0.0).bound == max(MIN_BOUND_S, 3 * interval)
    assert FlushHealth(1, interval, 0.0).tick <= 1.0


def test_silence_is_red_after_the_bound_and_green_with_the_next_packet(flusher: Flusher) -> None:
    """Three intervals of silence are borne, the fourth is red; one heartbeat mends it."""
    flusher.seconds(5)
    assert colors(flusher.seconds(6, "heartbeat")) == "GGGRRR"
    assert colors(flusher.seconds(2)) == "GG"


def test_one_silent_shard_is_enough(flusher: Flusher) -> None:
    """The others' packets do not hide it, and the reason names it and stays the same."""
    verdicts = flusher.seconds(6, "heartbeat 1")
    assert colors(verdicts) == "GGGRRR"
    assert verdicts[-1] == "shard 1: nothing arrived on its channel for over 3 s"
    assert len(set(verdicts[3:])) == 1


def test_the_reason_of_silence_is_why_the_subscription_broke(flusher: Flusher) -> None:
    """The reason is reported only while nothing arrives."""
    flusher.health.subscription_failed("hearing: no permission")
    assert flusher.seconds(4, "heartbeat")[-1].endswith("for over 3 s (hearing: no permission)")
    flusher.second()
    assert "permission" not in flusher.seconds(4, "heartbeat")[-1]


def test_polling_instead_of_waiting_is_not_silent(flusher: Flusher) -> None:
    """Nothing is lost, but everything is late: the reason says what to do."""
    flusher.health.wake_refused("no permissions to run the 'blpop' command")
    reason = flusher.second()
    assert "polls every 1 s" in reason
    assert "'blpop'" in reason
    assert "statebroker acl flusher" in reason
    flusher.health.wakes()
    assert flusher.second() == GREEN


def test_what_was_published_must_be_heard(flusher: Flusher) -> None:
    """Packets of before do not count: a channel may lag far behind, or be another server's."""
    flusher.health.published(0, 7, flusher.now)
    flusher.offset = 6
    verdicts = flusher.seconds(5)
    assert colors(verdicts) == "GGGRR"
    assert verdicts[-1].startswith("shard 0: the published batch did not arrive on its channel for")
    flusher.offset = 7
    assert flusher.second() == GREEN


def test_a_batch_and_later_ones_are_all_waited_for(flusher: Flusher) -> None:
    """One that was published since does not begin the wait anew."""
    for offset in range(1, 5):
        flusher.health.published(0, offset, flusher.now)
        verdict = flusher.second()
    assert verdict
    flusher.offset = 1
    assert flusher.second() == GREEN


@pytest.mark.parametrize("how", ["other epoch", "lower offset", "poll failed"])
def test_another_history_is_not_waited_for(flusher: Flusher, how: str) -> None:
    """After a wipe or a restore the old offset may never come."""
    flusher.health.published(0, 700, flusher.now)
    flusher.second()
    flusher.offset = 3
    if how == "other epoch":
        flusher.epoch = NEW
    elif how == "lower offset":
        flusher.health.published(0, 3, flusher.now)
    else:
        flusher.health.failed(flusher.now, "gone")
    assert colors(flusher.seconds(10)) == "G" * 10


def test_failing_polls_are_red_with_the_error(flusher: Flusher) -> None:
    """One that fails and then works is no fault; failing for the bound is."""
    flusher.health.failed(flusher.now, "cannot reach it")
    assert flusher.second() == GREEN
    flusher.seconds(3)
    assert flusher.second() == GREEN
    verdicts = []
    for _ in range(5):
        flusher.health.failed(flusher.now, "no permission")
        flusher.health.answered(flusher.now)
        verdicts.append(flusher.second("answer"))
    assert colors(verdicts) == "GGGRR"
    assert verdicts[-1] == "polls have failed for over 3 s: no permission"
    assert flusher.second() == GREEN


def test_a_server_that_does_not_answer_is_red(flusher: Flusher) -> None:
    """It is red also while the only call hangs, although none has failed yet."""
    verdicts = flusher.seconds(5, "answer")
    assert colors(verdicts) == "GGGRR"
    assert verdicts[-1] == "Redis has not answered for over 3 s"
    flusher.health.failed(flusher.now, "it timed out")
    assert flusher.second("answer") == "Redis has not answered for over 3 s: it timed out"
    assert flusher.second() == GREEN


def test_a_full_log_is_red_at_once(flusher: Flusher) -> None:
    """Until something was drained again; that something became due does not mend it."""
    flusher.health.log_full(1)
    assert flusher.second() == "shard 1: the log is full; is a scheduler running?"
    flusher.health.due(1, flusher.now)
    assert flusher.second()
    flusher.health.drained(1, None)
    assert flusher.second() == GREEN


def test_what_is_due_must_be_published(flusher: Flusher) -> None:
    """Overdue by the bound is red; what is due later, or not at all, is not."""
    flusher.health.due(0, flusher.now + 2)
    flusher.health.due(1, None)
    verdicts = flusher.seconds(7)
    assert colors(verdicts) == "GGGGGRR"
    assert "shard 0: something has been due and unpublished" in verdicts[-1]
    flusher.health.drained(0, flusher.now)
    assert flusher.second() == GREEN


def test_what_was_due_before_the_worker_began_counts_from_its_begin(flusher: Flusher) -> None:
    """A worker that starts with a backlog has the whole bound to process it."""
    flusher.health.due(0, 0.0)
    assert colors(flusher.seconds(5)) == "GGGRR"


def test_a_process_that_did_not_run_is_not_judged_by_it(flusher: Flusher) -> None:
    """Packets of the time while it was stopped are not read yet; later checks count again."""
    flusher.seconds(3)
    flusher.now += 3600
    assert flusher.second("answer", "heartbeat") == GREEN
    assert flusher.second("answer", "heartbeat") != GREEN
    flusher.now += 3600
    assert flusher.second() != GREEN, "the last one holds"
    assert flusher.second() == GREEN


# -- schedulers -----------------------------------------------------------------------------------


class Clock:
    """A scheduler's health, and a clock that the test moves on by renewals."""

    def __init__(self, interval: float = 2.0) -> None:
        self.now = 100.0
        self.health = ScheduleHealth(interval, 3.0, self.now)

    def every(self, step: Callable[[], None], times: int) -> list[str]:
        """Do it every three seconds; return the verdicts."""
        verdicts = []
        for _ in range(times):
            step()
            verdicts.append(self.health.verdict(self.now))
            self.now += 3.0
        return verdicts


@pytest.mark.parametrize(("interval", "bound"), [(0.1, 10.0), (2.0, 10.0), (10.0, 30.0)])
def test_the_bound_of_full_states(interval: float, bound: float) -> None:
    """Three intervals, but at least 10 s."""
    assert ScheduleHealth(interval, 3.0, 0.0).bound == bound


def test_a_scheduler_that_writes_is_green() -> None:
    """Also if there is nothing to write: that round succeeded."""
    clock = Clock()
    verdicts = clock.every(lambda: clock.health.wrote(0, clock.now, is_held=True), 20)
    assert colors(verdicts) == "G" * 20


def test_rounds_that_fail_are_red_after_the_bound() -> None:
    """Although the lease is renewed; with the last error; green with the next success."""
    clock = Clock()

    def fail() -> None:
        clock.health.renewed(3, clock.now, is_held=True)
        clock.health.failed(3, "WRONGTYPE")

    verdicts = clock.every(fail, 6)
    assert colors(verdicts) == "GGGGRR"
    assert verdicts[-1] == "shard 3: no full state was written for over 10 s: WRONGTYPE"
    clock.health.wrote(3, clock.now, is_held=True)
    assert clock.health.verdict(clock.now) == GREEN


def test_one_shard_that_works_does_not_hide_another() -> None:
    """Each shard with a held lease counts."""
    clock = Clock()

    def step() -> None:
        clock.health.wrote(0, clock.now, is_held=True)
        clock.health.renewed(1, clock.now, is_held=True)

    verdicts = clock.every(step, 6)
    assert colors(verdicts) == "GGGGRR"
    assert verdicts[-1].startswith("shard 1: no full state was written for over 10 s: still")


def test_what_a_scheduler_knows_of_the_server_is_red_at_once() -> None:
    """A condition of the server, or unreadable fields of a shard whose lease it holds."""
    clock = Clock()
    clock.health.wrote(0, clock.now, is_held=True)
    clock.health.unreadable(0, "1 key ('n')")
    assert clock.health.verdict(clock.now) == (
        "shard 0: 1 key ('n') of the full state cannot be read; write them again, then run "
        "`statebroker verify --accept`"
    )
    clock.health.condition = "Redis evicts"
    assert clock.health.verdict(clock.now) == "Redis evicts"
    clock.health.condition = ""
    clock.health.renewed(0, clock.now, is_held=False)
    assert clock.health.verdict(clock.now) == GREEN, "another scheduler holds the lease"
    clock.health.wrote(0, clock.now, is_held=True)
    clock.health.unreadable(0, "")
    assert clock.health.verdict(clock.now) == GREEN


def test_a_long_write_that_gets_on_is_green() -> None:
    """Each portion counts as progress, also in a round that takes minutes."""
    clock = Clock()
    clock.health.renewed(0, clock.now, is_held=True)
    verdicts = clock.every(lambda: clock.health.progressed(0, clock.now), 20)
    verdicts += clock.every(lambda: clock.health.progressed(0, 100.0), 5)
    assert colors(verdicts) == "G" * 23 + "RR"
    # Whoever does not hold the lease has nothing to write, whatever it wrote once.
    clock.health.renewed(0, clock.now, is_held=False)
    clock.health.progressed(0, 100.0)
    assert clock.health.verdict(clock.now) == GREEN


def test_a_standby_is_green() -> None:
    """A scheduler without a lease need not write, whatever it did before."""
    clock = Clock()
    clock.health.renewed(0, clock.now, is_held=True)
    clock.health.failed(0, "the lease was lost")
    standby = clock.every(lambda: clock.health.renewed(0, clock.now, is_held=False), 20)
    assert colors(standby) == "G" * 20
    # Taking over it has the whole bound, and no old error.
    verdicts = clock.every(lambda: clock.health.renewed(0, clock.now, is_held=True), 6)
    assert colors(verdicts) == "GGGGRR"
    assert "lost" not in verdicts[-1]


@pytest.mark.parametrize("is_held", [True, False])
def test_a_lease_that_cannot_be_renewed_is_red(is_held: bool) -> None:  # noqa: FBT001
    """Once is no fault; again and again is, for a standby too: it could not take over."""
    clock = Clock(interval=10.0)
    clock.health.renewed(0, clock.now, is_held=is_held)
    verdicts = clock.every(lambda: clock.health.not_renewed(0, clock.now, "gone"), 4)
    assert colors(verdicts) == "GGRR"
    assert verdicts[-1] == "shard 0: the lease could not be renewed for over 4 s: gone"
    clock.health.renewed(0, clock.now, is_held=is_held)
    assert clock.health.verdict(clock.now) == GREEN


def test_an_attempt_that_hung_counts_from_its_begin() -> None:
    """A server that did not answer for 10 s was unreachable for all of them."""
    clock = Clock()
    clock.every(lambda: clock.health.renewed(0, clock.now, is_held=True), 3)
    began = clock.now
    clock.every(lambda: None, 3)
    clock.health.not_renewed(0, began, "timed out")
    assert "timed out" in clock.health.verdict(clock.now)
