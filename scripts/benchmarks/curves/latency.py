"""Latency against the rate of updates."""

from __future__ import annotations

from scripts.benchmarks.contender_run import ContenderRun
from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.model import Measure
from scripts.benchmarks.scenarios.latency import AT_ONCE, BY_AGE, MOST, P50, P99, measure_run

COUNT, AGE = "count-1", "age"
SECONDS = 3.0
CONTENDERS = {COUNT: AT_ONCE.contenders[0], AGE: BY_AGE.contenders[0]}


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write at one rate for some seconds."""
    updates = spec.scaled(spec.x * SECONDS, least=100)
    with ContenderRun(CONTENDERS[spec.line.name], updates, spec.server, {"per_s": spec.x}) as run:
        return measure_run(run)


LATENCY = Curve(
    name="curve-latency",
    title="Latency against rate",
    method="""\
One writer at a rate, one reader of `Replica.changes()`, as in the two latencies above, for three
seconds each. *By count*: `local_delta_max_count` 1 and `linger` 0; measured is the time from `set`
until the reader has the change. Above some thousand a second, updates that arrive during an append
share the next one, so higher rates are possible. *By age*: default settings; measured is the delay
of the oldest delta of each batch beyond `local_delta_max_age` (50 ms).""",
    axis=Measure("rate", "updates per second", "1/s", is_more_better=True),
    lines=(
        Line(COUNT, "by count 1", (100, 300, 1_000, 3_000, 10_000, 30_000), (1_000,)),
        Line(AGE, "by age, beyond 50 ms", (100, 1_000, 3_000, 10_000, 30_000, 100_000), (10_000,)),
    ),
    panels=(
        Panel("by count 1: latency, ms", (P50, P99, MOST), is_log=True, lines=(COUNT,)),
        Panel("by age: delay beyond max age, ms", (P50, P99, MOST), lines=(AGE,)),
    ),
    measure_point=measure_point,
)
