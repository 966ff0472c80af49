"""Cost curves and their results; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarks.model import Measure, Provenance
from scripts.benchmarks.stats import Summary, summary


@dataclass(frozen=True)
class Line:
    """One line of a curve.

    Attributes:
        name: in samples.
        title: heading of its table.
        xs: values of the axis at which it is measured.
        quick_xs: those that `--quick` measures if the curve is named; a subset of `xs`.
        compared: those that a target compares with another line's; a subset of `quick_xs`. They
            are measured more often, by turns, and by every `--quick`.
        settings: the same at each of its points; for the curve's `measure_point`.
    """

    name: str
    title: str
    xs: tuple[float, ...]
    quick_xs: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    compared: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One chart in a curve's picture.

    Attributes:
        label: of the y axis.
        measures: what is drawn; several measures of a line differ in their dashes.
        is_log: the y axis is logarithmic; else it begins at 0.
        lines: names of the lines drawn here; empty for all that have the measures.
    """

    label: str
    measures: tuple[Measure, ...]
    is_log: bool = False
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class PointSpec:
    """One point to be measured.

    Attributes:
        line: the line it belongs to.
        x: value of the axis.
        scale: share of the usual number of updates or seconds, above 0, up to 1.
        server: "redis" or "valkey".
    """

    line: Line
    x: float
    scale: float
    server: str

    def scaled(self, count: float, least: int = 1) -> int:
        """Return the number of updates of this run, at least `least`."""
        return max(least, round(count * self.scale))


@dataclass(frozen=True)
class Curve:
    """A cost, measured over one spec.

    Attributes:
        name: for the command line and the names of files.
        title: heading in the page.
        method: what is measured and how, as shown in the page; paragraphs.
        axis: what is varied.
        lines: at least one.
        panels: of the picture; their measures come first in the table.
        measure_point: measures one point; raises `BenchmarkError` if it does not count.
        over: name of the measure on the x axis, if that is not `axis` itself.
        also: measures that are shown in the table only.
        is_log: the x axis of the picture is logarithmic.
        at_once: number of points measured at the same time, where that does not matter.
        quick_scale: share of the usual updates in a run of `--quick`.
    """

    name: str
    title: str
    method: str
    axis: Measure
    lines: tuple[Line, ...]
    panels: tuple[Panel, ...]
    measure_point: Callable[[PointSpec], Mapping[str, float]]
    over: str = ""
    also: tuple[Measure, ...] = ()
    is_log: bool = True
    at_once: int = 1
    quick_scale: float = 0.5

    @property
    def is_compared(self) -> bool:
        """Whether a target compares some of its points."""
        return any(line.compared for line in self.lines)

    @property
    def measures(self) -> list[Measure]:
        """All measures of its points, each once."""
        drawn = [one for panel in self.panels for one in panel.measures]
        return list(dict.fromkeys([*drawn, *self.also]))


@dataclass(frozen=True)
class Point:
    """The result of one run at one point.

    Attributes:
        line: name of the line.
        x: value of the axis.
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
class CurveResult:
    """All runs of a curve.

    Attributes:
        curve: what was measured.
        points: of all lines and rounds, in the order in which they were measured.
        made: when and from what.
    """

    curve: Curve
    points: tuple[Point, ...]
    provenance: Provenance = field(default_factory=Provenance)

    def at(self, line: str, x: float, measure: str) -> Summary | None:
        """Return the summary of the rounds at one point; None if none of them counts."""
        return summary(
            point.measures[measure]
            for point in self.points
            if point.line == line and point.x == x and measure in point.measures
        )

    def xs(self, line: str) -> list[float]:
        """Return where a line was measured, ascending, including runs that do not count."""
        return sorted({point.x for point in self.points if point.line == line})

    def drawn(self, line: str, measure: str) -> tuple[list[float], list[float]]:
        """Return the medians of a line as two columns, x and y."""
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
