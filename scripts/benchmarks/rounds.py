"""Round after round, every contender once in each, in an order that changes."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Sequence

from scripts.benchmarks.model import BenchmarkError, Contender, Result, Sample, Scenario
from scripts.benchmarks.stage import Stage


def obstacle(contender: Contender) -> str:
    """Return why a contender cannot play here; empty if it can."""
    missing = [name for name in contender.needs if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"not installed here: {', '.join(missing)}; pip install 'statebroker[bench]'"


def order_of(names: Sequence[str], number: int, seed: int) -> list[str]:
    """Return the names in the order of a round: a function of its arguments."""
    order = sorted(names)
    random.Random(f"{seed}/{number}").shuffle(order)
    return order


def play(
    scenario: Scenario,
    *,
    only: Sequence[str],
    rounds: int,
    updates: int | None,
    server: str,
    seed: int,
    part: float,
    say: Callable[[str], None],
) -> Result:
    """Play all rounds of a scenario.

    Args:
        scenario: the question.
        only: names of contenders; empty for all.
        rounds: at least 1.
        updates: in each run, instead of the contender's own number.
        server: "redis" or "valkey".
        seed: of the orders.
        part: of the contender's own number of updates.
        say: tells a person what happens.
    """
    wanted = [one for one in scenario.contenders if not only or one.name in only]
    skipped = {one.name: why for one in wanted if (why := obstacle(one))}
    for name, why in skipped.items():
        say(f"skipped {name}: {why}")
    playing = {one.name: one for one in wanted if one.name not in skipped}
    samples = []
    for number in range(1, rounds + 1):
        for name in order_of(list(playing), number, seed):
            contender = playing[name]
            count = updates or round(contender.updates * part)
            sample = _run(scenario, contender, number, count, server)
            samples.append(sample)
            say(f"{scenario.name} {number}/{rounds}  {name:20} {_in_words(scenario, sample)}")
    return Result(scenario, tuple(samples), skipped)


def _run(
    scenario: Scenario, contender: Contender, number: int, updates: int, server: str
) -> Sample:
    try:
        with Stage(contender, updates, server) as stage:
            measures = scenario.play(stage)
    except (BenchmarkError, OSError) as error:
        return Sample(contender.name, number, updates, fault=str(error))
    return Sample(contender.name, number, updates, measures)


def _in_words(scenario: Scenario, sample: Sample) -> str:
    if sample.fault:
        return f"does not count: {sample.fault}"
    headline = scenario.headline
    return f"{headline.shown(sample.measures[headline.name]):>12} {headline.unit}"
