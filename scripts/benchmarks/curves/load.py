"""Time and memory of loading the full state, against its size."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup
from scripts.benchmarks.workload import key_of, value_of, workload

REPLICA, HSCAN, DICT = "replica", "hscan", "dict"
MEGABYTE = 1e6
SECONDS = Measure("seconds", "seconds", "s", is_more_better=False, digits=3)
PEAK = Measure("peak_mb", "peak memory, MB", "MB", is_more_better=False, digits=1)
HELD = Measure("held_mb", "memory held afterwards, MB", "MB", is_more_better=False, digits=1)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Fill the server, let a reader join, and compare what it holds.

    Raises:
        BenchmarkError: a process failed, or the state is not right.
    """
    keys = spec.scaled(spec.x, least=100)
    right = dict(zip(*workload(keys, keys), strict=True))
    match spec.line.name:
        case "replica":
            with ProcessGroup(spec.server, {"GLOBAL_DATA_UPDATE_INTERVAL": "1s"}) as group:
                return _joined(group, "roles.join.replica", right, "statebroker_load")
        case "hscan":
            with ProcessGroup(spec.server) as group:
                return _joined(group, "roles.join.scan", right, "hscan")
        case _:
            right = {key_of(number): value_of(number) for number in range(keys)}
            with ProcessGroup(spec.server) as group:
                return _joined(group, "roles.join.fill", right, "")


def _joined(
    group: ProcessGroup, role: str, right: Mapping[str, float], contender: str
) -> dict[str, float]:
    """Let a contender of the load scenario write, if one is named; then let the role join."""
    keys = len(right)
    if contender:
        role_of = f"contenders.{contender}.write"
        writer = group.start("writer", role_of, updates=keys, keys=keys)
        group.ready(writer)
        writer.send("go")
        group.ready(writer)
    reader = group.start("reader", role, keys=keys)
    group.ready(reader)
    reader.send("go")
    report = reader.receive(TIMEOUT_S)
    group.check([reader], right)
    return {
        "seconds": report["seconds"],
        "peak_mb": report["peak"] / MEGABYTE,
        "held_mb": report["held"] / MEGABYTE,
    }


SIZES = (1_000, 10_000, 100_000, 1_000_000)
LOAD = Curve(
    name="curve-load",
    title="Full load: time and memory against state size",
    method="""\
The keys hold floats; a reader joins as above. Measured is the growth of its process's memory, as
Linux counts it: the peak, and what remains after a garbage collection and returning freed pages. A
replica and HSCAN end with the same content; "a dict" is created from it in place, without a server:
about the minimum for this content in Python. Below a megabyte the numbers say more about the
process than about the state.""",
    axis=Measure("keys", "keys", "", is_more_better=True),
    lines=(
        Line(REPLICA, "a replica", SIZES, (10_000, 100_000)),
        Line(HSCAN, "bare HSCAN", SIZES, (10_000, 100_000)),
        Line(DICT, "a dict", SIZES, (100_000,)),
    ),
    panels=(
        Panel("seconds", (SECONDS,), is_log=True),
        Panel("peak memory, MB", (PEAK,), is_log=True),
        Panel("memory held afterwards, MB", (HELD,), is_log=True),
    ),
    measure_point=measure_point,
    quick_scale=1.0,
)
