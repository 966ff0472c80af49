"""Every point of a curve, in an order that changes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from scripts.benchmarks.curve import Course, Curve, Line, Point, Setting
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.rounds import order_of


def sweep(
    curve: Curve,
    *,
    rounds: int,
    is_quick: bool,
    part: float,
    server: str,
    seed: int,
    say: Callable[[str], None],
) -> Course:
    """Measure all points of all lines.

    Args:
        curve: what is measured.
        rounds: how often each point is measured, at least 1.
        is_quick: only at the points of a quick run.
        part: of the usual number of updates.
        server: "redis" or "valkey".
        seed: of the orders.
        say: tells a person what happens.
    """
    points: list[Point] = []

    def run(place: tuple[Line, float]) -> Point:
        line, x = place
        number = len(points) // len(places) + 1
        try:
            measures = curve.play(Setting(line, x, part, server))
        except (BenchmarkError, OSError) as error:
            return Point(line.name, x, number, fault=str(error))
        return Point(line.name, x, number, measures)

    places = {
        f"{line.name} {x:g}": (line, x)
        for line in curve.lines
        for x in (line.quick_xs if is_quick else line.xs)
    }
    for number in range(1, rounds + 1):
        order = order_of(list(places), number, seed)
        with ThreadPoolExecutor(curve.at_once) as pool:
            for point in pool.map(run, [places[name] for name in order]):
                points.append(point)
                say(
                    f"{curve.name} {len(points)}/{rounds * len(places)}  {point.line} "
                    f"{point.x:g}: {in_words(curve, point)}"
                )
    return Course(curve, tuple(points))


def in_words(curve: Curve, point: Point) -> str:
    """Return what a point gave, for people."""
    if point.fault:
        return f"does not count: {point.fault}"
    return ", ".join(
        f"{one.label} {one.shown(point.measures[one.name])}"
        for one in curve.measures
        if one.name in point.measures
    )
