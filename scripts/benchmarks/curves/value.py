"""Throughput, CPU and overhead in bytes against the size of values."""

from __future__ import annotations

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.curves.flow import OVERHEAD, RATE, SERVER_NS, WORKER_NS, flow
from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import ProcessGroup

FLOAT_BYTES = 8
KEYS = 10_000
MAX_BYTES = 60_000_000
MEGABYTES = Measure("mb_per_s", "MB of values a second", "MB/s", is_more_better=True, digits=1)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write values of one size."""
    size = round(spec.x)
    updates = spec.scaled(min(700_000, MAX_BYTES // size))
    is_text = spec.line.name == "texts"
    with ProcessGroup(spec.server, {}) as group:
        measures = flow(group, updates=updates, keys=KEYS, size=size if is_text else 0)
    return {**measures, "mb_per_s": measures["updates_per_s"] * size / 1e6}


VALUE = Curve(
    name="curve-value",
    title="Throughput, CPU and bytes against value size",
    method="""\
One writer, one replica, 10,000 keys of 13 characters, default settings; values are texts of a
number of characters, and floats of 8 bytes. The overhead is the number of bytes published (every
byte of every batch, as a subscriber gets it) divided by the size of the same keys and values, each
packed as MessagePack. Texts of more than 64 characters do not use the producer's fast path.""",
    axis=Measure("size", "bytes of a value", "B", is_more_better=False),
    lines=(
        Line(
            "texts",
            "texts",
            (8, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144),
            (64, 4_096),
        ),
        Line("floats", "floats", (FLOAT_BYTES,), (FLOAT_BYTES,)),
    ),
    panels=(
        Panel("updates per second", (RATE,), is_log=True),
        Panel("MB of values a second", (MEGABYTES,)),
        Panel("CPU of Redis for an update, ns", (SERVER_NS,), is_log=True),
    ),
    also=(WORKER_NS, OVERHEAD),
    measure_point=measure_point,
)
