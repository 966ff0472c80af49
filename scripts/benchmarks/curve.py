"""What a cost curve is, and what its points gave; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarks.model import Made, Measure
from scripts.benchmarks.stats import Summary, summary


@dataclass(frozen=True)
class Line:
    """One line of a curve.

    Attributes:
        name: in samples.
        title: for people.
        xs: where it is measured.
        quick_xs: where a quick run measures it; a part of `xs`.
        settings: what is the same at each of its points, for the curve's `play`.
    """

    name: str
    title: str
    xs: tuple[float, ...]
    quick_xs: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One drawing of a curve's picture.

    Attributes:
        label: of the upright axis.
        measures: what is drawn; more than one of a line differ in their dashes.
        is_log: the upright axis is logarithmic; else it begins at 0.
        lines: names of those that are drawn here; empty for all that have the measures.
    """

    label: str
    measures: tuple[Measure, ...]
    is_log: bool = False
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """One point to be measured.

    Attributes:
        line: which.
        x: where.
        part: of the usual number of updates or seconds, 1 or less.
        server: "redis" or "valkey".
    """

    line: Line
    x: float
    part: float
    server: str

    def scaled(self, count: float, least: int = 1) -> int:
        """Return a number of updates for this run."""
        return max(least, round(count * self.part))


@dataclass(frozen=True)
class Curve:
    """A cost, measured over one setting.

    Attributes:
        name: for the command line and the names of files.
        title: for people.
        method: what is measured and how, in the words of the page; paragraphs.
        axis: what is varied.
        lines: at least one.
        panels: of the picture; their measures come first in the table.
        play: measures one point; raises `BenchmarkError` if it does not count.
        over: name of the measure that the points are drawn over, if that is not `axis` itself.
        also: measures that are shown in the table only.
        is_log: the level axis of the picture is logarithmic.
        at_once: so many points may be measured at the same time, where that does not matter.
        quick_part: of the usual updates, that a quick run makes.
    """

    name: str
    title: str
    method: str
    axis: Measure
    lines: tuple[Line, ...]
    panels: tuple[Panel, ...]
    play: Callable[[Setting], Mapping[str, float]]
    over: str = ""
    also: tuple[Measure, ...] = ()
    is_log: bool = True
    at_once: int = 1
    quick_part: float = 0.5

    @property
    def measures(self) -> list[Measure]:
        """Everything that a point may give, each once."""
        drawn = [one for panel in self.panels for one in panel.measures]
        return list(dict.fromkeys([*drawn, *self.also]))


@dataclass(frozen=True)
class Point:
    """What one run at one point gave.

    Attributes:
        line: its name.
        x: where.
        round: 1 and up.
        measures: by name; empty if the run does not count.
        fault: why it does not count; empty if it does.
    """

    line: str
    x: float
    round: int
    measures: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Course:
    """All runs of a curve, in the order in which they were made.

    Attributes:
        curve: what was measured.
        points: of all lines and rounds.
        made: when and from what.
    """

    curve: Curve
    points: tuple[Point, ...]
    made: Made = field(default_factory=Made)

    def at(self, line: str, x: float, measure: str) -> Summary | None:
        """Return what the rounds at one point gave; None if nothing that counts."""
        return summary(
            point.measures[measure]
            for point in self.points
            if point.line == line and point.x == x and measure in point.measures
        )

    def xs(self, line: str) -> list[float]:
        """Return where a line was measured, ascending, what does not count included."""
        return sorted({point.x for point in self.points if point.line == line})

    def drawn(self, line: str, measure: str) -> tuple[list[float], list[float]]:
        """Return the medians of a line as two columns, where they are drawn and how high."""
        pairs = []
        for x in self.xs(line):
            height = self.at(line, x, measure)
            over = self.at(line, x, self.curve.over) if self.curve.over else None
            if height is not None:
                pairs.append((over.median if over else x, height.median))
        pairs.sort()
        return [x for x, _ in pairs], [y for _, y in pairs]

    @property
    def faults(self) -> list[Point]:
        """Runs that do not count."""
        return [point for point in self.points if point.fault]
