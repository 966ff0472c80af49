"""Plays everything that was asked for, and notes when and from what."""

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
from scripts.benchmarks.document import Run
from scripts.benchmarks.machine import machine, versions
from scripts.benchmarks.model import Made, Scenario
from scripts.benchmarks.processes import ROOT
from scripts.benchmarks.rounds import play
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.services import redis_binary
from scripts.benchmarks.sweep import sweep

ROUNDS = 3
QUICK_ROUNDS = 2
CURVE_ROUNDS = 1
SCENARIO_NAMES = [scenario.name for scenario in SCENARIOS]
CURVE_NAMES = [curve.name for curve in CURVES]
CONTENDER_NAMES = list(
    dict.fromkeys(one.name for scenario in SCENARIOS for one in scenario.contenders)
)


def measure(options: argparse.Namespace, console: Console) -> Run:
    """Play everything that is asked for.

    Raises:
        BenchmarkError: a server is missing.
    """
    server = options.server or ("redis" if shutil.which("redis-server") else "valkey")
    redis_binary(server)  # before anything runs
    place = machine()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    results, courses = [], []
    for scenario in scenarios_of(options.only):
        watch = Stopwatch(options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS))
        result = play(
            scenario,
            only=[name for name in options.only if name in CONTENDER_NAMES],
            rounds=watch.rounds,
            updates=options.updates,
            server=server,
            seed=options.seed,
            part=(scenario.quick_part if options.quick else 1.0) * options.part,
            say=say,
        )
        results.append(dataclasses.replace(result, made=watch.made()))
    for curve in curves_of(options.only):
        watch = Stopwatch(options.rounds or CURVE_ROUNDS)
        course = sweep(
            curve,
            rounds=watch.rounds,
            is_quick=options.quick,
            part=(curve.quick_part if options.quick else 1.0) * options.part,
            server=server,
            seed=options.seed,
            say=say,
        )
        courses.append(dataclasses.replace(course, made=watch.made()))
    return Run(
        machine=place,
        versions=versions(server),
        options={"server": server, "seed": options.seed},
        results=results,
        courses=courses,
    )


class Stopwatch:
    """Notes when and from what a part of the numbers is made; begins at once."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._load = os.getloadavg()[0]
        self._began = time.monotonic()

    def made(self) -> Made:
        """Return what was noted, and the time since."""
        seconds = round(time.monotonic() - self._began, 1)
        return Made(self._at, revision(), round(self._load, 1), self.rounds, seconds)


def curves_of(only: Sequence[str]) -> list[Curve]:
    """Return the curves that names of scenarios, contenders and curves leave."""
    return [curve for curve in CURVES if not only or curve.name in only]


def scenarios_of(only: Sequence[str]) -> list[Scenario]:
    """Return the scenarios that names of scenarios and contenders leave."""
    scenarios = [name for name in only if name in SCENARIO_NAMES]
    contenders = {name for name in only if name in CONTENDER_NAMES}
    if only and not scenarios and not contenders:
        return []
    return [
        scenario
        for scenario in SCENARIOS
        if (not scenarios or scenario.name in scenarios)
        and (not contenders or contenders & {one.name for one in scenario.contenders})
    ]


def revision() -> str:
    """Return the commit, with "+" if files differ from it; says so if git does not know it.

    What this command writes does not count.
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
