"""The sections of the page about cost curves, in Markdown; no I/O."""

from __future__ import annotations

from scripts.benchmarks.curve import Course, Line
from scripts.benchmarks.model import Measure


def section(course: Course) -> list[str]:
    """Return the lines of one curve's section: method, picture, every number."""
    curve = course.curve
    lines = [f"## {curve.title}", "", curve.method, "", f"![{curve.title}]({curve.name}.svg)", ""]
    for line in curve.lines:
        if course.xs(line.name):
            lines += [*_table(course, line), ""]
    for point in course.faults:
        fault = point.fault.replace("\n", "\n    ")
        place = f"{curve.axis.shown(point.x)} ({point.line}, round {point.round})"
        lines += [f"At {place} it does not count:", "", f"    {fault}", ""]
    return lines


def _table(course: Course, line: Line) -> list[str]:
    curve = course.curve
    xs = course.xs(line.name)
    measures = [one for one in curve.measures if any(_has(course, line, x, one) for x in xs)]
    lines = [
        f"| {line.title}: {curve.axis.label} | {' | '.join(one.label for one in measures)} |",
        f"|--:|{'--:|' * len(measures)}",
    ]
    for x in xs:
        cells = [curve.axis.shown(x), *(_cell(course, line, x, one) for one in measures)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _has(course: Course, line: Line, x: float, measure: Measure) -> bool:
    return course.at(line.name, x, measure.name) is not None


def _cell(course: Course, line: Line, x: float, measure: Measure) -> str:
    """Return the median, and the spread if there was more than one round."""
    found = course.at(line.name, x, measure.name)
    if found is None:
        return "-"
    shown = measure.shown(found.median)
    if found.count == 1:
        return shown
    return f"{shown} ({measure.shown(found.low)} to {measure.shown(found.high)})"
