"""Throughput, CPU, bytes and joining for the four shapes of values that people write."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from scripts.benchmarks.contender_run import RUN_TIMEOUT_S, ContenderRun
from scripts.benchmarks.counters import Counters
from scripts.benchmarks.model import CPU, BenchmarkError, Contender, Grid, Measure, cell
from scripts.benchmarks.shape_link import is_following
from scripts.benchmarks.shapes import PASSES, SHAPES, final

CONTENDERS = "scripts.benchmarks.contenders.shape_"
SECONDS = 10.0
# Of peers that are so slow that their spread decides nothing.
SLOW_ROUNDS = 2
# Holds all that a run writes.
LOG_GIB = 8
PLAIN = "statebroker-plain"
OURS, BATCHED, ZEROMQ, EACH, NATS = "statebroker", "hset-batch", "zeromq", "hset-each", "nats-kv"
RATE = Measure("kilo_per_s", "thousand updates a second", "k/s", is_more_better=True, digits=1)
WIRE = Measure("wire_bytes", "bytes to reader", "B", is_more_better=False)
SERVER = Measure("server_bytes", "bytes in, out of server", "B", is_more_better=False)
JOINING = Measure("joining_ms", "joining late, ms", "ms", is_more_better=False)
DELIVERED = Measure("delivered_k", "published deltas, k", "k", is_more_better=True)


def measure_run(run: ContenderRun) -> dict[str, float]:
    """Write for the time or number, wait until the reader has read all, compare, and join.

    Raises:
        BenchmarkError: a role failed, an update did not arrive, or a state is not right.
    """
    contender = run.contender
    with ExitStack() as stack:
        counters = stack.enter_context(Counters(run.redis)) if run.redis else None
        bytes_before = sum(counters.bytes()) if counters else 0
        before = run.cpu_ns()
        run.writer.send("go")
        wrote = run.wait_until_written()
        read = run.wait_until_read()
        after = run.cpu_ns()
        bytes_after = sum(counters.bytes()) if counters else 0
        published = _published(counters, contender)
    updates = round(wrote["measures"]["written"])
    right = final(contender.details["shape"], contender.keys, updates)
    run.check_state(right)
    run.reader.send("join")
    joined = run.reader.receive(RUN_TIMEOUT_S)
    delivered = round(read["measures"]["received"]) if published is None else published
    if delivered != updates:
        raise BenchmarkError(f"{delivered} of {updates} updates arrived")
    if joined["fault"]:
        raise BenchmarkError(joined["fault"])
    measures = {
        "updates": updates,
        RATE.name: updates * 1e6 / (read["at"] - wrote["began"]),
        DELIVERED.name: delivered / 1e3,
        "seconds": (wrote["at"] - wrote["began"]) / 1e9,
        **joined["measures"],
    }
    measures[WIRE.name] /= updates
    if counters:
        measures[SERVER.name] = (bytes_after - bytes_before) / updates
    return measures | {CPU + role: (after[role] - before[role]) / updates for role in after}


def _published(counters: Counters | None, contender: Contender) -> int | None:
    """Return how many updates our worker published; None if the reader counts them itself.

    A reader of the state alone does not count: a replica may load a full state in between.
    """
    if counters is None or contender.peer not in {OURS, PLAIN} or is_following(contender):
        return None
    return counters.meta("published")


def _peer(
    name: str,
    title: str,
    module: str,
    how: str,
    *,
    services: tuple[str, ...],
    needs: tuple[str, ...],
    changes: bool,
    rounds: int = 0,
    settings: Mapping[str, str] | None = None,
    **details: int,
) -> list[Contender]:
    return [
        Contender(
            name=cell(shape.name, name),
            title=title,
            module=CONTENDERS + module,
            # Only if a number is asked for; else they write for some seconds.
            updates=1,
            services=services,
            settings=settings or {},
            needs=needs,
            how=how,
            details={"shape": shape.name, "changes": changes, **details},
            row=shape.name,
            peer=name,
            rounds=rounds,
        )
        for shape in SHAPES
    ]


def _ours(how: str, *, changes: bool, settings: Mapping[str, str] | None = None) -> list[Contender]:
    return _peer(
        OURS,
        "statebroker",
        "ours",
        how,
        services=("redis", "worker"),
        needs=("redis",),
        changes=changes,
        settings=settings,
    )


def _batched(*, changes: bool) -> list[Contender]:
    return _peer(
        BATCHED,
        "HSET + PUBLISH, batched by hand",
        "hset_batch",
        "redis-py with hiredis and RESP2; each value is packed once by msgpack, floats as a column "
        "of float64; 200 updates share one HSET and one message, which has the keys and then the "
        "packed values; ten such pairs are one pipeline; the reader unpacks every value of every "
        "message. There is no timer: an update waits until its batch is full.",
        services=("redis",),
        needs=("redis", "hiredis"),
        changes=changes,
    )


def _zeromq(*, changes: bool) -> list[Contender]:
    return _peer(
        ZEROMQ,
        "bare ZeroMQ PUB/SUB",
        "zeromq",
        "pyzmq over a unix socket, one msgpack message of key and value for each update, no limit "
        "on queues. No server, no history, nobody can join late.",
        services=(),
        needs=("zmq",),
        changes=changes,
    )


_TITLES = {shape.name: shape.title for shape in SHAPES}
STATE = Grid(
    name="shapes",
    title="Throughput of what people write: from one process into the dict of another",
    method=f"""\
