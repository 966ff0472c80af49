"""The cost curves with real servers and few updates: each point is right, or gives no number."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

from scripts.benchmarks.curve import Curve, CurveResult, PointSpec
from scripts.benchmarks.curves import CURVES
from scripts.benchmarks.curves.flow import flow
from scripts.benchmarks.model import BenchmarkError
from scripts.benchmarks.process_group import ProcessGroup
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.sweep import sweep
from scripts.benchmarks.workload import final_state

SERVER = "valkey"
SCALE = 0.02

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="scripts/bench needs Linux"),
    pytest.mark.usefixtures("from_here"),
]


def swept(curve: Curve) -> CurveResult:
    """Measure one point of each line, the cheapest that has something of what is varied."""
    least = {line.name: (next(x for x in line.xs if x),) for line in curve.lines}
    lines = tuple(
        dataclasses.replace(line, xs=least[line.name], quick_xs=least[line.name])
        for line in curve.lines
    )
    small = dataclasses.replace(curve, lines=lines)
    return sweep(
        small, rounds=1, extent="quick", scale=SCALE, server=SERVER, seed=1, progress=Progress()
    )


@pytest.mark.slow
@pytest.mark.parametrize("curve", CURVES, ids=[curve.name for curve in CURVES])
def test_each_curve_gives_what_it_draws(curve: Curve) -> None:
    """Every line has its point, and every measure that is drawn has a number on some line."""
    curve_result = swept(curve)
    assert [point.fault for point in curve_result.faults] == []
    given = set[str]()
    for point in curve_result.points:
        assert point.measures
        given |= set(point.measures)
    assert {one.name for one in curve.measures} <= given


@pytest.mark.slow
def test_a_replica_that_holds_something_else_gives_no_number() -> None:
    """One key more than was written, or another value, in a state that is otherwise right."""
    with ProcessGroup(SERVER, {}) as group:
        measures = flow(group, updates=300, keys=100)
        assert measures["updates_per_s"] > 0
        right = final_state(300, 100)
        for number, wrong in enumerate(({"another": 1.0}, {"vehicle/00001": 1.0}, {})):
            reader = group.start(f"late-{number}", "roles.flow.read", replicas=2, notes=0)
            group.ready(reader)
            if not wrong:
                group.check([reader], right)
                continue
            with pytest.raises(BenchmarkError, match=r"wrong state: 100 keys instead of 10[01],"):
                group.check([reader], {**right, **wrong})


def test_updates_of_a_point_scale() -> None:
    """But never to nothing."""
    line = CURVES[0].lines[0]
    settings: dict[str, Any] = {"line": line, "x": 1.0, "server": SERVER}
    assert PointSpec(scale=0.5, **settings).scaled(1000) == 500
    assert PointSpec(scale=0.0001, **settings).scaled(1000, least=7) == 7
