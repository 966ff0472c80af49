"""The cost of many writers: at a low rate each, and at full speed."""

from __future__ import annotations

from itertools import pairwise

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.curves.flow import RATE, SERVER_NS, WORKER_NS
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup, cpu_of
from scripts.benchmarks.workload import nodes_state

PACED, BARE, PLAIN, FREE = "paced", "bare", "plain", "free"
PER_S = 10
SECONDS = 4.0
FREE_DELTAS = 400_000
PROCESSES = 2
# Of the planned duration: slower nodes do not write at their rate.
MAX_LATE = 1.1
SHARE = Measure("server_share", "Redis, % of a core", "%", is_more_better=False, digits=1)
WORKER_SHARE = Measure(
    "worker_share", "our worker, % of a core", "%", is_more_better=False, digits=1
)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Measure one point.

    Raises:
        BenchmarkError: a process failed, the state is not right, or the nodes fell behind.
    """
    return _measure_plain(spec) if spec.line.name == PLAIN else _measure_nodes(spec)


def _measure_plain(spec: PointSpec) -> dict[str, float]:
    """Send plain SETs over as many connections, without statebroker."""
    nodes, each = round(spec.x), spec.scaled(PER_S * SECONDS, least=10)
    with ProcessGroup(spec.server) as group:
        writer = group.start(
            "writer", "roles.fleet.plain", first=0, nodes=nodes, each=each, per_s=PER_S
        )
        group.ready(writer)
        server = cpu_of([group.services["server"]])
        writer.send("go")
        wrote = writer.receive(TIMEOUT_S)
        server_ns = server()
    seconds = (wrote["written"] - wrote["began"]) / 1e9
    _check_pace(nodes, seconds, each)
    return {"server_ns": server_ns / (nodes * each), "server_share": server_ns / seconds / 1e7}


def _measure_nodes(spec: PointSpec) -> dict[str, float]:
    """Let the nodes write, and compare a replica's state with what they wrote."""
    nodes = round(spec.x)
    is_paced = spec.line.name != FREE
    each = spec.scaled(PER_S * SECONDS if is_paced else FREE_DELTAS / nodes, least=10)
    with ProcessGroup(spec.server, {}) as group:
        # Started before a thousand nodes connect: asyncio takes a unix socket whose backlog is
        # full for one that is connected.
        reader = group.start("reader", "roles.flow.read", replicas=1)
        group.ready(reader)
        processes = min(PROCESSES, nodes) if spec.line.name != BARE else 1
        bounds = [nodes * number // processes for number in range(processes + 1)]
        writers = [
            group.start(
                f"writers-{first}",
                "roles.fleet.append" if spec.line.name == BARE else "roles.fleet.write",
                first=first,
                nodes=end - first,
                each=each,
                per_s=PER_S if is_paced else 0,
            )
            for first, end in pairwise(bounds)
        ]
        group.ready(*writers)
        server, worker = (cpu_of([group.services[name]]) for name in ("server", "worker"))
        for writer in writers:
            writer.send("go")
        wrote = [writer.receive(TIMEOUT_S) for writer in writers]
        reader.send("note", note=max(wrote, key=lambda one: one["append"])["note"])
        at = reader.receive(TIMEOUT_S)["at"]
        server_ns, worker_ns = server(), worker()
        group.check([reader], nodes_state(nodes, each))
    began = min(one["began"] for one in wrote)
    written_s = (max(one["written"] for one in wrote) - began) / 1e9
    if is_paced:
        _check_pace(nodes, written_s, each)
    deltas, seconds = nodes * each, (at - began) / 1e9
    measures = {
        "server_ns": server_ns / deltas,
        "worker_ns": worker_ns / deltas,
        "deltas_a_chunk": deltas / sum(one["chunks"] for one in wrote),
    }
    if not is_paced:
        return {**measures, "updates_per_s": deltas / seconds}
    return {
        **measures,
        "server_share": server_ns / seconds / 1e7,
        "worker_share": worker_ns / seconds / 1e7,
    }


def _check_pace(nodes: int, seconds: float, each: int) -> None:
    if seconds > MAX_LATE * each / PER_S:
        raise BenchmarkError(f"{nodes} nodes took {seconds:.1f} s for {each / PER_S:.1f} s")


NODES = Curve(
    name="curve-nodes",
    title="Throughput and CPU against nodes",
    method=f"""\
Each node has a name, a buffer, a connection and {PER_S} keys of its own; the nodes run in
{PROCESSES} processes; one replica, floats, default settings. *Paced*: each node sets one key every
{1000 // PER_S} ms, evenly, so that almost every delta is a chunk and an append of its own: the most
expensive way to write. A thousand Python writers exceed this machine: then they wait for the CPU,
and several deltas share a chunk. So another line sends the same appends, on a connection for each
node, from a client of minimal cost. A further line sends as many plain SETs in the same way,
without worker and replica: the cost of Redis to wake up, read and answer. *As fast as they can*:
all nodes at full speed, with full chunks. The share of Redis is its CPU time over the duration of
the run, in percent of one core. What a target compares, the last points of two lines, is measured
three times, by turns.""",
    axis=Measure("nodes", "nodes", "", is_more_better=True),
    lines=(
        Line(PACED, f"{PER_S} deltas/s each", (1, 10, 100, 300, 1_000), (10,)),
        Line(
            BARE,
            f"{PER_S} deltas/s each, bare appends",
            (10, 100, 300, 1_000),
            (1_000,),
            compared=(1_000,),
        ),
        Line(
            PLAIN,
            f"{PER_S} SETs/s each, nothing of ours",
            (10, 100, 300, 1_000),
            (1_000,),
            compared=(1_000,),
        ),
        Line(FREE, "as fast as they can", (1, 10, 100, 1_000), (10,)),
    ),
    panels=(
        Panel("CPU of Redis, % of a core", (SHARE,)),
        Panel("CPU of Redis for an update, ns", (SERVER_NS,), is_log=True),
        Panel("updates per second", (RATE,)),
    ),
    also=(
        WORKER_SHARE,
        WORKER_NS,
        Measure("deltas_a_chunk", "deltas a chunk", "", is_more_better=True, digits=1),
    ),
    measure_point=measure_point,
)
