"""The tables of a grid, for terminal and page; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scripts.benchmarks.model import CPU, Contender, Grid, Measure, Result
from scripts.benchmarks.stats import Summary, ratio_of_medians, summary

PRECISE_BELOW = 100
RATIO_NOTE = (
    "(x): how many times better statebroker is, by medians. !: rounds differ by more than half. "
    "CPU: ns for one update."
)


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: above it.
        head: heading of the first column.
        rows: the first column.
        columns: heading and cells of each further column.
        stressed: numbers of the rows to stress.
    """

    title: str
    head: str
    rows: Sequence[str]
    columns: Sequence[tuple[str, Sequence[str]]]
    stressed: Sequence[int] = ()


def sheets(result: Result) -> list[Sheet]:
    """Return the tables of a grid: the comparison, if it has peers, and what each one takes.

    Raises:
        TypeError: it is the result of a scenario that is no grid.
    """
    grid = grid_of(result)
    compared = [_comparison(result, grid)] if len(grid.peers) > 1 else []
    return [one for one in [*compared, _details(result, grid)] if one.rows]


def whole_sheet(result: Result) -> Sheet:
    """Return everything that a grid measured in one table, as wide as it is.

    Raises:
        TypeError: it is the result of a scenario that is no grid.
    """
    grid = grid_of(result)
    details = _details(result, grid)
    if len(grid.peers) == 1:
        return details
    rates = [_rate(result, *name.split("/")) for name in details.rows]
    return replace(details, columns=[(f"{grid.headline.label} (x)", rates), *details.columns])


def grid_of(result: Result) -> Grid:
    """Return the grid that was measured.

    Raises:
        TypeError: it is the result of a scenario that is no grid.
    """
    if not isinstance(result.scenario, Grid):
        raise TypeError(f"{result.scenario.name} is no grid")
    return result.scenario


def ratio(result: Result, row: str, peer: str) -> float | None:
    """Return how many times better ours is than a peer in a row; None if not measured."""
    grid, name = result.scenario, result.scenario.headline.name
    theirs = (f"{row}/{peer}", name)
    ours = (grid.ours_of(theirs[0]), name)
    if grid.headline.is_more_better:
        return ratio_of_medians(result, ours, theirs)
    return ratio_of_medians(result, theirs, ours)


def shown(value: float) -> str:
    """Return a rate with three digits or more."""
    return f"{value:,.0f}" if value >= PRECISE_BELOW else f"{value:.1f}"


def shown_ratio(value: float) -> str:
    """Return a ratio with two digits or more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def _comparison(result: Result, grid: Grid) -> Sheet:
    """Return a table with a row for each row of the grid and a column for each peer."""
    measured = {one.row for one in result.measured}
    rows = [row for row in grid.row_titles if row in measured]
    peers = [one for one in grid.peers if any(one == it.peer for it in result.measured)]
    columns = [(peer, [_rate(result, row, peer) for row in rows]) for peer in peers]
    return Sheet(f"{grid.title}: {grid.headline.label} (x)", "value", rows, columns)


def _rate(result: Result, row: str, peer: str) -> str:
    """Return the median, and how many times better ours is."""
    found = _headline(result, f"{row}/{peer}")
    if found is None:
        return "-"
    text = shown(found.median) + ("!" if found.is_noisy else "")
    is_ours = f"{row}/{peer}" == result.scenario.ours_of(f"{row}/{peer}")
    times = None if is_ours else ratio(result, row, peer)
    return text if times is None else f"{text} ({shown_ratio(times)})"


def _details(result: Result, grid: Grid) -> Sheet:
    """Return a table with a row for each contender and a column for each measure."""
    found = sorted(result.measured, key=lambda one: list(grid.row_titles).index(one.row))
    is_compared = len(grid.peers) > 1
    columns = [("least to most", [_spread(result, one) for one in found])] if is_compared else []
    measures = list(grid.also) if is_compared else [grid.headline, *grid.also]
    roles = [
        Measure(CPU + role, f"{role} CPU", "ns", is_more_better=False) for role in result.roles
    ]
    for measure in [*roles, *measures]:
        cells = [_median(result, one, measure) for one in found]
        if set(cells) != {"-"}:
            columns.append((measure.label, cells))
    names = [one.name if is_compared else one.row for one in found]
    stressed = [n for n, one in enumerate(found) if is_compared and one.peer == grid.peers[0]]
    title = "What each of them takes" if is_compared else grid.title
    return Sheet(title, "value/contender" if is_compared else "value", names, columns, stressed)


def _headline(result: Result, name: str) -> Summary | None:
    return summary(result.of(name, result.scenario.headline.name).values())


def _spread(result: Result, contender: Contender) -> str:
    found = _headline(result, contender.name)
    return "-" if found is None else f"{shown(found.low)} to {shown(found.high)}"


def _median(result: Result, contender: Contender, measure: Measure) -> str:
    found = summary(result.of(contender.name, measure.name).values())
    return "-" if found is None else measure.shown(found.median)