One process writes updates as fast as it can for {SECONDS:.0f} s, over 10,000 keys in turn; another
one holds the last value of every key. Values have four shapes. Each key gets {PASSES} different
values in turn, all made before the clock runs. The clock runs from just before the first update
until the reader has **read every value** after the last one, as Python objects; the rate is the
number of updates divided by that. Conflation is off: every update is published and arrives, or the
run does not count; the number is in the table.

CPU is the time that the kernel counts for each process (all threads, user and system) in the same
period, divided by the number of updates. Bytes to the reader are the messages that it gets, without
what the protocol adds to each message; those in and out of the server are everything that Redis
receives and sends on all connections. A late reader joins at once afterwards, and ends when it has
read everything; for ours this includes the log since the last full state (every 10 s).

After the clock has stopped, both states are compared with the last value of each key. A run whose
reader lacks a key or holds a wrong value does not count, and is listed. Ratios are of medians.""",
    headline=RATE,
    also=(DELIVERED, WIRE, SERVER, JOINING),
    quick_scale=0.05,
    measure_run=measure_run,
    row_titles=_TITLES,
    seconds=SECONDS,
    contenders=(
        *_ours(
            "`Producer.set` for each update; `statebroker serve` with default settings; a live "
            "`Replica`: `wait_for` the token of the writer's `flush`, then all of `items()`.",
            changes=False,
        ),
        *_peer(
            PLAIN,
            "statebroker, not compressed",
            "ours",
            "the same with `compress=0`.",
            services=("redis", "worker"),
            needs=("redis",),
            changes=False,
            compress=0,
        ),
        *_batched(changes=False),
        *_zeromq(changes=False),
        *_peer(
            EACH,
            "HSET + PUBLISH for each update",
            "hset_each",
            "redis-py with hiredis and RESP2; one HSET and one PUBLISH for each update, 200 in one "
            f"pipeline without a transaction; {SLOW_ROUNDS} rounds.",
            services=("redis",),
            needs=("redis", "hiredis"),
            changes=False,
            rounds=SLOW_ROUNDS,
        ),
        *_peer(
            NATS,
            "NATS JetStream KV",
            "nats_kv",
            "nats-py over loopback TCP, bucket in memory, 200 `put` at a time with "
            "`asyncio.gather`, each acknowledged; the reader follows `watchall`; "
            f"{SLOW_ROUNDS} rounds.",
            services=("nats",),
            needs=("nats", "msgpack"),
            changes=False,
            rounds=SLOW_ROUNDS,
        ),
    ),
)
CHANGES = Grid(
    name="changes",
    title="Throughput where the reader takes every change",
    method="""\
The same, but the reader takes every single change with its value, as a Python object, in a loop of
its own, and puts it into a dict. The clock stops when it has taken the last one.""",
    headline=RATE,
    also=(DELIVERED, WIRE, SERVER, JOINING),
    quick_scale=0.05,
    measure_run=measure_run,
    row_titles=_TITLES,
    seconds=SECONDS,
    contenders=(
        *_ours(
            f"as above, but with a log of {LOG_GIB} GiB: the default of 256 MiB is full after some "
            "seconds of this, and a reader that is late by more than the log loads the full state "
            "instead of every change. The reader follows `Replica.changes()`, with a limit that "
            "it does not reach.",
            changes=True,
            settings={"STATEBROKER_LOG_BYTES": str(LOG_GIB << 30)},
        ),
        *_batched(changes=True),
        *_zeromq(changes=True),
    ),
)
