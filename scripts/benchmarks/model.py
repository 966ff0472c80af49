"""What a scenario, a contender and a result are; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CPU = "cpu_ns."  # prefix of measures: nanoseconds of CPU for one update, of one role


class BenchmarkError(Exception):
    """A run gives no number; the message says why."""


@dataclass(frozen=True)
class Made:
    """When and from what a part of the numbers was made.

    Attributes:
        at: day and time, UTC.
        revision: the commit; "+" behind it if files were changed.
        load: of the machine before, as it tells its own average over a minute.
        rounds: how often each number was measured.
        seconds: how long it took.
    """

    at: str = ""
    revision: str = ""
    load: float = 0.0
    rounds: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Contender:
    """One way to do what the scenario asks for.

    Attributes:
        name: for the command line and the report.
        title: for people.
        module: with the functions `write` and `read`.
        updates: in one run, so many that it takes one to three seconds.
        services: what it needs running: "redis", "worker" (ours), "nats".
        needs: modules that have to be installed.
        how: what it does, in the words of the page.
        keys: how many different ones are written, if there are so many updates.
        settings: of our worker, as environment variables; others are the defaults.
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


@dataclass(frozen=True)
class Measure:
    """A number that a run gives.

    Attributes:
        name: in samples.
        label: for people.
        unit: for people.
        is_more_better: more of it is better.
        digits: behind the point, that say something.
    """

    name: str
    label: str
    unit: str
    is_more_better: bool
    digits: int = 0

    def shown(self, value: float) -> str:
        """Return a value for people, without the unit."""
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Scenario:
    """A question that contenders answer in numbers.

    Attributes:
        name: for the command line and the names of files.
        title: for people.
        method: what is measured and how, in the words of the page; paragraphs.
        headline: what is compared.
        contenders: the first is ours, the others are compared with it.
        also: what is shown beside it.
        quick_part: of the updates, that a quick run makes.
        play: plays one run; what it gets is a `stage.Stage`, what it returns are the measures.
    """

    name: str
    title: str
    method: str
    headline: Measure
    contenders: tuple[Contender, ...]
    play: Callable[[Any], Mapping[str, float]]
    also: tuple[Measure, ...] = ()
    quick_part: float = 1.0

    @property
    def ours(self) -> str:
        """The name of the contender that the others are compared with."""
        return self.contenders[0].name


@dataclass(frozen=True)
class Sample:
    """What one run of one contender gave.

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
        scenario: what was played.
        samples: in the order in which they were played.
        skipped: contender -> why it could not be played.
        made: when and from what.
    """

    scenario: Scenario
    samples: tuple[Sample, ...]
    skipped: Mapping[str, str]
    made: Made = field(default_factory=Made)

    def of(self, contender: str, measure: str) -> dict[int, float]:
        """Return round -> value of one contender's measure, of runs that count."""
        return {
            sample.round: sample.measures[measure]
            for sample in self.samples
            if sample.contender == contender and measure in sample.measures
        }

    @property
    def played(self) -> list[Contender]:
        """Contenders with a number, in the order of the scenario."""
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
