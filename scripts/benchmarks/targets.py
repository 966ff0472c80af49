"""The targets that the project set itself, and which of them a run reached; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scripts.benchmarks.curves.load import DICT, HELD, REPLICA
from scripts.benchmarks.curves.nodes import BARE, SHARE
from scripts.benchmarks.curves.snapshot import CPU_MS, FOLDED
from scripts.benchmarks.curves.value import FLOAT_BYTES
from scripts.benchmarks.document import Run
from scripts.benchmarks.scenarios.latency import ALL_P99
from scripts.benchmarks.scenarios.numbers import BYTES
from scripts.benchmarks.stats import advantage, compared, summary


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        what: for people.
        bound: the number to be reached.
        unit: behind the numbers.
        sign: "≥" if the bound is the least, "≤" if it is the most.
        digits: behind the point.
        of: finds the number in a run; None if it was not measured.
        why: what stands between, in the words of the page; told where it was not reached.
    """

    what: str
    bound: float
    unit: str
    sign: Literal["≥", "≤"]
    digits: int
    of: Callable[[Run], float | None]
    why: str = ""

    def is_reached(self, value: float) -> bool:
        """Whether this number reaches it."""
        return value >= self.bound if self.sign == "≥" else value <= self.bound


def ratio(contender: str, scenario: str = "throughput") -> Callable[[Run], float | None]:
    """Return what finds how many times ours is ahead of a peer's throughput."""

    def find(run: Run) -> float | None:
        for result in run.results:
            if result.scenario.name == scenario:
                found = compared(result, contender)
                return found.median if found else None
        return None

    return find


def median_of(
    scenario: str, contender: str, measure: str, least: int = 0
) -> Callable[[Run], float | None]:
    """Return what finds a median of a contender, if it wrote at least so many updates."""

    def find(run: Run) -> float | None:
        for result in run.results:
            samples = [one for one in result.samples if one.updates >= least]
            if result.scenario.name == scenario and samples:
                found = summary(result.of(contender, measure).values())
                return found.median if found else None
        return None

    return find


def load_ratio(run: Run) -> float | None:
    """Return how many times as long as a bare HSCAN ours takes to load."""
    for result in run.results:
        if result.scenario.name == "load" and all(one.updates >= MILLION for one in result.samples):
            ours, theirs = (result.of(one, "seconds") for one in ("statebroker-load", "hscan"))
            found = advantage(ours, theirs, is_more_better=True)
            return found.median if found else None
    return None


def point(curve: str, line: str, x: float, measure: str) -> Callable[[Run], float | None]:
    """Return what finds the median at a point of a curve."""

    def find(run: Run) -> float | None:
        for course in run.courses:
            if course.curve.name == curve:
                found = course.at(line, x, measure)
                return found.median if found else None
        return None

    return find


def over(
    above: Callable[[Run], float | None], below: Callable[[Run], float | None], times: float = 1.0
) -> Callable[[Run], float | None]:
    """Return what finds one number over another, if both were measured."""

    def find(run: Run) -> float | None:
        one, other = above(run), below(run)
        return one / other * times if one is not None and other else None

    return find


