"""One writer at full speed, and replicas; shared by several curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from scripts.benchmarks.model import Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup, cpu_of
from scripts.benchmarks.workload import texts, workload

RATE = Measure("updates_per_s", "updates per second", "1/s", is_more_better=True)
SERVER_NS = Measure("server_ns", "Redis, ns an update", "ns", is_more_better=False)
WORKER_NS = Measure("worker_ns", "our worker, ns an update", "ns", is_more_better=False)
READER_NS = Measure("reader_ns", "reader, ns an update", "ns", is_more_better=False)
WRITER_NS = Measure("writer_ns", "writer, ns an update", "ns", is_more_better=False)
OVERHEAD = Measure(
    "overhead", "published bytes over packed key and value", "", is_more_better=False, digits=3
)
PER_PROCESS = 10


def flow(
    group: ProcessGroup,
    *,
    updates: int,
    keys: int = 10_000,
    size: int = 0,
    flush_every: int = 0,
    preload: bool = False,
    replicas: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Write everything, wait until every replica holds it, and compare.

    Args:
        group: with a worker.
        updates: how many.
        keys: how many different ones.
        size: characters of each value; 0 for floats.
        flush_every: deltas between two waits for Redis; 0 waits once, at the end.
        preload: set every key once before the clock runs.
        replicas: how many, ten in a process.
        settings: of the producer.

    Returns:
        `updates_per_s`, from the first update until the last replica holds the last one; the CPU
        of each role by update; `deltas_a_chunk`; and `overhead`, the bytes that were published over
        those of the keys and values alone, each packed by itself.

    Raises:
        BenchmarkError: a process failed, or a replica's state is not right.
    """
    writer = group.start(
        "writer",
        "roles.flow.write",
        updates=updates,
        keys=keys,
        size=size,
        flush_every=flush_every,
        preload=preload,
        settings=settings or {},
    )
    readers = [
        group.start(
            f"reader-{first}",
            "roles.flow.read",
            replicas=min(PER_PROCESS, replicas - first),
            notes=2 if preload else 1,
        )
        for first in range(0, replicas, PER_PROCESS)
    ]
    note = group.ready(writer, *readers)[0]["note"]
    if preload:
        for reader in readers:
            reader.send("note", note=note)
        group.ready(*readers)
    roles = {"server": [group.services["server"]], "worker": [group.services["worker"]]}
    published = group.counters.meta("bytes")
    clocks = {
        role: cpu_of(processes)
        for role, processes in {**roles, "writer": [writer], "reader": readers}.items()
    }
    writer.send("go")
    wrote = writer.receive(TIMEOUT_S)
    for reader in readers:
        reader.send("note", note=wrote["note"])
    at = max(reader.receive(TIMEOUT_S)["at"] for reader in readers)
    measures = {f"{role}_ns": clock() / updates for role, clock in clocks.items()}
    columns = texts(updates, keys, size) if size else workload(updates, keys)
    right: dict[str, Any] = dict.fromkeys(workload(keys, keys)[0], 0.0) if preload else {}
    right.update(zip(*columns, strict=True))
    group.check(readers, right)
    pack = msgpack.Packer().pack
    content = sum(len(pack(key)) + len(pack(value)) for key, value in zip(*columns, strict=True))
    return {
        "overhead": (group.counters.meta("bytes") - published) / content,
        "updates_per_s": updates * 1e9 / (at - wrote["began"]),
        "deltas_a_chunk": updates / wrote["chunks"],
        **measures,
    }
