"""The report at the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.document import Run, rows
from scripts.benchmarks.model import Result
from scripts.benchmarks.stats import Summary

RATIO_NOTE = (
    "ours is: how many times better ours was, median (least to most) of the ratios of each round;\n"
    "CPU: ns for one update, of all processes together; (!) rounds differ by more than half."
)


def tell(run: Run, console: Console) -> None:
    """Print medians, ratios, and what does not count."""
    for result in run.results:
        console.print(_table(result))
        for name, why in result.skipped.items():
            console.print(f"skipped {name}: {why}", markup=False)
        for sample in result.faults:
            console.print(
                f"round {sample.round} of {sample.contender} does not count: {sample.fault}",
                markup=False,
            )
    console.print(RATIO_NOTE)


def times(ratio: Summary | None) -> str:
    """Return a ratio with its spread, as text; "-" if there is none."""
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"


def _table(result: Result) -> Table:
    scenario = result.scenario
    table = Table(title=scenario.title, title_justify="left")
    table.add_column("")
    for name in (
        scenario.headline.label,
        "least to most",
        "ours is",
        *(f"CPU {role}" for role in result.roles),
        "CPU all",
        "ours takes 1 / x",
    ):
        table.add_column(name, justify="right")
    for row in rows(result):
        mark = " (!)" if row.headline.is_noisy else ""
        table.add_row(
            row.contender.title,
            f"{row.headline.median:,.0f}",
            f"{row.headline.low:,.0f} to {row.headline.high:,.0f}{mark}",
            times(row.ratio),
            *(f"{row.roles[role]:,.0f}" if role in row.roles else "-" for role in result.roles),
            "-" if row.cpu is None else f"{row.cpu.median:,.0f}",
            "-" if row.cpu_ratio is None else f"{row.cpu_ratio.median:.1f}",
            style="bold" if row.contender.name == scenario.ours else "",
        )
    return table
