"""The report of a chaos run, as text and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

from broker.testing.accounts import accepted
from broker.testing.history import History, Violation
from broker.testing.records import Content, Counted, Tallied
from tests.chaos.plan import FULL_RUN_S
from tests.chaos.reader import BOUND_S
from tests.chaos.staleness import Staleness, longest

AFTERMATH_S = 4.0
VIOLATIONS_SHOWN = 20
GOOD, BROKEN, INCOMPLETE = "good", "violations", "incomplete"
RECOVERIES = {
    "gap -> log": "gaps",
    "full load": "loads",
    "retry": "retries",
    "stale -> reconnect": "silences",
    "fork": "forks",
    "missing -> resend": "resent",
    "lost by count": "lost",
}
"""Ways of recovery, and the counter of a replica or producer that each increments."""
COLUMNS = ("gap", "full", "retry", "stale", "fork", "resent", "lost")


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that was injected.

    Attributes:
        start: monotonic seconds.
        end: likewise.
        had_effect: whether it had an effect.
    """

    fault: str
    start: float
    end: float
    had_effect: bool = True

    def holds(self, at: float) -> bool:
        """Whether a time is during the fault or the recovery after it."""
        return self.start <= at <= self.end + AFTERMATH_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        asked_seconds: requested duration of the faults.
        wanted: names of the requested faults.
        recoveries_expected: whether all ways of recovery must occur.
    """

    seed: int
    seconds: float
    asked_seconds: float
    history: History
    happened: Sequence[InjectedFault]
    violations: Sequence[Violation]
    wanted: Sequence[str]
    left_out: Mapping[str, str]
    proxy: Counter[str]
    recoveries_expected: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """The results of one fault: a row of the table.

    Attributes:
        times: how often it was injected.
        had_effect: how often it had an effect.
        recovered_by: way of recovery -> increase of its counter meanwhile.
        longest_staleness_s: longest time for which a replica was not live or behind the head.
        largest_lag_s: largest lag that a live replica reported.
        violations: descriptions.
    """

    fault: str
    times: int
    had_effect: int
    recovered_by: Mapping[str, int]
    longest_staleness_s: float
    largest_lag_s: float
    violations: Sequence[str] = field(default_factory=list)


def deltas_accepted(history: History) -> int:
    """Return how many deltas were accepted, as producers recorded, each counted once."""
    return sum(
        appended.deltas for chunks in accepted(history).values() for appended in chunks.values()
    )


def deltas_lost(history: History) -> int:
    """Return how many deltas all producers reported as lost, ended ones included."""
    latest = {(one.node, one.incarnations): one.reported for one in history.of(Counted)}
    return sum(latest.values())


def lives(history: History) -> Iterable[list[tuple[float, Mapping[str, int]]]]:
    """Return the counters of each run of a process, oldest first."""
    found: dict[str, list[tuple[float, Mapping[str, int]]]] = defaultdict(list)
    for tallied in history.of(Tallied):
        found[f"replica {tallied.replica}"].append((tallied.at, tallied.counters))
    for counted in history.of(Counted):
        found[f"{counted.node} {counted.incarnations}"].append((counted.at, counted.counters))
    return found.values()


def recoveries(history: History, happened: Sequence[InjectedFault]) -> dict[str, Counter[str]]:
    """Return, for each fault, the increase of each recovery counter during it and soon after."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for samples in lives(history):
        for one in happened:
            before = [n for at, n in samples if at <= one.start]
            after = [n for at, n in samples if at > one.start and one.holds(at)]
            if after:
                for rung, name in RECOVERIES.items():
                    grown = after[-1].get(name, 0) - (before[-1].get(name, 0) if before else 0)
                    found[one.fault][rung] += grown
    return found


def recoveries_taken(history: History, happened: Sequence[InjectedFault]) -> Counter[str]:
    """Return how often each way of recovery was taken, from the first fault on."""
    if not happened:
        return Counter()
    whole = InjectedFault("", min(one.start for one in happened), float("inf"))
    return recoveries(history, [whole])[""]


def rows(outcome: Outcome) -> list[Row]:
    """Return the lines of the table, in the order of the names."""
    staleness = Staleness(outcome.history)
    away = [*staleness.not_live, *staleness.unseen]
    recovered = recoveries(outcome.history, outcome.happened)
    found = []
    for fault in sorted({one.fault for one in outcome.happened}):
        ours = [one for one in outcome.happened if one.fault == fault]
        found.append(
            Row(
                fault,
                len(ours),
                sum(one.had_effect for one in ours),
                dict(recovered[fault]),
                longest([one for one in away if _is_of(one.begin, ours)]),
                max((lag for at, lag in staleness.lags if _is_of(at, ours)), default=0.0),
                [str(one) for one in outcome.violations if _is_of(one.at, ours)],
            )
        )
    return found


def _is_of(at: float | None, happened: Sequence[InjectedFault]) -> bool:
    return at is not None and any(one.holds(at) for one in happened)


