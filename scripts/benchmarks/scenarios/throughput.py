"""Throughput of updates, from one process into the dict of another."""

from __future__ import annotations

from scripts.benchmarks.contender_run import ContenderRun
from scripts.benchmarks.model import CPU, Contender, Measure, Scenario

CONTENDERS = "scripts.benchmarks.contenders."


def measure_run(run: ContenderRun) -> dict[str, float]:
    """Write everything, wait until the reader holds it, and compare.

    If the writer wrote all updates several times, the reader reports how often as `passes`.

    Raises:
        BenchmarkError: a role failed, or the reader's state is not right.
    """
    before = run.cpu_ns()
    run.writer.send("go")
    wrote = run.wait_until_written()
    read = run.wait_until_read()
    after = run.cpu_ns()
    run.check_state()
    measures = dict(read["measures"])
    updates = run.updates * measures.pop("passes", 1)
    measures |= {
        "updates_per_s": updates * 1e9 / (read["at"] - wrote["began"]),
        "written_per_s": updates * 1e9 / (wrote["at"] - wrote["began"]),
    }
    return measures | {CPU + role: (after[role] - before[role]) / updates for role in after}


THROUGHPUT = Scenario(
    name="throughput",
    title="Throughput: from one process into the dict of another",
    method="""\
One process writes N updates as fast as it can, over 10,000 keys in turn, each value a float.
Another process holds the last value of every key in a dict (ours: in a live `Replica`). The
clock runs from just before the first update until the reader holds the result of the last one;
updates per second is N divided by that. All keys and values are created before. N differs between
contenders, so that each run takes a second or more.

CPU is the time that the kernel counts for each process (all threads, user and system) in the same
period, divided by N: for the writer, the reader, the server, and our worker (`statebroker serve`,
one process, default settings).

After the clock has stopped, the measuring process compares everything that the reader holds with
the last value of each key. A run whose reader lacks a key or holds a wrong value does not count,
and is listed.""",
    headline=Measure("updates_per_s", "updates per second", "1/s", is_more_better=True),
    quick_scale=0.25,
    # The grid of shapes has the same for floats.
    is_quick=False,
    measure_run=measure_run,
    contenders=(
        Contender(
            name="statebroker",
            title="statebroker",
            module=CONTENDERS + "statebroker",
            updates=1_500_000,
            services=("redis", "worker"),
            needs=("redis",),
            how=(
                "`Producer.set` for each update; `statebroker serve`; a live `Replica`, which is "
                "done when `wait_for` returns for the token of the writer's `flush`."
            ),
        ),
        Contender(
            name="hset-publish",
            title="HSET + PUBLISH",
            module=CONTENDERS + "hset_publish",
            updates=100_000,
            services=("redis",),
            needs=("redis", "hiredis"),
            how=(
                "redis-py with hiredis and RESP2; for each update one HSET and one PUBLISH, 200 "
                "updates in one pipeline without a transaction; the reader puts every message "
                "into a dict."
            ),
        ),
        Contender(
            name="hset-publish-batch",
            title="HSET + PUBLISH, batched by hand",
            module=CONTENDERS + "hset_batch",
            updates=1_200_000,
            services=("redis",),
            needs=("redis", "hiredis"),
            how=(
                "as before, but 200 updates share one HSET and one message, keys and a column of "
                "float64, and ten such pairs one pipeline: what a careful user would write. There "
                "is no timer: an update waits until its batch is full."
            ),
        ),
        Contender(
            name="xadd-xread",
            title="XADD + XREAD",
            module=CONTENDERS + "xadd_xread",
            updates=140_000,
            services=("redis",),
            needs=("redis", "hiredis"),
            how=(
                "redis-py with hiredis and RESP2; for each update one XADD with MAXLEN ~ "
                "1,000,000, 200 in one pipeline; the reader takes up to 1,000 entries with one "
                "blocking XREAD."
            ),
        ),
        Contender(
            name="zeromq",
            title="bare ZeroMQ PUB/SUB",
            module=CONTENDERS + "zeromq",
            updates=1_200_000,
            services=(),
            needs=("zmq",),
            how=(
                "pyzmq over a unix socket, one MessagePack message for each update, no limit on "
                "queues; the writer waits for the subscription first. No server, no history, no "
                "state for late joiners."
            ),
        ),
        Contender(
            name="nats-kv",
            title="NATS JetStream KV",
            module=CONTENDERS + "nats_kv",
            updates=25_000,
            services=("nats",),
            needs=("nats",),
            how=(
                "nats-py over loopback TCP, bucket in memory, 200 `put` at a time with "
                "`asyncio.gather`, each acknowledged; the reader follows `watchall` to the last "
                "revision."
            ),
        ),
    ),
)
