"""What the next version of the protocol has to reach, measured in one run; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from scripts.benchmarks.curves.nodes import BARE, PLAIN, SHARE
from scripts.benchmarks.curves.snapshot import CPU_MS, FOLDED
from scripts.benchmarks.curves.snapshot import PLAIN as PLAIN_HSET
from scripts.benchmarks.grid_tables import Sheet, ratio, shown_ratio
from scripts.benchmarks.grids.reads import GET_RATIO, LARGE, MANY_KEYS, MEMORY_RATIO, READS
from scripts.benchmarks.grids.shapes import (
    BATCHED,
    CHANGES,
    EACH,
    NATS,
    OURS,
    STATE,
    ZEROMQ,
)
from scripts.benchmarks.grids.shapes import (
    PLAIN as NOT_COMPRESSED,
)
from scripts.benchmarks.model import CPU, Result, cell
from scripts.benchmarks.report import Report
from scripts.benchmarks.scenarios.latency import AT_ONCE, P50
from scripts.benchmarks.scenarios.numbers import NUMBERS
from scripts.benchmarks.shapes import NAMES
from scripts.benchmarks.stats import ratio_of_medians, summary
from scripts.benchmarks.targets import over, point

Values = Callable[[Report], list[float | None]]
TITLE = "Targets of protocol version 3: ratios of medians of this run"
NOTE = (
    f"Four numbers are those of {', '.join(NAMES)}; each has to reach the target. -: not measured "
    "in this run (a quick one has too few keys for the memory); --only targets measures all."
)


@dataclass(frozen=True)
class Goal:
    """One target.

    Attributes:
        what: first column.
        sign: "≥" if the bound is a minimum, "≤" if it is a maximum.
        bound: the ratio to be reached by each number.
        of: returns the numbers from a report; None for each that was not measured.
    """

    what: str
    sign: Literal["≥", "≤"]
    bound: float
    of: Values

    def verdict(self, report: Report) -> str:
        """Return "reached", "missed", or "-" if a number was not measured and none missed it."""
        found = self.of(report)
        known = [value for value in found if value is not None]
        if not all(self._is_reached(value) for value in known):
            return "missed"
        return "reached" if len(known) == len(found) else "-"

    def measured(self, report: Report) -> str:
        """Return the numbers as text."""
        return ", ".join("-" if one is None else shown_ratio(one) for one in self.of(report))

    def as_object(self, report: Report) -> dict[str, Any]:
        """Return target, numbers and verdict for `--json`; numbers of shapes in their order."""
        return {
            "what": self.what,
            "sign": self.sign,
            "bound": self.bound,
            "measured": self.of(report),
            "verdict": self.verdict(report),
        }

    def _is_reached(self, value: float) -> bool:
        return value >= self.bound if self.sign == "≥" else value <= self.bound


def goals(report: Report) -> Sheet:
    """Return the table of targets."""
    return Sheet(
        TITLE,
        "what",
        [goal.what for goal in GOALS],
        [
            ("target", [f"{goal.sign} {goal.bound:g}" for goal in GOALS]),
            ("measured", [goal.measured(report) for goal in GOALS]),
            ("", [goal.verdict(report) for goal in GOALS]),
        ],
    )


def result_of(report: Report, name: str) -> Result | None:
    """Return the result of a grid or scenario; None if it was not measured."""
    for result in [*report.grids, *report.results]:
        if result.scenario.name == name:
            return result
    return None


def against(grid: str, peer: str) -> Values:
    """Return a function that returns how many times better ours is, for each shape."""

    def find(report: Report) -> list[float | None]:
        result = result_of(report, grid)
        return [None if result is None else ratio(result, row, peer) for row in NAMES]

    return find


def medians(scenario: str, above: tuple[str, str], below: tuple[str, str]) -> Values:
    """Return a function that returns one ratio of medians, of contender and measure each."""

    def find(report: Report) -> list[float | None]:
        result = result_of(report, scenario)
        return [None if result is None else ratio_of_medians(result, above, below)]

    return find


def worst_set(report: Report) -> list[float | None]:
    """Return the writer's CPU for a `set` of the most expensive shape, over that for a float."""
    result = result_of(report, STATE.name)
    if result is None:
        return [None]
    found = [summary(result.of(cell(row, OURS), CPU + "writer").values()) for row in NAMES]
    costs = [one.median for one in found if one is not None]
    return [max(costs) / costs[0] if len(costs) == len(NAMES) else None]


