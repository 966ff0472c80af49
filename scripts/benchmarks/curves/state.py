"""Throughput and CPU against the size of the state."""

from __future__ import annotations

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.curves.flow import RATE, READER_NS, SERVER_NS, WORKER_NS, flow
from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import ProcessGroup


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write over keys that all exist before."""
    with ProcessGroup(spec.server, {"GLOBAL_DATA_UPDATE_INTERVAL": "1s"}) as group:
        updates = spec.scaled(1_000_000)
        return flow(group, updates=updates, keys=round(spec.x), preload=True)


STATE = Curve(
    name="curve-state",
    title="Throughput and CPU against state size",
    method="""\
One writer, one replica, floats; all keys exist before the clock runs, and are updated in turn. The
full state is written every second (the default is 10 s), so that these numbers include its cost: it
is part of "our worker" and of Redis, and grows with the number of *different* keys that change
within a second.""",
    axis=Measure("keys", "keys", "", is_more_better=True),
    lines=(Line("floats", "floats", (1_000, 10_000, 100_000, 1_000_000), (1_000, 100_000)),),
    panels=(
        Panel("updates per second", (RATE,)),
        Panel("CPU for an update, ns", (SERVER_NS, WORKER_NS, READER_NS)),
    ),
    measure_point=measure_point,
)
