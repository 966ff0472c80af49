"""How long one who comes late waits, and how much memory that takes, by the size of the state."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup
from scripts.benchmarks.workload import key_of, value_of, workload

REPLICA, HSCAN, DICT = "replica", "hscan", "dict"
MEGABYTE = 1e6
SECONDS = Measure("seconds", "seconds", "s", is_more_better=False, digits=3)
PEAK = Measure("peak_mb", "most memory on the way, MB", "MB", is_more_better=False, digits=1)
HELD = Measure("held_mb", "memory then held, MB", "MB", is_more_better=False, digits=1)


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
    """Let a contender of the load write, if one is named, then let the role join."""
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
So many keys with floats are there; a reader joins as above, and we ask Linux how much more memory
its process has than before: the most on the way, and what is left once garbage was collected and
freed pages were given back. A replica and HSCAN have the same content in the end; "a dict" is made
of it in place, from no server at all: nothing that holds this content in Python takes less. Below a
megabyte the numbers are about a process and not about the state.""",
    axis=Measure("keys", "keys", "", is_more_better=True),
    lines=(
        Line(REPLICA, "a replica", SIZES, (10_000, 100_000)),
        Line(HSCAN, "bare HSCAN", SIZES, (10_000, 100_000)),
        Line(DICT, "a dict", SIZES, (100_000,)),
    ),
    panels=(
        Panel("seconds", (SECONDS,), is_log=True),
        Panel("most memory on the way, MB", (PEAK,), is_log=True),
        Panel("memory then held, MB", (HELD,), is_log=True),
    ),
    measure_point=measure_point,
    quick_scale=1.0,
)
