"""The plan of a run: a pure function of the seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

CALM_S = 3.0
SHORTEST_S, LONGEST_S = 0.3, 4.5
PAUSE_S = 1.2
OVERLAP = 0.3
FULL_RUN_S = 600.0
"""A run of this length injects every fault at least once, and all must have an effect."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault.

    Attributes:
        at: seconds after the start.
        fault: its name.
        duration: in seconds, for faults that last.
        random: 0 to 1; selects the victim, the age of a copy, and so on.
    """

    at: float
    fault: str
    duration: float
    random: float


def plan(seed: int, seconds: float, faults: Sequence[str]) -> list[Step]:
    """Return the faults of a run in order of time; every kind occurs before any is repeated.

    So every fault occurs at least once within `most_seconds(len(faults))`, whatever the seed.

    Args:
        seed: the same seed, length and faults give the same plan.
        seconds: how long faults are injected; the last may end later.
        faults: their names.
    """
    chance = random.Random(seed)
    steps: list[Step] = []
    at = CALM_S
    bag: list[str] = []
    while at < seconds:
        if not bag:
            bag = chance.sample(list(faults), len(faults))
        duration = chance.uniform(SHORTEST_S, LONGEST_S)
        steps.append(Step(at, bag.pop(), duration, chance.random()))
        # Some begin while another still lasts.
        share = chance.random() if chance.random() < OVERLAP else 1.0
        at += duration * share + chance.uniform(0, 2 * PAUSE_S)
    return steps


def most_seconds(faults: int) -> float:
    """Return the maximum time in seconds until this many faults have begun."""
    return CALM_S + faults * (LONGEST_S + 2 * PAUSE_S)
