"""The cost of a full state, against the share of it that changed."""

from __future__ import annotations

from broker import Inspector
from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup, cpu_of
from scripts.benchmarks.processes import Process
from scripts.benchmarks.workload import workload

KEYS = 300_000
FOLDED, PLAIN = "folded", "plain"
SECONDS = Measure("seconds", "seconds", "s", is_more_better=False, digits=4)
CPU_MS = Measure("cpu_ms", "CPU, ms", "ms", is_more_better=False, digits=1)
SERVER_MS = Measure("server_ms", "of it Redis, ms", "ms", is_more_better=False, digits=1)
KILOBYTES = Measure("kb", "bytes in and out of Redis, kB", "kB", is_more_better=False, digits=0)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write all keys, have them folded, change a share of them, and measure the next full state.

    Raises:
        BenchmarkError: a process failed, or the full state is not right.
    """
    keys = spec.scaled(KEYS)
    changed = max(1, round(keys * spec.x / 100))
    with ProcessGroup(spec.server, {}, command="flush") as group:
        if spec.line.name == PLAIN:
            writer = group.start("writer", "roles.snapshot.write_plainly", updates=keys, keys=keys)
            group.ready(writer)
            return _measured(group, writer, keys)
        writer = group.start("scheduler", "roles.snapshot.fold")
        source = group.start("source", "roles.flow.write", updates=changed, keys=keys, preload=True)
        reader = group.start("reader", "roles.flow.read", replicas=1, notes=2)
        note = group.ready(source, reader, writer)[0]["note"]
        # All is in the log once a replica has it.
        reader.send("note", note=note)
        group.ready(reader)
        _measured(group, writer, keys)
        source.send("go")
        reader.send("note", note=source.receive(TIMEOUT_S)["note"])
        group.ready(reader)
        measures = _measured(group, writer, changed)
        right = dict.fromkeys(workload(keys, keys)[0], 0.0)
        right.update(zip(*workload(changed, keys), strict=True))
        with Inspector(group.redis, namespace=NAMESPACE) as inspector:
            if inspector.state() != right:
                raise BenchmarkError("the full state is wrong")
    return measures


def _measured(group: ProcessGroup, writer: Process, fields: int) -> dict[str, float]:
    """Let the writer write once, and return the cost."""
    before = group.counters.bytes()
    all_cpu, server_cpu = (
        cpu_of([group.services["server"], writer]),
        cpu_of([group.services["server"]]),
    )
    writer.send("go")
    report = writer.receive(TIMEOUT_S)
    measures = {
        "seconds": report["seconds"],
        "cpu_ms": all_cpu() / 1e6,
        "server_ms": server_cpu() / 1e6,
        "kb": (sum(group.counters.bytes()) - sum(before)) / 1e3,
    }
    if report["written"] != fields:
        raise BenchmarkError(f"{report['written']} keys were written instead of {fields}")
    return measures


SNAPSHOT = Curve(
    name="curve-snapshot",
    title="Cost of a full state against the share of keys that changed",
    method=f"""\
{KEYS:,} keys with floats are in the full state. Then a share of them changes, and the scheduler's
writer runs once, alone. Its cost depends on what changed: it reads the log, reads the old fields of
those keys (for the digest), and writes the new ones. Compared with the simplest full write: every
key and value in HSETs of 1,000 fields from prepared bytes, by redis-py with hiredis, which reads
nothing, keeps no digest, and is inconsistent until it ends. The full state is compared with what
was written. A full write of all keys, which a target compares, is measured three times, by turns
with the simplest one.""",
    axis=Measure("share", "% of keys changed", "%", is_more_better=True, digits=2),
    lines=(
        Line(FOLDED, "our full state", (0.01, 0.1, 1, 10, 100), (1, 100), compared=(100,)),
        Line(PLAIN, "HSET of everything", (100,), (100,), compared=(100,)),
    ),
    panels=(
        Panel("seconds", (SECONDS,), is_log=True),
        Panel("CPU of Redis and scheduler, ms", (CPU_MS,), is_log=True),
        Panel("bytes in and out of Redis, kB", (KILOBYTES,), is_log=True),
    ),
    also=(SERVER_MS,),
    measure_point=measure_point,
    quick_scale=0.33,
)
