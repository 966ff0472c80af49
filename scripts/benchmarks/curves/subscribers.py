"""The cost of each further subscriber."""

from __future__ import annotations

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.curves.flow import PER_PROCESS, RATE, READER_NS, SERVER_NS, flow
from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import ProcessGroup


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write for a number of replicas."""
    with ProcessGroup(spec.server, {}) as group:
        updates = spec.scaled(700_000 / (1 + spec.x / 25))
        measures = flow(group, updates=updates, replicas=round(spec.x))
    seen = measures["updates_per_s"] * spec.x
    return {**measures, "seen_per_s": seen}


SUBSCRIBERS = Curve(
    name="curve-subscribers",
    title="Throughput and CPU against subscribers",
    method=f"""\
One writer, 10,000 keys, floats, and the replicas ({PER_PROCESS} in a process, each with its own
connection and its own copy of the state). The clock runs until the last of them holds the last
update; every one is compared. Redis copies each batch once for each subscriber; here the replicas
share the machine with everything else, which they would not in production.""",
    axis=Measure("replicas", "subscribers", "", is_more_better=True),
    lines=(Line("floats", "floats", (1, 2, 5, 10, 20, 50), (1, 10)),),
    panels=(
        Panel("updates per second", (RATE,)),
        Panel("CPU of Redis for an update, ns", (SERVER_NS,)),
    ),
    also=(
        READER_NS,
        Measure("seen_per_s", "updates seen a second, by all", "1/s", is_more_better=True),
    ),
    measure_point=measure_point,
)
