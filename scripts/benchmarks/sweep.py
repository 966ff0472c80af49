"""Measures every point of a curve, in an order that is shuffled for each round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from scripts.benchmarks.curve import Curve, CurveResult, Line, Point, PointSpec
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.rounds import order_of

Extent = Literal["all", "quick", "compared"]


def points_of(curve: Curve, extent: Extent) -> list[tuple[Line, float]]:
    """Return points as line and value of the axis.

    Args:
        curve: whose points.
        extent: all of them, those of a quick run that names the curve, or those that a target
            compares.
    """
    xs: dict[Extent, Callable[[Line], Sequence[float]]] = {
        "all": lambda line: line.xs,
        "quick": lambda line: line.quick_xs,
        "compared": lambda line: line.compared,
    }
    return [(line, x) for line in curve.lines for x in xs[extent](line)]


def sweep(
    curve: Curve,
    *,
    rounds: int,
    compared_rounds: int = 0,
    extent: Extent,
    scale: float,
    server: str,
    seed: int,
    progress: Progress,
) -> CurveResult:
    """Measure all points of all lines.

    Args:
        curve: what is measured.
        rounds: how often each point is measured, at least 1.
        compared_rounds: how often those that a target compares are measured, if that is more.
        extent: which points.
        scale: share of the usual number of updates, above 0, up to 1.
        server: "redis" or "valkey".
        seed: of the orders.
        progress: prints each point.
    """
    points: list[Point] = []
    for number in range(1, max(rounds, compared_rounds) + 1):
        part = extent if number <= rounds else "compared"
        places = {f"{line.name} {x:g}": (line, x) for line, x in points_of(curve, part)}
        order = order_of(list(places), number, seed)
        for point in _measured(curve, [places[name] for name in order], number, scale, server):
            points.append(point)
            progress.done(f"{curve.name}: {point.line} {point.x:g}: {describe(curve, point)}")
    return CurveResult(curve, tuple(points))


def _measured(
    curve: Curve, places: Sequence[tuple[Line, float]], number: int, scale: float, server: str
) -> Iterator[Point]:
    """Yield the points of one round in the order of their places."""

    def measured(place: tuple[Line, float]) -> Point:
        line, x = place
        try:
            measures = curve.measure_point(PointSpec(line, x, scale, server))
        except (BenchmarkError, OSError) as error:
            return Point(line.name, x, number, fault=str(error))
        return Point(line.name, x, number, measures)

    with ThreadPoolExecutor(curve.at_once) as pool:
        yield from pool.map(measured, places)


def describe(curve: Curve, point: Point) -> str:
    """Return the measures of a point as text, or why it does not count."""
    if point.fault:
        return f"does not count: {point.fault}"
    return ", ".join(
        f"{one.label} {one.shown(point.measures[one.name])}"
        for one in curve.measures
        if one.name in point.measures
    )
