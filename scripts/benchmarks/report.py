"""Everything that one command measured, as rows and as JSON; no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.benchmarks.curve import CurveResult
from scripts.benchmarks.model import CPU, Contender, Measure, Result
from scripts.benchmarks.stats import Summary, compared, cpu_compared, cpu_total, summary


@dataclass(frozen=True)
class Report:
    """Everything that one call of the command measured, and how.

    Attributes:
        machine: property -> value.
        versions: name -> version.
        options: server, seed and whether it was quick.
        results: one for each scenario.
        curve_results: one for each curve.
        grids: one for each grid.
    """

    machine: Mapping[str, str]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    results: Sequence[Result]
    curve_results: Sequence[CurveResult] = ()
    grids: Sequence[Result] = ()

    @property
    def is_valid(self) -> bool:
        """Whether every run counts."""
        faults = [result.faults for result in [*self.grids, *self.results]]
        return not any(faults) and not any(
            curve_result.faults for curve_result in self.curve_results
        )


@dataclass(frozen=True)
class Row:
    """One contender in numbers.

    Attributes:
        contender: who.
        headline: of its rounds.
        ratio: how many times better ours is by it; None for ours, and if ours was not measured.
        cpu: nanoseconds for one update, of all roles; None if not measured.
        cpu_ratio: how many times the CPU of ours it takes; None as `ratio`.
        also: medians of the scenario's other measures, in its order.
        roles: role -> median nanoseconds for one update.
    """

    contender: Contender
    headline: Summary
    ratio: Summary | None
    cpu: Summary | None
    cpu_ratio: Summary | None
    also: Mapping[str, float]
    roles: Mapping[str, float]

    def shown(self, measure: Measure) -> str:
        """Return one of the other measures for people; "-" if it was not measured."""
        return measure.shown(self.also[measure.name]) if measure.name in self.also else "-"


def rows(result: Result) -> list[Row]:
    """Return a row for each contender with a number, best headline first."""
    scenario = result.scenario
    found = []
    for contender in result.measured:
        name = contender.name
        headline = summary(result.of(name, scenario.headline.name).values())
        if headline is None:
            continue
        is_peer = name != scenario.ours_of(name)
        found.append(
            Row(
                contender,
                headline,
                compared(result, name) if is_peer else None,
                summary(cpu_total(result, name).values()),
                cpu_compared(result, name) if is_peer else None,
                _medians(result, name, {one.name: one.name for one in scenario.also}),
                _medians(result, name, {CPU + role: role for role in result.roles}),
            )
        )
    return sorted(
        found, key=lambda row: row.headline.median, reverse=scenario.headline.is_more_better
    )


def _medians(result: Result, contender: str, measures: Mapping[str, str]) -> dict[str, float]:
    """Return the medians of measures that a contender has, under the names they map to."""
    found = {
        shown: summary(result.of(contender, name).values()) for name, shown in measures.items()
    }
    return {shown: one.median for shown, one in found.items() if one is not None}


def as_object(report: Report) -> dict[str, Any]:
    """Return what `--json` prints: the raw numbers of every run, medians and ratios."""
    return {
        "machine": dict(report.machine),
        "versions": dict(report.versions),
        "options": dict(report.options),
        "valid": report.is_valid,
        "grids": {result.scenario.name: _result(result) for result in report.grids},
        "scenarios": {result.scenario.name: _result(result) for result in report.results},
        "curves": {
            curve_result.curve.name: _curve_result(curve_result)
            for curve_result in report.curve_results
        },
    }


def _result(result: Result) -> dict[str, Any]:
    return {
        "provenance": dataclasses.asdict(result.provenance),
        "headline": dataclasses.asdict(result.scenario.headline),
        "ours": result.scenario.ours,
        "contenders": {row.contender.name: _row(row) for row in rows(result)},
        "skipped": dict(result.skipped),
        "samples": [dataclasses.asdict(sample) for sample in result.samples],
    }


def _row(row: Row) -> dict[str, Any]:
    fields = dataclasses.asdict(row)
    del fields["contender"]
    return {"title": row.contender.title, **fields}


def _curve_result(curve_result: CurveResult) -> dict[str, Any]:
    curve = curve_result.curve
    return {
        "provenance": dataclasses.asdict(curve_result.provenance),
        "axis": dataclasses.asdict(curve.axis),
        "lines": {line.name: line.title for line in curve.lines},
        "measures": {one.name: dataclasses.asdict(one) for one in curve.measures},
        "points": [dataclasses.asdict(point) for point in curve_result.points],
    }