def median_of(grid: str, contender: str, measure: str, *, least: int = 0) -> Values:
    """Return a function that returns a median, of runs with at least `least` updates."""

    def find(report: Report) -> list[float | None]:
        result = result_of(report, grid)
        if result is None:
            return [None]
        samples = tuple(one for one in result.samples if one.updates >= least)
        found = summary(replace(result, samples=samples).of(contender, measure).values())
        return [None if found is None else found.median]

    return find


def single(find: Callable[[Report], float | None]) -> Values:
    """Return a function that returns one number as a list."""
    return lambda report: [find(report)]


NODES, ALL_KEYS = 1_000, 100
# What has to be measured for all of them.
PARTS = (
    *(STATE.name, CHANGES.name, READS.name, NUMBERS.name, AT_ONCE.name),
    *("curve-nodes", "curve-snapshot"),
)
GOALS = (
    Goal("state: over HSET+PUBLISH by hand", "≥", 2.5, against(STATE.name, BATCHED)),
    Goal("state: over ZeroMQ", "≥", 2, against(STATE.name, ZEROMQ)),
    Goal("changes: over HSET+PUBLISH by hand", "≥", 1.5, against(CHANGES.name, BATCHED)),
    Goal("changes: over ZeroMQ", "≥", 1.2, against(CHANGES.name, ZEROMQ)),
    Goal("state: over HSET+PUBLISH for each", "≥", 25, against(STATE.name, EACH)),
    Goal("state: over NATS KV", "≥", 100, against(STATE.name, NATS)),
    Goal("state: over ours, not compressed", "≥", 0.8, against(STATE.name, NOT_COMPRESSED)),
    Goal("CPU of a set, worst shape/float", "≤", 2, worst_set),
    Goal(
        "numbers: over HSET+PUBLISH by hand",
        "≥",
        40,
        medians(
            NUMBERS.name,
            (NUMBERS.ours, NUMBERS.headline.name),
            ("numbers-hset-publish-batch", NUMBERS.headline.name),
        ),
    ),
    Goal(
        "replica[key]/dict + unpackb, 2 fields",
        "≤",
        1.3,
        median_of(READS.name, cell(LARGE, OURS), GET_RATIO.name),
    ),
    Goal(
        "Redis CPU, 1,000 nodes/plain SETs",
        "≤",
        2,
        single(
            over(
                point("curve-nodes", BARE, NODES, SHARE.name),
                point("curve-nodes", PLAIN, NODES, SHARE.name),
            )
        ),
    ),
    Goal(
        "count 1, p50/bare HSET+PUBLISH",
        "≤",
        4,
        medians(AT_ONCE.name, (AT_ONCE.ours, P50.name), ("publish-paced", P50.name)),
    ),
    Goal(
        "full state CPU/HSET of everything",
        "≤",
        2.5,
        single(
            over(
                point("curve-snapshot", FOLDED, ALL_KEYS, CPU_MS.name),
                point("curve-snapshot", PLAIN_HSET, ALL_KEYS, CPU_MS.name),
            )
        ),
    ),
    Goal(
        "replica's memory/dict's, 2 fields",
        "≤",
        0.65,
        # Of few keys, what every replica holds is the larger part.
        median_of(READS.name, cell(LARGE, OURS), MEMORY_RATIO.name, least=MANY_KEYS),
    ),
)
