"""Throughput and the cost of Redis, by deltas a chunk."""

from __future__ import annotations

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.curves.flow import (
    OVERHEAD,
    RATE,
    SERVER_NS,
    WORKER_NS,
    WRITER_NS,
    flow,
)
from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import ProcessGroup

FLUSHED, FREE = "flushed", "free"
DEFAULT_COUNT = 1_000
MAX_BYTES = 4 << 20
# About what a run of a second needs: a round trip, and the time of each delta.
ROUND_TRIP_S, DELTA_S = 400e-6, 1e-6


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write with chunks of one size."""
    with ProcessGroup(spec.server, {}) as group:
        if spec.line.name == FREE:
            return flow(
                group,
                updates=spec.scaled(700_000),
                settings={"chunk_bytes": round(spec.x)},
            )
        size = round(spec.x)
        a_second = size / (ROUND_TRIP_S + size * DELTA_S)
        settings = {"local_delta_max_count": max(size, DEFAULT_COUNT), "chunk_bytes": MAX_BYTES}
        return flow(
            group,
            updates=spec.scaled(a_second, least=size),
            flush_every=size,
            settings=settings,
        )


CHUNK = Curve(
    name="curve-chunk",
    title="Throughput and CPU against chunk size",
    method="""\
One writer, one replica, 10,000 keys, floats, as in the throughput above. A chunk is what one append
carries; its cost in Redis hardly depends on what it holds, so a delta's share of it falls with
every delta that shares it. Two ways to get chunks of a size: *flushed* waits for Redis after a
fixed number of `set` calls, *free running* never waits, and `chunk_bytes` limits the chunk (the
default is 256 KiB). The x axis is the mean number of deltas in a chunk.""",
    axis=Measure("x", "flush every, or `chunk_bytes`", "", is_more_better=True),
    over="deltas_a_chunk",
    lines=(
        Line(
            FLUSHED,
            "flushed",
            (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000),
            (1, 30, 1_000),
        ),
        Line(
            FREE,
            "free running",
            (1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20),
            (4 << 10, 256 << 10),
        ),
    ),
    panels=(
        Panel("updates per second", (RATE,), is_log=True),
        Panel("CPU of Redis for an update, ns", (SERVER_NS,), is_log=True),
        Panel("published bytes over packed key and value", (OVERHEAD,)),
    ),
    also=(
        Measure("deltas_a_chunk", "deltas a chunk", "", is_more_better=True),
        WRITER_NS,
        WORKER_NS,
    ),
    measure_point=measure_point,
)
