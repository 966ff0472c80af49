"""Numbers that were written before, put beside those that were made now; no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.benchmarks.curve import Course, Curve, Point
from scripts.benchmarks.document import Run
from scripts.benchmarks.model import BenchmarkError, Made, Result, Sample, Scenario


def read(before: Mapping[str, Any], scenarios: Sequence[Scenario], curves: Sequence[Curve]) -> Run:
    """Return the run that `document.as_object` made this of; what there is no more is left out."""
    empty = Run(before["machine"], before["versions"], before["options"], ())
    return merged(empty, before, scenarios, curves)


def merged(
    run: Run, before: Mapping[str, Any], scenarios: Sequence[Scenario], curves: Sequence[Curve]
) -> Run:
    """Return a run with what an earlier one measured and this one did not, each with its own date.

    Args:
        run: made now.
        before: what `document.as_object` made of the earlier one.
        scenarios: all there are now; what is no more among them is left out.
        curves: likewise.

    Raises:
        BenchmarkError: the earlier one was made on another machine or with other versions; says
            what differs.
    """
    for name in ("machine", "versions"):
        then, now = before[name], dict(getattr(run, name))
        differing = sorted(one for one in then.keys() | now if then.get(one) != now.get(one))
        if differing:
            raise BenchmarkError(
                f"the numbers there were made with another {', '.join(differing)}: numbers of "
                "different machines do not belong on one page; leave --only out to make all anew"
            )
    results = {one.scenario.name: one for one in run.results}
    courses = {one.curve.name: one for one in run.courses}
    for scenario in scenarios:
        if scenario.name not in results and scenario.name in before["scenarios"]:
            results[scenario.name] = _result(scenario, before["scenarios"][scenario.name])
    for curve in curves:
        if curve.name not in courses and curve.name in before.get("curves", {}):
            courses[curve.name] = _course(curve, before["curves"][curve.name])
    return dataclasses.replace(
        run,
        results=[results[one.name] for one in scenarios if one.name in results],
        courses=[courses[one.name] for one in curves if one.name in courses],
    )


def _result(scenario: Scenario, before: Mapping[str, Any]) -> Result:
    samples = tuple(Sample(**sample) for sample in before["samples"])
    return Result(scenario, samples, before["skipped"], Made(**before["made"]))


def _course(curve: Curve, before: Mapping[str, Any]) -> Course:
    points = tuple(Point(**point) for point in before["points"])
    return Course(curve, points, Made(**before["made"]))
