"""Medians, spreads and ratios; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from scripts.benchmarks.model import CPU, Result

SPREAD_LIMIT = 1.5


@dataclass(frozen=True)
class Summary:
    """Several rounds in one line.

    Attributes:
        median: of all; the mean of the middle two if their number is even.
        low: the least.
        high: the most.
        count: how many, at least 1.
    """

    median: float
    low: float
    high: float
    count: int

    @property
    def is_noisy(self) -> bool:
        """Whether the rounds differ by so much that the median says little."""
        return self.high > SPREAD_LIMIT * self.low


def summary(values: Iterable[float]) -> Summary | None:
    """Return the summary of some values, None if there are none."""
    kept = sorted(values)
    return Summary(median(kept), kept[0], kept[-1], len(kept)) if kept else None


def advantage(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, is_more_better: bool
) -> Summary | None:
    """Return how many times better ours is, above 1 if it is.

    Only values of the same round are divided: they were measured one right after the other, so what
    slows the machine down slows both.

    Args:
        ours: round -> value, above 0.
        theirs: the same.
        is_more_better: more is better; else less is.

    Returns:
        Of the ratios of the rounds that both have; None if there is none.
    """
    rounds = ours.keys() & theirs.keys()
    if is_more_better:
        return summary(ours[one] / theirs[one] for one in rounds)
    return summary(theirs[one] / ours[one] for one in rounds)


def compared(result: Result, contender: str) -> Summary | None:
    """Return how many times better ours is than a contender, by the headline; None if unknown."""
    headline = result.scenario.headline
    return advantage(
        result.of(result.scenario.ours_of(contender), headline.name),
        result.of(contender, headline.name),
        is_more_better=headline.is_more_better,
    )


def ratio_of_medians(
    result: Result, above: tuple[str, str], below: tuple[str, str]
) -> float | None:
    """Return the ratio of two medians, None if one was not measured.

    Args:
        result: with both.
        above: contender and measure.
        below: the same; its median is not 0.
    """
    medians = [summary(result.of(*one).values()) for one in (above, below)]
    if medians[0] is None or medians[1] is None:
        return None
    return medians[0].median / medians[1].median


def cpu_compared(result: Result, contender: str) -> Summary | None:
    """Return how many times the CPU of ours a contender takes, of all roles; None if unknown."""
    return advantage(
        cpu_total(result, result.scenario.ours_of(contender)),
        cpu_total(result, contender),
        is_more_better=False,
    )


def cpu_total(result: Result, contender: str) -> dict[int, float]:
    """Return round -> nanoseconds of CPU for one update, of all roles together."""
    totals = {}
    for sample in result.samples:
        parts = [value for name, value in sample.measures.items() if name.startswith(CPU)]
        if sample.contender == contender and parts:
            totals[sample.round] = sum(parts)
    return totals
