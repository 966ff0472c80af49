"""The report at the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from scripts.benchmarks.curve import Course
from scripts.benchmarks.document import Run, rows
from scripts.benchmarks.model import Result
from scripts.benchmarks.stats import Summary

RATIO_NOTE = (
    "ours is: how many times better, median (least to most) of the ratios of each round\n"
    "x ours: the same of the CPU of all processes; (!): rounds differ by more than half"
)


def tell(run: Run, console: Console) -> None:
    """Print medians, ratios, and what does not count."""
    for result in run.results:
        console.print(_headline_table(result))
        if result.roles:
            console.print(_cpu_table(result))
        for name, why in result.skipped.items():
            console.print(f"skipped {name}: {why}", markup=False)
        for sample in result.faults:
            console.print(
                f"round {sample.round} of {sample.contender} does not count: {sample.fault}",
                markup=False,
            )
    if run.results:
        console.print(RATIO_NOTE)
    for course in run.courses:
        for table in _course_tables(course):
            console.print(table)
        for point in course.faults:
            console.print(
                f"{point.line} at {point.x:g} does not count: {point.fault}", markup=False
            )


def times(ratio: Summary | None) -> str:
    """Return a ratio with its spread, as text; "-" if there is none."""
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"


def _headline_table(result: Result) -> Table:
    scenario = result.scenario
    headline, also = scenario.headline, scenario.also
    others = [one.label for one in also]
    table = _table(scenario.title, headline.label, "least to most", *others, "ours is")
    for row in rows(result):
        mark = " (!)" if row.headline.is_noisy else ""
        table.add_row(
            row.contender.title,
            headline.shown(row.headline.median),
            f"{headline.shown(row.headline.low)} to {headline.shown(row.headline.high)}{mark}",
            *(row.shown(one) for one in also),
            times(row.ratio),
            style="bold" if row.contender.name == scenario.ours else "",
        )
    return table


def _cpu_table(result: Result) -> Table:
    table = _table("CPU for one update, ns", *result.roles, "all", "x ours")
    for row in rows(result):
        table.add_row(
            row.contender.title,
            *(f"{row.roles[role]:,.0f}" if role in row.roles else "-" for role in result.roles),
            "-" if row.cpu is None else f"{row.cpu.median:,.0f}",
            "-" if row.cpu_ratio is None else f"{row.cpu_ratio.median:.2f}",
            style="bold" if row.contender.name == result.scenario.ours else "",
        )
    return table


def _course_tables(course: Course) -> Iterator[Table]:
    curve = course.curve
    for line in curve.lines:
        xs = course.xs(line.name)
        shown = [
            one
            for one in curve.measures
            if any(course.at(line.name, x, one.name) is not None for x in xs)
        ]
        title = f"{curve.title}: {line.title}"
        table = _table(title, *(one.label for one in shown), first=curve.axis.label)
        for x in xs:
            found = [course.at(line.name, x, one.name) for one in shown]
            table.add_row(
                curve.axis.shown(x),
                *(
                    "-" if value is None else one.shown(value.median)
                    for one, value in zip(shown, found, strict=True)
                ),
            )
        if xs:
            yield table


def _table(title: str, *columns: str, first: str = "") -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
