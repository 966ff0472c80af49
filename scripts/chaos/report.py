"""What came out of a chaos run, for a person and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from broker.faults.accounts import accepted
from broker.faults.freshness import LIVE
from broker.faults.history import History
from broker.faults.records import Content, Counted, Seen, Tallied

AFTERMATH_S = 4.0
VIOLATIONS_SHOWN = 20
# Counters of replicas and producers, and what a person calls them.
RUNGS = {"catch_ups": "log", "loads": "full", "reconnects": "links", "resent": "resent"}


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault that was made, and when (monotonic seconds)."""

    fault: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that is known after a run."""

    seed: int
    seconds: float
    history: History
    happened: Sequence[Happened]
    violations: Sequence[str]
    left_out: Mapping[str, str]
    proxy: Counter[str]


def deltas_accepted(history: History) -> int:
    """Return how many deltas producers heard to be accepted, each once."""
    return sum(
        appended.deltas for chunks in accepted(history).values() for appended in chunks.values()
    )


def deltas_lost(history: History) -> int:
    """Return how many deltas were told as lost; over all producers, dead ones too."""
    latest = {(one.node, one.incarnations): one.reported for one in history.of(Counted)}
    return sum(latest.values())


def is_live(seen: Seen) -> bool:
    """Tell whether a replica said that it was live."""
    return seen.status == LIVE


def during(at: float, happened: Sequence[Happened]) -> bool:
    """Tell whether a moment falls within one of these faults, or soon after."""
    return any(one.start <= at <= one.end + AFTERMATH_S for one in happened)


def longest_lag(history: History) -> float:
    """Return the largest lag in seconds that a replica had while it said that it was live."""
    return max((seen.lag for seen in history.of(Seen) if is_live(seen)), default=0.0)


def interruptions(history: History) -> list[tuple[float, float]]:
    """Return the times (begin, end) for which a running replica was not live."""
    found = []
    by_replica: dict[str, list[Seen]] = defaultdict(list)
    for seen in history.of(Seen):
        by_replica[seen.replica].append(seen)
    for samples in by_replica.values():
        began: float | None = None
        for seen in samples:
            if not is_live(seen) and began is None:
                began = seen.at
            elif is_live(seen) and began is not None:
                found.append((began, seen.at))
                began = None
        if began is not None:
            found.append((began, samples[-1].at))
    return found


def counters(history: History) -> dict[str, list[tuple[float, Mapping[str, int]]]]:
    """Return the samples of each process life, oldest first."""
    found: dict[str, list[tuple[float, Mapping[str, int]]]] = defaultdict(list)
    for tallied in history.of(Tallied):
        found[f"replica {tallied.replica}"].append((tallied.at, tallied.counters))
    for counted in history.of(Counted):
        found[f"{counted.node} {counted.incarnations}"].append((counted.at, counted.counters))
    return found


def rungs(history: History, happened: Sequence[Happened]) -> dict[str, Counter[str]]:
    """Return, for each fault, how the counters of recovery grew while it lasted and soon after."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for samples in counters(history).values():
        for one in happened:
            before = [n for at, n in samples if at <= one.start]
            after = [n for at, n in samples if one.start < at <= one.end + AFTERMATH_S]
            if after:
                for rung in RUNGS:
                    grown = after[-1].get(rung, 0) - (before[-1].get(rung, 0) if before else 0)
                    found[one.fault][rung] += grown
    return found


def as_object(outcome: Outcome) -> dict[str, object]:
    """Return the outcome as one JSON object."""
    history = outcome.history
    broken = interruptions(history)
    recovered = rungs(history, outcome.happened)
    return {
        "verdict": "violations" if outcome.violations else "good",
        "violations": list(outcome.violations),
        "seed": outcome.seed,
        "seconds": round(outcome.seconds, 1),
        "faults": dict(Counter(one.fault for one in outcome.happened)),
        "left_out": dict(outcome.left_out),
        "recovered_by": {fault: dict(counts) for fault, counts in recovered.items()},
        "deltas_accepted": deltas_accepted(history),
        "deltas_lost_reported": deltas_lost(history),
        "contents_compared": len(history.of(Content)),
        "longest_staleness_s": round(longest_lag(history), 3),
        "longest_not_live_s": round(max((e - b for b, e in broken), default=0.0), 3),
        "proxy": dict(outcome.proxy),
    }


def tell(console: Console, outcome: Outcome) -> None:
    """Print the outcome for a person."""
    history = outcome.history
    broken, recovered = interruptions(history), rungs(history, outcome.happened)
    table = Table(title="Recovery while each fault lasted and soon after; some overlap")
    for title in ("fault", "times", *RUNGS.values(), "not live", "lag", "verdict"):
        table.add_column(title, justify="left" if title == "fault" else "right", no_wrap=True)
    times = Counter(one.fault for one in outcome.happened)
    verdict = "[red]see below[/]" if outcome.violations else "[green]kept[/]"
    for fault in sorted(times):
        ours = [one for one in outcome.happened if one.fault == fault]
        away = max((end - begin for begin, end in broken if during(begin, ours)), default=0.0)
        lag = max(
            (seen.lag for seen in history.of(Seen) if is_live(seen) and during(seen.at, ours)),
            default=0.0,
        )
        counts = [str(recovered[fault][rung] or "") for rung in RUNGS]
        seconds = [f"{value:.2f} s" if value else "" for value in (away, lag)]
        table.add_row(fault, str(times[fault]), *counts, *seconds, verdict)
    console.print(table)
    for fault, reason in outcome.left_out.items():
        console.print(f"left out: {fault}: {reason}", markup=False)
    console.print(
        f"{deltas_accepted(history):,} deltas accepted, {deltas_lost(history):,} told as lost; "
        f"content compared {len(history.of(Content)):,} times; a live replica was at most "
        f"{longest_lag(history):.2f} s behind",
        highlight=False,
    )
    for violation in outcome.violations[:VIOLATIONS_SHOWN]:
        console.print(violation, markup=False, style="red")
    if len(outcome.violations) > VIOLATIONS_SHOWN:
        console.print(f"... and {len(outcome.violations) - VIOLATIONS_SHOWN} more")
    verdict = f"{len(outcome.violations)} violations" if outcome.violations else "no violation"
    console.print(f"verdict: {verdict} (seed {outcome.seed}, {outcome.seconds:.0f} s)")
