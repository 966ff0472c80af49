"""The section of the page about one cost curve, in Markdown; no I/O."""

from __future__ import annotations

from scripts.benchmarks.curve import CurveResult, Line
from scripts.benchmarks.model import Measure


def section(curve_result: CurveResult) -> list[str]:
    """Return the lines of the section: method, picture and all numbers."""
    curve = curve_result.curve
    lines = [f"## {curve.title}", "", curve.method, "", f"![{curve.title}]({curve.name}.svg)", ""]
    for line in curve.lines:
        if curve_result.xs(line.name):
            lines += [*_table(curve_result, line), ""]
    for point in curve_result.faults:
        fault = point.fault.replace("\n", "\n    ")
        place = f"{curve.axis.shown(point.x)} ({point.line}, round {point.round})"
        lines += [f"At {place} it does not count:", "", f"    {fault}", ""]
    return lines


def _table(curve_result: CurveResult, line: Line) -> list[str]:
    curve = curve_result.curve
    xs = curve_result.xs(line.name)
    measures = [one for one in curve.measures if any(_has(curve_result, line, x, one) for x in xs)]
    lines = [
        f"| {line.title}: {curve.axis.label} | {' | '.join(one.label for one in measures)} |",
        f"|--:|{'--:|' * len(measures)}",
    ]
    for x in xs:
        cells = [curve.axis.shown(x), *(_cell(curve_result, line, x, one) for one in measures)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _has(curve_result: CurveResult, line: Line, x: float, measure: Measure) -> bool:
    return curve_result.at(line.name, x, measure.name) is not None


def _cell(curve_result: CurveResult, line: Line, x: float, measure: Measure) -> str:
    """Return the median, with the spread if there was more than one round."""
    found = curve_result.at(line.name, x, measure.name)
    if found is None:
        return "-"
    shown = measure.shown(found.median)
    if found.count == 1:
        return shown
    return f"{shown} ({measure.shown(found.low)} to {measure.shown(found.high)})"
