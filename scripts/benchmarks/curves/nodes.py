"""What many writers cost: a few deltas each, and as many as they can."""

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
# Of the wall time that the deltas should take: a fleet that is slower does not write at its rate.
MAX_LATE = 1.1
SHARE = Measure("server_share", "Redis, % of a core", "%", is_more_better=False, digits=1)
WORKER_SHARE = Measure(
    "worker_share", "our worker, % of a core", "%", is_more_better=False, digits=1
)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Play one point.

    Raises:
        BenchmarkError: a process failed, the state is not right, or the nodes fell behind.
    """
    return _measure_plain(spec) if spec.line.name == PLAIN else _measure_nodes(spec)


def _measure_plain(spec: PointSpec) -> dict[str, float]:
    """Let as many connections send SETs; nothing of ours takes part."""
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
    """Let so many nodes write, and compare what a replica holds with what they wrote."""
    nodes = round(spec.x)
    is_paced = spec.line.name != FREE
    each = spec.scaled(PER_S * SECONDS if is_paced else FREE_DELTAS / nodes, least=10)
    with ProcessGroup(spec.server, {}) as group:
        # Before a thousand connect at once: asyncio takes a unix socket whose queue is full for one
        # that is connected.
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
So many nodes, each with its name, its buffer, its connection and {PER_S} keys of its own, in
{PROCESSES} processes; one replica, floats, default settings. *Paced*: each node sets one key every
{1000 // PER_S} ms, evenly, so that next to every delta is a chunk and an append of its own: the
dearest way to write. A thousand Python writers need more than this machine has: then each waits for
its turn, and its deltas gather. So a third line sends the very same appends, on a connection for
each node, from a client that costs next to nothing. A fourth sends as many plain SETs in that way,
with neither worker nor replica: what it takes Redis to be woken, to read and to answer. *As fast as
they can*: all of them at once, where chunks fill up. The share of Redis is its CPU time over the
wall time of the run, in percent of one core.""",
    axis=Measure("nodes", "nodes", "", is_more_better=True),
    lines=(
        Line(PACED, f"{PER_S} deltas/s each", (1, 10, 100, 300, 1_000), (10,)),
        Line(BARE, f"{PER_S} deltas/s each, bare appends", (10, 100, 300, 1_000), (1_000,)),
        Line(PLAIN, f"{PER_S} SETs/s each, nothing of ours", (10, 100, 300, 1_000), (1_000,)),
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