def missing_faults(outcome: Outcome) -> list[str]:
    """Return the requested faults that had no effect."""
    had_effect = {one.fault for one in outcome.happened if one.had_effect}
    return [fault for fault in outcome.wanted if fault not in had_effect]


def missing_recoveries(outcome: Outcome) -> list[str]:
    """Return the ways of recovery that were not taken."""
    taken = recoveries_taken(outcome.history, outcome.happened)
    return [rung for rung in RECOVERIES if not taken[rung]]


def verdict(outcome: Outcome) -> str:
    """Return "good", "violations", or "incomplete" for a full run that did not show everything."""
    if outcome.violations:
        return BROKEN
    is_full = outcome.asked_seconds >= FULL_RUN_S
    missing = missing_faults(outcome)
    if outcome.recoveries_expected:
        missing += missing_recoveries(outcome)
    return INCOMPLETE if is_full and missing else GOOD


def as_object(outcome: Outcome) -> dict[str, object]:
    """Return the outcome as one JSON object."""
    history, staleness = outcome.history, Staleness(outcome.history)
    return {
        "verdict": verdict(outcome),
        "violations": [str(one) for one in outcome.violations],
        "seed": outcome.seed,
        "seconds": round(outcome.seconds, 1),
        "faults": dict(Counter(one.fault for one in outcome.happened)),
        "faults_missing": missing_faults(outcome),
        "left_out": dict(outcome.left_out),
        "rungs": dict(recoveries_taken(history, outcome.happened)),
        "rungs_missing": missing_recoveries(outcome),
        "by_fault": [asdict(row) for row in rows(outcome)],
        "deltas_accepted": deltas_accepted(history),
        "deltas_lost_reported": deltas_lost(history),
        "contents_compared": len(history.of(Content)),
        "staleness_bound_s": BOUND_S,
        "largest_lag_while_live_s": round(staleness.largest_lag, 3),
        "longest_staleness_s": round(staleness.longest, 3),
        "longest_not_live_s": round(longest(staleness.not_live), 3),
        "longest_without_head_s": round(longest(staleness.unseen), 3),
        "proxy": dict(outcome.proxy),
    }


def print_report(console: Console, outcome: Outcome) -> None:
    """Print the outcome for a person."""
    history, staleness, table_rows = outcome.history, Staleness(outcome.history), rows(outcome)
    table = Table(title=f"Until {AFTERMATH_S:g} s after each fault; faults overlap")
    for title in ("fault", "times", *COLUMNS, "staleness", "live lag", "verdict"):
        table.add_column(title, justify="left" if title == "fault" else "right", no_wrap=True)
    for row in table_rows:
        table.add_row(
            row.fault,
            str(row.times) if row.had_effect == row.times else f"{row.had_effect} of {row.times}",
            *[str(row.recovered_by.get(rung) or "") for rung in RECOVERIES],
            *[f"{value:.2f} s" if value else "" for value in _seconds(row)],
            f"[red]{len(row.violations)} broken[/]" if row.violations else "[green]kept[/]",
        )
    console.print(table)
    for line in describe_left_out(outcome.left_out):
        console.print(f"left out: {line}", markup=False)
    for what, missing in (
        ("faults without effect", missing_faults(outcome)),
        ("ways of recovery not taken", missing_recoveries(outcome)),
    ):
        console.print(f"{what}: {', '.join(missing) or 'none'}", highlight=False)
    console.print(
        f"{deltas_accepted(history):,} deltas accepted, {deltas_lost(history):,} reported as lost; "
        f"content compared {len(history.of(Content)):,} times",
        highlight=False,
    )
    console.print(
        f"longest staleness: {staleness.longest:.2f} s not live or without the head; "
        f"live with a lag of at most {staleness.largest_lag:.2f} s (bound {BOUND_S:g} s)",
        highlight=False,
    )
    of_the_run = set(map(str, outcome.violations)).difference(
        *(row.violations for row in table_rows)
    )
    for violation in list(map(str, outcome.violations))[:VIOLATIONS_SHOWN]:
        whose = " (of the run, not of one fault)" if violation in of_the_run else ""
        console.print(violation + whose, markup=False, style="red")
    if len(outcome.violations) > VIOLATIONS_SHOWN:
        console.print(f"... and {len(outcome.violations) - VIOLATIONS_SHOWN} more")
    words = {GOOD: "no violation", INCOMPLETE: "no violation, but not everything happened"}
    said = words.get(verdict(outcome), f"{len(outcome.violations)} violations")
    console.print(f"verdict: {said} (seed {outcome.seed}, {outcome.seconds:.0f} s)")


def describe_left_out(left_out: Mapping[str, str]) -> list[str]:
    """Return one line per reason: the faults that were left out, and the reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for fault, reason in left_out.items():
        by_reason[reason].append(fault)
    return [f"{', '.join(faults)}: {reason}" for reason, faults in by_reason.items()]


def _seconds(row: Row) -> tuple[float, float]:
    return row.longest_staleness_s, row.largest_lag_s
