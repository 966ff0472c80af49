"""Runs every contender once per round, in an order that is shuffled for each round."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping, Sequence

from scripts.benchmarks.contender_run import ContenderRun
from scripts.benchmarks.model import BenchmarkError, Contender, Grid, Result, Sample, Scenario
from scripts.benchmarks.progress import Progress


def skip_reason(contender: Contender) -> str:
    """Return why a contender cannot run here; empty if it can."""
    missing = [name for name in contender.needs if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"not installed here: {', '.join(missing)}; pip install 'statebroker[bench]'"


def selected(scenario: Scenario, only: Sequence[str]) -> list[Contender]:
    """Return the contenders of a scenario that `only` names; all if it is empty."""
    return [one for one in scenario.contenders if not only or one.name in only]


def order_of(names: Sequence[str], number: int, seed: int) -> list[str]:
    """Return the names in the order of a round: the same for the same arguments."""
    order = sorted(names)
    random.Random(f"{seed}/{number}").shuffle(order)
    return order


def run_rounds(
    scenario: Scenario,
    *,
    only: Sequence[str],
    rounds: int,
    updates: int | None,
    server: str,
    seed: int,
    scale: float,
    progress: Progress,
) -> Result:
    """Run all rounds of a scenario.

    Args:
        scenario: what is measured.
        only: names of contenders; empty for all.
        rounds: at least 1.
        updates: in each run; None for the contender's own number times `scale`.
        server: "redis" or "valkey".
        seed: of the orders.
        scale: share of the contender's own number of updates, or of a grid's seconds; above 0, up
            to 1.
        progress: prints each run.
    """
    contenders = selected(scenario, only)
    skipped = {one.name: why for one in contenders if (why := skip_reason(one))}
    for name, why in skipped.items():
        progress.note(f"skipped {name}: {why}")
    running = {one.name: one for one in contenders if one.name not in skipped}
    samples = []
    for number in range(1, rounds + 1):
        due = [one.name for one in running.values() if number <= one.rounds_of(rounds)]
        for name in order_of(due, number, seed):
            contender = running[name]
            count = updates or max(1, round(contender.updates * scale))
            seconds = scenario.seconds * scale if isinstance(scenario, Grid) and not updates else 0
            details = {"seconds": seconds} if seconds else {}
            sample = _run_once(scenario, contender, number, count, server, details=details)
            samples.append(sample)
            progress.done(f"{scenario.name}: {name} {_describe(scenario, sample)}")
    return Result(scenario, tuple(samples), skipped)


def _run_once(
    scenario: Scenario,
    contender: Contender,
    number: int,
    updates: int,
    server: str,
    *,
    details: Mapping[str, float],
) -> Sample:
    try:
        with ContenderRun(contender, updates, server, details) as run:
            measures = dict(scenario.measure_run(run))
    except (BenchmarkError, OSError) as error:
        return Sample(contender.name, number, updates, fault=str(error))
    # Who writes for some seconds knows only then how much that was.
    updates = round(measures.pop("updates", updates))
    return Sample(contender.name, number, updates, measures)


def _describe(scenario: Scenario, sample: Sample) -> str:
    if sample.fault:
        return f"does not count: {sample.fault}"
    headline = scenario.headline
    return f"{headline.shown(sample.measures[headline.name])} {headline.unit}"
