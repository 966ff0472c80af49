"""Measures every scenario and curve that was asked for, and records when and from which commit."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console

from scripts.benchmarks.curve import Curve
from scripts.benchmarks.curves import CURVES
from scripts.benchmarks.grids import GRIDS
from scripts.benchmarks.machine import machine, versions
from scripts.benchmarks.model import Grid, Provenance, Result, Scenario
from scripts.benchmarks.processes import ROOT
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.report import Report
from scripts.benchmarks.rounds import run_rounds, selected, skip_reason
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.services import redis_binary
from scripts.benchmarks.sweep import Extent, points_of, sweep

ROUNDS = 3
CURVE_ROUNDS = QUICK_ROUNDS = 1
# Of one run, starts included, on two cores with nothing else to do.
RUN_S, QUICK_RUN_S = 5.0, 1.2
SCENARIO_NAMES = [scenario.name for scenario in SCENARIOS]
CURVE_NAMES = [curve.name for curve in CURVES]
GRID_NAMES = [grid.name for grid in GRIDS]
CONTENDER_NAMES = list(
    dict.fromkeys(one.name for scenario in SCENARIOS for one in scenario.contenders)
)
CELL_NAMES = list(dict.fromkeys(one.name for grid in GRIDS for one in grid.contenders))


def blank(options: argparse.Namespace) -> Report:
    """Return a report without numbers: of which machine and versions they will be.

    Args:
        options: those of `options.parse`.

    Raises:
        BenchmarkError: a server is missing.
    """
    server = options.server or ("redis" if shutil.which("redis-server") else "valkey")
    redis_binary(server)  # before anything runs
    return Report(
        machine=machine(),
        versions=versions(server),
        options={"server": server, "seed": options.seed, "quick": options.quick},
        results=(),
    )


def measure(options: argparse.Namespace, report: Report, console: Console) -> Report:
    """Measure everything that is asked for.

    Args:
        options: those of `options.parse`.
        report: the blank one.
        console: where progress is printed.
    """
    server = report.options["server"]
    total = planned_runs(options)
    progress = Progress(total, console)
    seconds = planned_seconds(options)
    progress.note(f"{total} runs; {expectation(total, is_quick=options.quick, more_s=seconds)}")
    grids = [_measured(grid, options, server, progress) for grid in grids_of(options.only)]
    results = [
        _measured(scenario, options, server, progress)
        for scenario in scenarios_of(options.only, is_quick=options.quick)
    ]
    curve_results = []
    for curve in curves_of(options.only, is_quick=options.quick):
        stopwatch = Stopwatch(options.rounds or CURVE_ROUNDS)
        curve_result = sweep(
            curve,
            rounds=stopwatch.rounds,
            compared_rounds=rounds_of(options),
            extent=extent_of(options),
            scale=(curve.quick_scale if options.quick else 1.0) * options.scale,
            server=server,
            seed=options.seed,
            progress=progress,
        )
        curve_results.append(dataclasses.replace(curve_result, provenance=stopwatch.provenance()))
    return dataclasses.replace(report, results=results, curve_results=curve_results, grids=grids)


def _measured(
    scenario: Scenario, options: argparse.Namespace, server: str, progress: Progress
) -> Result:
    """Run all rounds of a scenario or grid."""
    stopwatch = Stopwatch(rounds_of(options))
    result = run_rounds(
        scenario,
        only=_contenders_in(options.only),
        rounds=stopwatch.rounds,
        updates=options.updates,
        server=server,
        seed=options.seed,
        scale=(scenario.quick_scale if options.quick else 1.0) * options.scale,
        progress=progress,
    )
    return dataclasses.replace(result, provenance=stopwatch.provenance())


def rounds_of(options: argparse.Namespace) -> int:
    """Return how often each number of a scenario or grid is measured, or that a target compares."""
    return int(options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS))


def extent_of(options: argparse.Namespace) -> Extent:
    """Return which points of a curve are measured."""
    if not options.quick:
        return "all"
    return "quick" if options.only else "compared"


class Stopwatch:
    """Records when and from which commit a part of the numbers is measured; starts at once.

    Args:
        rounds: how often each number is measured.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._load = os.getloadavg()[0]
        self._began = time.monotonic()

    def provenance(self) -> Provenance:
        """Return the record, with the time that passed since the start."""
        seconds = round(time.monotonic() - self._began, 1)
        return Provenance(self._at, revision(), round(self._load, 1), self.rounds, seconds)


