"""Scenarios, contenders and results; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CPU = "cpu_ns."  # prefix of measures: nanoseconds of CPU for one update, of one role


class BenchmarkError(Exception):
    """A run does not count; the message says why."""


@dataclass(frozen=True)
class Provenance:
    """When, from which commit and how a part of the numbers was measured.

    Attributes:
        at: day and time, UTC.
        revision: the commit; followed by "+" if files were changed.
        load: load average of the machine over the minute before.
        rounds: how often each number was measured.
        seconds: how long all rounds took.
    """

    at: str = ""
    revision: str = ""
    load: float = 0.0
    rounds: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Contender:
    """One implementation of what a scenario measures.

    Attributes:
        name: for the command line and the report.
        title: in the page and in legends.
        module: with the functions `write` and `read`.
        updates: in one run; chosen so that a run takes one to three seconds.
        services: that it needs: "redis", "worker" (ours), "nats".
        needs: modules that must be installed.
        how: what it does, as shown in the page.
        keys: number of different keys written, if there are as many updates.
        settings: of our worker, as environment variables; defaults for the rest.
        details: for both roles.
        row: of a grid, the row in which it is shown.
        peer: of a grid, the implementation that it is in that row.
        rounds: in how many rounds it runs at most; 0 for all of them.
    """

    name: str
    title: str
    module: str
    updates: int
    services: tuple[str, ...]
    needs: tuple[str, ...]
    how: str
    keys: int = 10_000
    settings: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    peer: str = ""
    rounds: int = 0

    def rounds_of(self, planned: int) -> int:
        """Return in how many of the planned rounds it runs."""
        return min(planned, self.rounds) if self.rounds else planned


@dataclass(frozen=True)
class Measure:
    """A quantity that runs measure.

    Attributes:
        name: in samples.
        label: heading of its column.
        unit: shown after a value.
        is_more_better: whether a larger value is better.
        digits: significant ones after the decimal point.
    """

    name: str
    label: str
    unit: str
    is_more_better: bool
    digits: int = 0

    def shown(self, value: float) -> str:
        """Return a value as text, without the unit."""
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Scenario:
    """One comparison: what is measured, and for which contenders.

    Attributes:
        name: for the command line and the names of files.
        title: heading in the page and of tables.
        method: what is measured and how, as shown in the page; paragraphs.
        headline: the measure that is compared.
        contenders: the first is ours; the others are compared with it.
        also: further measures, shown beside the headline.
        quick_scale: share of the usual updates in a run of `--quick`.
        is_quick: whether `--quick` measures it even if `--only` does not name it.
        measure_run: takes a `contender_run.ContenderRun` and returns its measures; raises
            `BenchmarkError` if the run does not count.
    """

    name: str
    title: str
    method: str
    headline: Measure
    contenders: tuple[Contender, ...]
    measure_run: Callable[[Any], Mapping[str, float]]
    also: tuple[Measure, ...] = ()
    quick_scale: float = 1.0
    is_quick: bool = True

    @property
    def ours(self) -> str:
        """The name of the contender that the others are compared with."""
        return self.contenders[0].name

    def ours_of(self, contender: str) -> str:
        """The name of the contender that this one is compared with."""
        del contender
        return self.ours


@dataclass(frozen=True)
class Grid(Scenario):
    """A comparison in several rows: each implementation runs once for each of them.

    Contenders are named `ROW/PEER`. Those of one row are compared with its first.

    Attributes:
        row_titles: name of a row -> its title, in order.
        seconds: how long the writer of each run writes; 0 if it writes a number of updates.
    """

    row_titles: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def peers(self) -> list[str]:
        """Implementations, ours first."""
        return list(dict.fromkeys(one.peer for one in self.contenders))

    def ours_of(self, contender: str) -> str:
        """The name of the contender that this one is compared with: ours of the same row."""
        return cell(contender.partition("/")[0], self.peers[0])


def cell(row: str, peer: str) -> str:
    """Return the name of a contender of a grid."""
    return f"{row}/{peer}"


@dataclass(frozen=True)
class Sample:
    """The result of one run of one contender.

    Attributes:
        contender: its name.
        round: 1 and up; runs of one round were made one right after the other.
        updates: how many were written.
        measures: by name; empty if the run does not count.
        fault: why it does not count; empty if it does.
    """

    contender: str
    round: int
    updates: int
    measures: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class Result:
    """All runs of a scenario.

    Attributes:
        scenario: what was measured.
        samples: in the order in which they were measured.
        skipped: contender -> why it could not run.
        made: when and from what.
    """

    scenario: Scenario
    samples: tuple[Sample, ...]
    skipped: Mapping[str, str]
    provenance: Provenance = field(default_factory=Provenance)

    def of(self, contender: str, measure: str) -> dict[int, float]:
        """Return round -> value of one contender's measure, of runs that count."""
        return {
            sample.round: sample.measures[measure]
            for sample in self.samples
            if sample.contender == contender and measure in sample.measures
        }

    @property
    def measured(self) -> list[Contender]:
        """Contenders with at least one run that counts, in the order of the scenario."""
        headline = self.scenario.headline.name
        return [one for one in self.scenario.contenders if self.of(one.name, headline)]

    @property
    def faults(self) -> list[Sample]:
        """Runs that do not count."""
        return [sample for sample in self.samples if sample.fault]

    @property
    def roles(self) -> list[str]:
        """Roles whose CPU time was measured, in the order in which they first appear."""
        return list(
            dict.fromkeys(
                name.removeprefix(CPU)
                for sample in self.samples
                for name in sample.measures
                if name.startswith(CPU)
            )
        )
