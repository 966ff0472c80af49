"""The report at the terminal, in tables that fit it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from scripts.benchmarks.curve import CurveResult
from scripts.benchmarks.goals import NOTE, goals
from scripts.benchmarks.grid_tables import RATIO_NOTE as GRID_NOTE
from scripts.benchmarks.grid_tables import Sheet, sheets
from scripts.benchmarks.model import Result
from scripts.benchmarks.report import Report, Row, rows
from scripts.benchmarks.stats import Summary

MAX_TITLE_LINES = 3
GAP = 2  # characters between two columns: padding and the space that the box draws
QUICK_NOTE = (
    "--quick: rough numbers, from small runs. Read the ratios, not the rates; measure without "
    "--quick for numbers to rely on."
)
RATIO_NOTE = (
    "ours is: how many times better statebroker is; median (least to most) of the ratios of each "
    "round. CPU x ours: CPU time of all processes over that of statebroker's. !: rounds differ by "
    "more than half."
)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: wrapped at its spaces.
        cells: one for each row; never wrapped or cut.
    """

    title: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """The least number of characters that shows every cell, and the title in few lines."""
        width = max(map(len, [*self.title.split(), *self.cells]), default=1)
        while len(wrap(self.title, width)) > MAX_TITLE_LINES:
            width += 1
        return width


def print_report(report: Report, console: Console) -> None:
    """Print medians, ratios, and what does not count."""
    _print_grids(report, console)
    _print_scenarios(report, console)
    _print_curves(report, console)
    _print_sheet(goals(report), console)
    console.print(f"{NOTE}\n", markup=False)
    if report.options.get("quick"):
        console.print(QUICK_NOTE, markup=False)


def _print_grids(report: Report, console: Console) -> None:
    for result in report.grids:
        for sheet in sheets(result):
            _print_sheet(sheet, console)
        _print_faults(result, console)
    if report.grids:
        _print_legend(report.grids, console)
        console.print(f"\n{GRID_NOTE}\n", markup=False)


def _print_scenarios(report: Report, console: Console) -> None:
    for result in report.results:
        for part in [*_headline_tables(result, console), *_cpu_tables(result, console)]:
            console.print(part)
        _print_faults(result, console)
    if report.results:
        console.print("Contenders", style="bold")
        _print_legend(report.results, console)
        console.print(f"\n{RATIO_NOTE}\n", markup=False)


def _print_curves(report: Report, console: Console) -> None:
    for curve_result in report.curve_results:
        for part in _curve_tables(curve_result, console):
            console.print(part)
        for point in curve_result.faults:
            console.print(
                f"{point.line} at {point.x:g} does not count: {point.fault}", markup=False
            )


def _print_sheet(sheet: Sheet, console: Console) -> None:
    columns = [Column(title, cells) for title, cells in sheet.columns]
    first = Column(sheet.head, sheet.rows)
    for part in tables(sheet.title, first, columns, console.width, sheet.stressed):
        console.print(part)


def _print_faults(result: Result, console: Console) -> None:
    for name, why in result.skipped.items():
        console.print(f"skipped {name}: {why}", markup=False)
    for sample in result.faults:
        console.print(
            f"round {sample.round} of {sample.contender} does not count: {sample.fault}",
            markup=False,
        )


def tables(
    title: str, first: Column, columns: Sequence[Column], width: int, bold: Sequence[int] = ()
) -> Iterator[RenderableType]:
    """Yield the title and one table, or several if the columns do not fit.

    Args:
        title: printed once.
        first: the first column of every table.
        columns: the others, in order.
        width: characters of a line.
        bold: numbers of the rows to stress.
    """
    parts: list[list[Column]] = [[]]
    for column in columns:
        used = sum(one.width + GAP for one in [first, *parts[-1], column]) - GAP
        if parts[-1] and used > width:
            parts.append([])
        parts[-1].append(column)
    yield Text(title, style="bold")
    for part in parts:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(escape(first.title), width=first.width)
        for column in part:
            table.add_column(escape(column.title), justify="right", width=column.width)
        for number, cells in enumerate(zip(first.cells, *(one.cells for one in part), strict=True)):
            table.add_row(*map(escape, cells), style="bold" if number in bold else "")
        yield table
        yield ""


def times(ratio: Summary | None) -> str:
    """Return a ratio with its spread, as text; "-" if there is none."""
    if ratio is None:
        return "-"
    return f"{_factor(ratio.median)} x ({_factor(ratio.low)} to {_factor(ratio.high)})"


def _factor(value: float) -> str:
    """Return a factor with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def _headline_tables(result: Result, console: Console) -> Iterator[RenderableType]:
    headline, also = result.scenario.headline, result.scenario.also
    found = rows(result)
    columns = [
        Column(headline.label, [headline.shown(row.headline.median) for row in found]),
        Column("least to most", [_spread(row, result) for row in found]),
        *(Column(one.label, [row.shown(one) for row in found]) for one in also),
    ]
    if any(row.ratio for row in found):
        columns.append(Column("ours is", [times(row.ratio) for row in found]))
    return _contender_tables(result.scenario.title, found, columns, result, console)


def _spread(row: Row, result: Result) -> str:
    headline = result.scenario.headline
    mark = " !" if row.headline.is_noisy else ""
    return f"{headline.shown(row.headline.low)} to {headline.shown(row.headline.high)}{mark}"


def _cpu_tables(result: Result, console: Console) -> Iterator[RenderableType]:
    if not result.roles:
        return iter(())
    found = rows(result)
    columns = [
        *(
            Column(role, [f"{row.roles[role]:,.0f}" if role in row.roles else "-" for row in found])
            for role in result.roles
        ),
        Column("all", ["-" if row.cpu is None else f"{row.cpu.median:,.0f}" for row in found]),
        Column(
            "x ours",
            ["-" if row.cpu_ratio is None else _factor(row.cpu_ratio.median) for row in found],
        ),
    ]
    return _contender_tables("CPU for one update, ns", found, columns, result, console)


def _contender_tables(
    title: str, found: Sequence[Row], columns: Sequence[Column], result: Result, console: Console
) -> Iterator[RenderableType]:
    names = [row.contender.name for row in found]
    ours = [number for number, name in enumerate(names) if name == result.scenario.ours]
    return tables(title, Column("contender", names), columns, console.width, ours)


def _print_legend(results: Sequence[Result], console: Console) -> None:
    """Print what the names of contenders stand for."""
    titles = {one.peer or one.name: one.title for result in results for one in result.measured}
    width = max(map(len, titles), default=0)
    for name, title in titles.items():
        console.print(f"{name:{width}}  {title}", markup=False, highlight=False)


def _curve_tables(curve_result: CurveResult, console: Console) -> Iterator[RenderableType]:
    curve = curve_result.curve
    for line in curve.lines:
        xs = curve_result.xs(line.name)
        columns = []
        for one in curve.measures:
            found = [curve_result.at(line.name, x, one.name) for x in xs]
            if any(found):
                cells = ["-" if value is None else one.shown(value.median) for value in found]
                columns.append(Column(one.label, cells))
        if xs:
            first = Column(curve.axis.label, [curve.axis.shown(x) for x in xs])
            yield from tables(f"{curve.title}: {line.title}", first, columns, console.width)
