"""The cost of the same deltas on more primaries of a Redis Cluster."""

from __future__ import annotations

import time

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.curves.flow import PER_PROCESS
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup, cpu_of
from scripts.benchmarks.processes import Process
from scripts.benchmarks.workload import final_state

ONE, TEN = "one", "ten"
SHARDS = 12
WRITERS = 3
KEYS = 9_000
PER_S = 12_000
SECONDS = 4.0
# Long enough that the deltas of an append depend on time alone, not on the load of the machine.
LINGER_S, MAX_AGE_S = 0.02, 0.2
# Of the planned duration: slower writers do not write at their rate.
MAX_LATE = 1.1
IDLE_S = 2.0
SERVER_NS = Measure("server_ns", "all primaries, ns a delta", "ns", is_more_better=False)
BUSIEST = Measure("busiest", "busiest primary, % of a core", "%", is_more_better=False, digits=2)
SHARE = Measure("busiest_share", "its share of all, %", "%", is_more_better=False, digits=1)
WORKER_NS = Measure("worker_ns", "our worker, ns a delta", "ns", is_more_better=False)
READER_NS = Measure("reader_ns", "each replica, ns a delta", "ns", is_more_better=False)
WRITER_NS = Measure("writer_ns", "writers, ns a delta", "ns", is_more_better=False)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write at the rate, and compare every replica's state.

    Raises:
        BenchmarkError: a process failed, a state is not right, or the writers fell behind.
    """
    replicas, primaries = spec.line.settings["replicas"], round(spec.x)
    updates = WRITERS * spec.scaled(PER_S * SECONDS / WRITERS, least=100)
    settings = {"SHARDS": str(SHARDS), "LOCAL_DELTA_MAX_AGE": f"{MAX_AGE_S}s"}
    with ProcessGroup(spec.server, settings, primaries=primaries) as group:
        writers = [
            group.start(
                f"writer-{turn}",
                "roles.flow.write",
                updates=updates,
                keys=KEYS,
                per_s=PER_S / WRITERS,
                turn=turn,
                turns=WRITERS,
                settings={"linger": LINGER_S},
            )
            for turn in range(WRITERS)
        ]
        reader = group.start("reader", "roles.flow.read", replicas=replicas, notes=WRITERS)
        group.ready(reader, *writers)
        worker = group.services["worker"]
        idle = _idle(group.nodes, [worker])
        clocks = [cpu_of([node]) for node in group.nodes]
        roles = {"worker": [worker], "writer": writers, "reader": [reader]}
        others = {role: cpu_of(processes) for role, processes in roles.items()}
        before, began = _counted(group), time.monotonic()
        for writer in writers:
            writer.send("go")
        wrote = [writer.receive(TIMEOUT_S) for writer in writers]
        for one in wrote:
            reader.send("note", note=one["note"])
            reader.receive(TIMEOUT_S)
        servers = [clock() for clock in clocks]
        spent = {role: clock() for role, clock in others.items()}
        seconds, after = time.monotonic() - began, _counted(group)
        group.check([reader], final_state(updates, KEYS))
    written_s = (max(one["at"] for one in wrote) - min(one["began"] for one in wrote)) / 1e9
    # The flush at the end waits for nothing but Redis.
    if written_s > MAX_LATE * updates / PER_S + 1:
        raise BenchmarkError(f"{updates} deltas took {written_s:.1f} s, not {updates / PER_S:.1f}")
    messages, sent = (then - first for first, then in zip(before, after, strict=True))
    chunks = sum(one["chunks"] for one in wrote)
    return {
        **idle,
        "append_ns": sum(servers) / chunks,
        "server_ns": sum(servers) / updates,
        "busiest": max(servers) / seconds / 1e7,
        "busiest_share": 100 * max(servers) / sum(servers),
        "worker_ns": spent["worker"] / updates,
        "writer_ns": spent["writer"] / updates,
        "reader_ns": spent["reader"] / updates / replicas,
        "appends_per_s": chunks / seconds,
        "messages_per_s": messages / seconds,
        "sent": sent / seconds / 1e3,
    }


def _idle(servers: list[Process], workers: list[Process]) -> dict[str, float]:
    """Return the CPU use while no one writes, in percent of a core."""
    began, spent = time.monotonic(), [cpu_of(servers), cpu_of(workers)]
    time.sleep(IDLE_S)  # what is measured is this time
    seconds = time.monotonic() - began
    shares = (one() / seconds / 1e7 for one in spent)
    return dict(zip(("idle", "worker_idle"), shares, strict=True))


def _counted(group: ProcessGroup) -> tuple[int, int]:
    """Return published messages and sent bytes of all primaries so far."""
    counters = group.all_counters
    return sum(one.calls("spublish") for one in counters), sum(one.bytes()[1] for one in counters)


PRIMARIES = Curve(
    name="curve-primaries",
    title="CPU against primaries of a Redis Cluster",
    method=f"""\
{WRITERS} writers set {PER_S:,} floats a second in all, over {KEYS:,} keys in {SHARDS} shards; one
worker (`statebroker serve`); the shards are on 1, 2 or 3 primaries, started for the run on loopback
TCP, without replicas of Redis. `local_delta_max_age` is {MAX_AGE_S * 1000:g} ms and `linger`
{LINGER_S * 1000:g} ms, so that the deltas of an append hardly depend on the load of the machine.
The rate is the same and low, because all processes share the machine's cores: the curve does not
show how much more three primaries can do, but what the same deltas cost on three instead of one,
and that the load is even, so that primaries with cores of their own add up. *All primaries* is
their CPU time divided by the deltas, by the appends, and idle in the {IDLE_S:g} s before the
writers start. *The busiest* is the one with the most CPU time, and its share of all: 100, 50 and
33.3 % are even. *Sent* is everything that the primaries sent: to replicas, to the worker, which
receives its own batches, and replies. Every replica is compared in the end.""",
    axis=Measure("primaries", "primaries", "", is_more_better=True),
    lines=(
        Line(ONE, "one subscriber", (1, 2, 3), (1, 3), {"replicas": 1}),
        Line(TEN, f"{PER_PROCESS} subscribers", (1, 2, 3), (1, 3), {"replicas": PER_PROCESS}),
    ),
    panels=(
        Panel("CPU of all primaries for a delta, ns", (SERVER_NS,)),
        Panel("CPU of the busiest primary, % of a core", (BUSIEST,)),
        Panel("CPU of our worker and of a replica for a delta, ns", (WORKER_NS, READER_NS)),
    ),
    also=(
        SHARE,
        Measure("append_ns", "all primaries, ns an append", "ns", is_more_better=False),
        Measure("idle", "all primaries idle, % of a core", "%", is_more_better=False, digits=2),
        Measure("worker_idle", "our worker idle, % of a core", "%", is_more_better=False, digits=2),
        WRITER_NS,
        Measure("appends_per_s", "appends a second", "1/s", is_more_better=False),
        Measure("messages_per_s", "messages published a second", "1/s", is_more_better=False),
        Measure("sent", "kB sent a second", "", is_more_better=False),
    ),
    measure_point=measure_point,
    is_log=False,
)
