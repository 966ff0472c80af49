"""Numbers of an earlier report, merged with those of this one; no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.benchmarks.curve import Curve, CurveResult, Point
from scripts.benchmarks.model import BenchmarkError, Grid, Provenance, Result, Sample, Scenario
from scripts.benchmarks.report import Report


def read(
    before: Mapping[str, Any],
    scenarios: Sequence[Scenario],
    curves: Sequence[Curve],
    grids: Sequence[Grid] = (),
) -> Report:
    """Return the report that `report.as_object` wrote, without what was removed since."""
    empty = Report(before["machine"], before["versions"], before["options"], ())
    return merged(empty, before, scenarios, curves, grids)


def merged(
    report: Report,
    before: Mapping[str, Any],
    scenarios: Sequence[Scenario],
    curves: Sequence[Curve],
    grids: Sequence[Grid] = (),
) -> Report:
    """Return a report completed by what an earlier one measured and this one did not.

    Each part keeps its own provenance.

    Args:
        report: the new one.
        before: the earlier one, as `report.as_object` wrote it.
        scenarios: all that exist now; results of others are left out.
        curves: all that exist now; results of others are left out.
        grids: all that exist now; results of others are left out.

    Raises:
        BenchmarkError: the earlier one was measured on another machine or with other versions; the
            message says what differs.
    """
    for name in ("machine", "versions"):
        then, now = before[name], dict(getattr(report, name))
        differing = sorted(one for one in then.keys() | now if then.get(one) != now.get(one))
        if differing:
            raise BenchmarkError(
                f"the numbers there were measured with another {', '.join(differing)}; numbers of "
                "different machines do not belong on one page. Leave --only out to measure all"
            )
    results = {one.scenario.name: one for one in report.results}
    grid_results = {one.scenario.name: one for one in report.grids}
    curve_results = {one.curve.name: one for one in report.curve_results}
    for scenario in scenarios:
        if scenario.name not in results and scenario.name in before["scenarios"]:
            results[scenario.name] = _result(scenario, before["scenarios"][scenario.name])
    for grid in grids:
        if grid.name not in grid_results and grid.name in before.get("grids", {}):
            grid_results[grid.name] = _result(grid, before["grids"][grid.name])
    for curve in curves:
        if curve.name not in curve_results and curve.name in before.get("curves", {}):
            curve_results[curve.name] = _curve_result(curve, before["curves"][curve.name])
    return dataclasses.replace(
        report,
        results=[results[one.name] for one in scenarios if one.name in results],
        curve_results=[curve_results[one.name] for one in curves if one.name in curve_results],
        grids=[grid_results[one.name] for one in grids if one.name in grid_results],
    )


def _result(scenario: Scenario, before: Mapping[str, Any]) -> Result:
    samples = tuple(Sample(**sample) for sample in before["samples"])
    return Result(scenario, samples, before["skipped"], Provenance(**before["provenance"]))


def _curve_result(curve: Curve, before: Mapping[str, Any]) -> CurveResult:
    points = tuple(Point(**point) for point in before["points"])
    return CurveResult(curve, points, Provenance(**before["provenance"]))
