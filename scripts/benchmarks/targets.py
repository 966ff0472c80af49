"""The project's performance targets, and which of them a report reaches; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scripts.benchmarks.curves.load import DICT, HELD, REPLICA
from scripts.benchmarks.curves.nodes import BARE, SHARE
from scripts.benchmarks.curves.snapshot import CPU_MS, FOLDED
from scripts.benchmarks.curves.value import FLOAT_BYTES
from scripts.benchmarks.report import Report
from scripts.benchmarks.scenarios.latency import ALL_P99
from scripts.benchmarks.scenarios.numbers import BYTES
from scripts.benchmarks.stats import advantage, compared, summary


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        what: first column of the page's table.
        bound: the number to be reached.
        unit: shown after numbers.
        sign: "≥" if the bound is a minimum, "≤" if it is a maximum.
        digits: after the decimal point.
        of: returns the number from a report; None if it was not measured.
        why: the reason, shown if the target was missed.
    """

    what: str
    bound: float
    unit: str
    sign: Literal["≥", "≤"]
    digits: int
    of: Callable[[Report], float | None]
    why: str = ""

    def is_reached(self, value: float) -> bool:
        """Whether this number reaches it."""
        return value >= self.bound if self.sign == "≥" else value <= self.bound


def ratio(contender: str, scenario: str = "throughput") -> Callable[[Report], float | None]:
    """Return a function that returns the ratio of our throughput to a peer's."""

    def find(report: Report) -> float | None:
        for result in report.results:
            if result.scenario.name == scenario:
                found = compared(result, contender)
                return found.median if found else None
        return None

    return find


def median_of(
    scenario: str, contender: str, measure: str, least: int = 0
) -> Callable[[Report], float | None]:
    """Return a function that returns a median, of runs with at least `least` updates."""

    def find(report: Report) -> float | None:
        for result in report.results:
            samples = [one for one in result.samples if one.updates >= least]
            if result.scenario.name == scenario and samples:
                found = summary(result.of(contender, measure).values())
                return found.median if found else None
        return None

    return find


def load_ratio(report: Report) -> float | None:
    """Return the ratio of our load time to that of a bare HSCAN."""
    for result in report.results:
        if result.scenario.name == "load" and all(one.updates >= MILLION for one in result.samples):
            ours, theirs = (result.of(one, "seconds") for one in ("statebroker-load", "hscan"))
            found = advantage(ours, theirs, is_more_better=True)
            return found.median if found else None
    return None


def point(curve: str, line: str, x: float, measure: str) -> Callable[[Report], float | None]:
    """Return a function that returns the median at a point of a curve."""

    def find(report: Report) -> float | None:
        for curve_result in report.curve_results:
            if curve_result.curve.name == curve:
                found = curve_result.at(line, x, measure)
                return found.median if found else None
        return None

    return find


def over(
    above: Callable[[Report], float | None],
    below: Callable[[Report], float | None],
    times: float = 1.0,
) -> Callable[[Report], float | None]:
    """Return a function that divides one number by another, if both were measured."""

    def find(report: Report) -> float | None:
        one, other = above(report), below(report)
        return one / other * times if one is not None and other else None

    return find


MILLION = 1_000_000
MACHINE = (
    "writer, worker, server and reader share two cores; the minimum that Python itself needs for "
    "an update is in [the limit](#how-far-from-the-limit-of-the-machine)"
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
        "A number costs about 90 ns in four processes on two cores, mostly for copying memory; "
        "where system calls are cheap, HSET + PUBLISH gains more than copying does",
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
        "batches by age, 10,000 deltas/s: p99 latency beyond max age",
        5,
        " ms",
        "≤",
        2,
        median_of("latency-age", "statebroker-age", ALL_P99.name),
        "About 1 ms of the median is the way from the drain to the replica, 1.5 ms is unpacking a "
        "batch of 500 and applying it; the rest, and most of p99, is processes waiting for one of "
        "two cores",
    ),
    Target(
        "batches by count 1, 1,000 deltas/s: p99 latency",
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
        "Evenly spread, each delta is an append of its own. The same number of plain SETs takes "
        "about 10 %. An append is a script of seven commands, which check incarnation and number, "
        "keep order and count everything: of its 160,000 instructions in Redis (callgrind, without "
        "those of the kernel) 27 % are the call of an empty script with as many arguments, 35 % "
        "the seven commands, 38 % the script's own computation; the drain reads and empties up to "
        "a thousand lists every 50 ms",
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


def target_lines(report: Report) -> list[str]:
    """Return the page's table of targets, followed by the reasons why some were missed."""
    lines = ["| what | target | measured | |", "|---|--:|--:|---|"]
    reasons: list[str] = []
    for target in TARGETS:
        value = target.of(report)
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