def planned_runs(options: argparse.Namespace) -> int:
    """Return how many runs the options ask for; contenders that cannot run here are left out."""
    only = _contenders_in(options.only)
    runs = sum(
        contender.rounds_of(rounds_of(options)) * (not skip_reason(contender))
        for scenario in [
            *grids_of(options.only),
            *scenarios_of(options.only, is_quick=options.quick),
        ]
        for contender in selected(scenario, only)
    )
    points = more = 0
    for curve in curves_of(options.only, is_quick=options.quick):
        points += len(points_of(curve, extent_of(options)))
        more += len(points_of(curve, "compared"))
    rounds = int(options.rounds or CURVE_ROUNDS)
    return runs + points * rounds + more * max(0, rounds_of(options) - rounds)


def planned_seconds(options: argparse.Namespace) -> float:
    """Return how long the writers of grids write, beyond what every run takes."""
    if options.updates:
        return 0.0
    only = _contenders_in(options.only)
    share = float(options.scale)
    return share * sum(
        contender.rounds_of(rounds_of(options))
        * grid.seconds
        * (grid.quick_scale if options.quick else 1.0)
        for grid in grids_of(options.only)
        for contender in selected(grid, only)
    )


def expectation(runs: int, *, is_quick: bool, more_s: float = 0.0) -> str:
    """Return about how long so many runs take, as text.

    Args:
        runs: their number.
        is_quick: whether they are small.
        more_s: what some of them take beyond that.
    """
    seconds = runs * (QUICK_RUN_S if is_quick else RUN_S) + more_s
    duration = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"  # noqa: PLR2004
    return f"about {duration} on two cores with nothing else to do"


def curves_of(only: Sequence[str], *, is_quick: bool = False) -> list[Curve]:
    """Return the curves that `only` names; if it is empty all, or those of a quick run.

    A quick run measures what a target compares.
    """
    if only:
        return [curve for curve in CURVES if curve.name in only]
    return [curve for curve in CURVES if curve.is_compared or not is_quick]


def grids_of(only: Sequence[str]) -> list[Grid]:
    """Return the grids to measure: those that `only` names, or some of their contenders."""
    if not only:
        return list(GRIDS)
    names = [name for name in only if name in GRID_NAMES]
    cells = {name for name in only if name in CELL_NAMES}
    if not names and not cells:
        return []
    return [
        grid
        for grid in GRIDS
        if (not names or grid.name in names)
        and (not cells or cells & {one.name for one in grid.contenders})
    ]


def scenarios_of(only: Sequence[str], *, is_quick: bool = False) -> list[Scenario]:
    """Return the scenarios to measure.

    Args:
        only: names of scenarios, contenders and curves. Scenarios and contenders narrow each other:
            a scenario is measured if it is named, or none is, and if a named contender takes part,
            or none is named.
        is_quick: if `only` is empty, leave out the scenarios that a quick run does not measure.
    """
    if not only:
        return [scenario for scenario in SCENARIOS if scenario.is_quick or not is_quick]
    scenarios = [name for name in only if name in SCENARIO_NAMES]
    contenders = {name for name in only if name in CONTENDER_NAMES}
    if not scenarios and not contenders:
        return []
    return [
        scenario
        for scenario in SCENARIOS
        if (not scenarios or scenario.name in scenarios)
        and (not contenders or contenders & {one.name for one in scenario.contenders})
    ]


def _contenders_in(only: Sequence[str]) -> list[str]:
    return [name for name in only if name in CONTENDER_NAMES or name in CELL_NAMES]


def revision() -> str:
    """Return the commit, followed by "+" if files differ from it; "an unknown commit" without git.

    Changes in docs/benchmarks do not count: this command writes there.
    """
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", ":/", ":(top,exclude)docs/benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"
    return f"{commit}+" if changed else commit


def _git(*words: str) -> str:
    command = [shutil.which("git") or "git", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