MILLION = 1_000_000
MACHINE = (
    "two cores carry writer, worker, server and reader: the least that Python takes for an update "
    "by itself is in [the limit](#how-far-from-the-limit-of-the-machine)"
)
PEERS = (
    "The peers are 1.6 (HSET + PUBLISH) to 8 times (ZeroMQ) as fast here as where the targets "
    f"were set; {MACHINE}"
)
TARGETS = (
    Target("object plane against HSET + PUBLISH", 40, " x", "≥", 1, ratio("hset-publish"), PEERS),
    Target("object plane against XADD + XREAD", 30, " x", "≥", 1, ratio("xadd-xread"), PEERS),
    Target("object plane against ZeroMQ PUB/SUB", 15, " x", "≥", 1, ratio("zeromq"), PEERS),
    Target("object plane against NATS KV", 120, " x", "≥", 1, ratio("nats-kv"), PEERS),
    Target(
        "numeric plane against HSET + PUBLISH",
        250,
        " x",
        "≥",
        0,
        ratio("numbers-hset-publish", "numbers"),
        "A number costs about 90 ns in four processes on two cores, mostly copies of memory; where "
        "system calls are cheap, HSET + PUBLISH gains more than copies do",
    ),
    Target(
        "bytes a delta on the wire, text keys, float64, chunks of 1,000",
        12.5,
        "",
        "≤",
        2,
        median_of("numbers", "statebroker-table-1000", BYTES),
    ),
    Target(
        "bytes a delta over the packed size of key and value, floats",
        1.10,
        "",
        "≤",
        3,
        point("curve-value", "floats", FLOAT_BYTES, "overhead"),
    ),
    Target(
        "batches by age, 10,000 deltas/s: p99 from set to sight, beyond max age",
        5,
        " ms",
        "≤",
        2,
        median_of("latency-age", "statebroker-age", ALL_P99.name),
        "Of the median about 1 ms is the drain's way to the replica, 1.5 ms unpacking a batch of "
        "500 and making its changes; the rest, of p99 most, is processes waiting for one of two "
        "cores",
    ),
    Target(
        "batches by count 1, 1,000 deltas/s: p99 from set to sight",
        5,
        " ms",
        "≤",
        2,
        median_of("latency", "statebroker-count-1", "p99_ms"),
    ),
    Target(
        "1,000 nodes, each 10 deltas/s: Redis CPU",
        25,
        " %",
        "≤",
        1,
        point("curve-nodes", BARE, 1_000, SHARE.name),
        "Evenly spread, each delta is an append of its own. As many plain SETs, each of which "
        "wakes Redis, is read and is answered, take about 10 % by themselves. An append is a "
        "script of seven commands, which check incarnation and number, keep order and account for "
        "all: of its 160,000 instructions in Redis (callgrind, beside those of the kernel) 27 % "
        "are the call of a script with as many arguments that does nothing, 35 % the seven "
        "commands, 38 % what it computes; the drain reads and empties up to a thousand lists in "
        "every 50 ms",
    ),
    Target(
        "full load of 1,000,000 keys",
        4,
        " s",
        "≤",
        2,
        median_of("load", "statebroker-load", "seconds", MILLION),
    ),
    Target("... over a bare HSCAN of as much", 1.5, " x", "≤", 2, load_ratio),
    Target(
        "replica's memory over a dict of the same million",
        1.3,
        " x",
        "≤",
        2,
        over(
            point("curve-load", REPLICA, MILLION, HELD.name),
            point("curve-load", DICT, MILLION, HELD.name),
        ),
    ),
    Target(
        "full state, 1 % of keys changed, over all changed: CPU",
        3,
        " %",
        "≤",
        2,
        over(
            point("curve-snapshot", FOLDED, 1, CPU_MS.name),
            point("curve-snapshot", FOLDED, 100, CPU_MS.name),
            100.0,
        ),
    ),
)


def target_lines(run: Run) -> list[str]:
    """Return the page's table of targets, and below it why some were missed."""
    lines = ["| what | target | measured | |", "|---|--:|--:|---|"]
    reasons: list[str] = []
    for target in TARGETS:
        value = target.of(run)
        cells = [target.what, f"{target.sign} {target.bound:g}{target.unit}"]
        if value is None:
            cells += ["-", "not measured"]
        elif target.is_reached(value):
            cells += [f"{value:.{target.digits}f}{target.unit}", "reached"]
        else:
            if target.why not in reasons:
                reasons.append(target.why)
            note = f"**missed** ({reasons.index(target.why) + 1})"
            cells += [f"{value:.{target.digits}f}{target.unit}", note]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"{number}. {why}." for number, why in enumerate(reasons, start=1)]
    return [*lines, "", *notes]
