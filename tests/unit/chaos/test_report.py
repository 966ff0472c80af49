"""The verdict of `scripts/faults`: what fails it, to whom violations belong, how stale it was."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from broker.testing.history import History, Violation
from broker.testing.records import Counted, Headed, Logged, Record, Seen, Tallied
from tests.chaos.faults import FAULTS
from tests.chaos.plan import FULL_RUN_S, most_seconds, plan
from tests.chaos.report import (
    BROKEN,
    GOOD,
    INCOMPLETE,
    RECOVERIES,
    InjectedFault,
    Outcome,
    as_object,
    missing_faults,
    missing_recoveries,
    print_report,
    recoveries_taken,
    rows,
    verdict,
)
from tests.chaos.staleness import Staleness
from tests.unit.valid_history import BATCHES, THREE, logged, place

CUT, KILL = InjectedFault("cut", 10.0, 12.0), InjectedFault("kill", 30.0, 31.0)
SENDER, READER = ("retries", "resent", "lost"), ("gaps", "loads", "silences", "forks")


def grown(at: float, count: int) -> list[Counted | Tallied]:
    """Counters of a producer and a replica, all at the same number."""
    return [
        Counted(at, "n", (7,), dict.fromkeys(SENDER, count), 0, 10.0),
        Tallied(at, "r", dict.fromkeys(READER, count)),
    ]


EVERY_RUNG = [*grown(5.0, 1), *grown(13.0, 3), *grown(32.0, 4)]


def outcome(
    records: Sequence[Record] = EVERY_RUNG,
    *violations: Violation,
    seconds: float = FULL_RUN_S,
    happened: Sequence[InjectedFault] = (CUT, KILL),
    recoveries_expected: bool = True,
) -> Outcome:
    """A run that should have made "cut" and "kill"."""
    return Outcome(
        seed=1,
        seconds=seconds,
        asked_seconds=seconds,
        history=History(records),
        happened=happened,
        violations=violations,
        wanted=("cut", "kill"),
        left_out={"clock_step": "no library"},
        proxy=Counter(),
        recoveries_expected=recoveries_expected,
    )


# -- the verdict ----------------------------------------------------------------------------------


def test_run_in_which_everything_happened_is_good() -> None:
    """No violation, every fault had_effect, every way of recovery taken."""
    assert verdict(outcome()) == GOOD
    assert recoveries_taken(outcome().history, (CUT, KILL)) == dict.fromkeys(RECOVERIES, 3)


def test_violation_spoils_a_run_of_any_length() -> None:
    """Also a short one, and one without a time."""
    assert verdict(outcome(EVERY_RUNG, Violation("x"), seconds=6.0)) == BROKEN


@pytest.mark.parametrize(
    "happened", [(CUT,), (CUT, InjectedFault("kill", 30.0, 31.0, had_effect=False))]
)
def test_fault_without_effect_makes_only_a_long_run_incomplete(
    happened: Sequence[InjectedFault],
) -> None:
    """A fault without effect proved nothing. A short run only reports it."""
    assert missing_faults(outcome(happened=happened)) == ["kill"]
    assert verdict(outcome(happened=happened)) == INCOMPLETE
    assert verdict(outcome(happened=happened, seconds=FULL_RUN_S - 1)) == GOOD


@pytest.mark.parametrize("rung", RECOVERIES)
def test_way_of_recovery_not_taken_spoils_a_long_run_only(rung: str) -> None:
    """A missing recovery spoils only a long run that expects every recovery."""
    records = [without(RECOVERIES[rung], one) for one in EVERY_RUNG]
    assert missing_recoveries(outcome(records)) == [rung]
    assert verdict(outcome(records)) == INCOMPLETE
    assert verdict(outcome(records, seconds=60.0)) == GOOD
    assert verdict(outcome(records, recoveries_expected=False)) == GOOD


def without(name: str, record: Counted | Tallied) -> Counted | Tallied:
    """A sample in which one counter never grew."""
    return replace(record, counters={k: n for k, n in record.counters.items() if k != name})


# -- the table ------------------------------------------------------------------------------------


def test_violation_belongs_to_the_fault_during_or_before_it() -> None:
    """While the fault lasts or soon after; what has no such time belongs to the run."""
    during, after, calm = Violation("a", 11.0), Violation("b", 15.0), Violation("c", 25.0)
    nowhere = Violation("d")
    found = outcome(EVERY_RUNG, during, after, calm, nowhere)
    assert {row.fault: row.violations for row in rows(found)} == {"cut": ["a", "b"], "kill": []}
    text = reported(found)
    assert "c (of the run" in text
    assert "d (of the run" in text
    assert "a (of the run" not in text


def test_recovery_belongs_to_the_fault() -> None:
    """What counters grew by, from before the fault until soon after it."""
    cut, kill = rows(outcome())
    assert set(cut.recovered_by.values()) == {2}
    assert set(kill.recovered_by.values()) == {1}


def test_report_says_what_is_missing_and_the_bound() -> None:
    """In words and in JSON: faults, ways of recovery, what was left out, staleness and bound."""
    found = outcome([Seen(11.0, "r", "live", 2.5, ())], happened=(CUT,))
    text = reported(found)
    for words in (
        "faults without effect: kill",
        "ways of recovery not taken: gap -> log",
        "left out: clock_step: no library",
        "lag of at most 2.50 s (bound 3 s)",
        "not everything happened",
        "seed 1",
    ):
        assert words in text
    report = as_object(found)
    assert report["verdict"] == INCOMPLETE
    assert report["faults_missing"] == ["kill"]
    assert report["rungs_missing"] == list(RECOVERIES)
    assert (report["largest_lag_while_live_s"], report["staleness_bound_s"]) == (2.5, 3.0)


def reported(found: Outcome) -> str:
    """What a person reads."""
    console = Console(file=io.StringIO(), width=200)
    print_report(console, found)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


# -- staleness ------------------------------------------------------------------------------------


def seen(at: float, offset: int, status: str = "live") -> Seen:
    """A replica at a batch."""
    return Seen(at, "r", status, 0.1, (place(offset),))


HEADS = [Headed(n * 10.0, n * 10.0, place(n)) for n in (1, 2, 3)]


def longest(records: Sequence[Record], batches: Sequence[Logged] = BATCHES) -> tuple[float, float]:
    """Return the most seconds not live, and without the head."""
    heads = sorted([*HEADS, *records], key=lambda record: record.at)
    staleness = Staleness(History([*batches, *heads]))
    return (
        max((one.seconds for one in staleness.not_live), default=0.0),
        max((one.seconds for one in staleness.unseen), default=0.0),
    )


def test_time_without_the_head_counts_from_when_it_was_there() -> None:
    """The time ends with the last sample that did not show it, whatever its status."""
    assert longest([seen(15.0, 1), seen(21.0, 1), seen(24.0, 1), seen(25.0, 2)]) == (0.0, 4.0)
    # Always a little behind is not long behind.
    assert longest([seen(15.0, 1), seen(21.0, 1), seen(22.0, 2), seen(31.0, 2)]) == (0.0, 1.0)


def test_time_not_live_counts_until_it_is_live_again() -> None:
    """Also if the run ends before that."""
    away = [seen(15.0, 1, "stale"), seen(16.0, 1, "catching_up"), seen(18.0, 1)]
    assert longest(away) == (3.0, 0.0)
    assert longest(away[:2]) == (1.0, 0.0)


def test_head_that_the_server_forgot_need_not_be_shown() -> None:
    """A replica that never had it continues with the other history."""
    other = logged(2, THREE, line="b")
    forgot = Headed(21.0, 21.0, other.place)
    samples = [seen(15.0, 1), Seen(22.0, "r", "live", 0.1, (other.place,))]
    assert longest([forgot, *samples], [*BATCHES[:2], other]) == (0.0, 0.0)


# -- the plan -------------------------------------------------------------------------------------


def test_every_fault_comes_in_a_full_run_whatever_the_seed() -> None:
    """Each kind comes before any comes again, and the slowest plan is still fast enough."""
    assert most_seconds(len(FAULTS)) < FULL_RUN_S
    for seed in range(50):
        steps = plan(seed, FULL_RUN_S, list(FAULTS))
        assert {step.fault for step in steps} == set(FAULTS)
        first = steps[: len(FAULTS)]
        assert {step.fault for step in first} == set(FAULTS)
        assert first[-1].at < most_seconds(len(FAULTS))


def test_plan_is_a_function_of_the_seed() -> None:
    """The same seed makes the same faults at the same times."""
    names = list(FAULTS)
    assert plan(7, 600, names) == plan(7, 600, names)
    assert plan(7, 600, names) != plan(8, 600, names)
