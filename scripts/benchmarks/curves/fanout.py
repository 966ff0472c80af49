"""The cost of Redis for each further subscriber."""

from __future__ import annotations

import time

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup, cpu_of
from scripts.benchmarks.workload import final_state

KEYS = 1_000
SECONDS = 4.0
SUBSCRIBERS = (0, 10, 100, 300, 1_000)
SHARE = Measure("server_share", "Redis, % of a core", "%", is_more_better=False, digits=2)
SENT = Measure("sent", "kB sent a second", "", is_more_better=False)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Write at the rate for bare subscribers, and for one replica that is compared.

    Raises:
        BenchmarkError: a process failed, the replica's state is not right, or a subscriber did
            not receive everything.
    """
    per_s, subscribers = spec.line.settings["per_s"], round(spec.x)
    updates = spec.scaled(per_s * SECONDS, least=100)
    with ProcessGroup(spec.server, {}) as group:
        writer = group.start("writer", "roles.flow.write", updates=updates, keys=KEYS, per_s=per_s)
        reader = group.start("reader", "roles.flow.read", replicas=1)
        takers = group.start("subscribers", "roles.fanout.take", subscribers=subscribers)
        group.ready(takers, reader, writer)
        server, counters = cpu_of(group.nodes), group.counters
        messages, published = counters.calls("publish"), counters.meta("bytes")
        sent, began = counters.bytes()[1], time.monotonic()
        writer.send("go")
        reader.send("note", note=writer.receive(TIMEOUT_S)["note"])
        reader.receive(TIMEOUT_S)
        spent, seconds = server(), time.monotonic() - began
        messages = counters.calls("publish") - messages
        sent = counters.bytes()[1] - sent
        published = counters.meta("bytes") - published
        group.check([reader], final_state(updates, KEYS))
        takers.send("stop")
        taken = takers.receive(TIMEOUT_S)["bytes"]
    if taken < subscribers * published:
        raise BenchmarkError(f"took {taken} bytes; {subscribers} times {published} were published")
    return {
        "server_share": spent / seconds / 1e7,
        "sent": sent / seconds / 1e3,
        "messages_per_s": messages / seconds,
        "message_bytes": published / messages,
    }


FANOUT = Curve(
    name="curve-fanout",
    title="CPU of Redis against subscribers that only take bytes",
    method="""\
One writer sets floats over 1,000 keys at a fixed rate, with default settings; one replica, which is
compared in the end, and bare subscribers: one process reads their sockets and discards the data, so
that a thousand of them fit on this machine. What each of them adds to the CPU time of Redis is the
cost of one delivery: a copy of the batch into an output buffer, and a write to a socket. The second
line has as many messages as the first, with about seven times the bytes.""",
    axis=Measure("subscribers", "bare subscribers", "", is_more_better=True),
    lines=(
        Line("1000", "1,000 deltas/s", SUBSCRIBERS, (0, 100), {"per_s": 1_000}),
        Line("10000", "10,000 deltas/s", SUBSCRIBERS, (0, 100), {"per_s": 10_000}),
    ),
    panels=(Panel("CPU of Redis, % of a core", (SHARE,)), Panel("kB sent a second", (SENT,))),
    also=(
        Measure("messages_per_s", "messages published a second", "1/s", is_more_better=False),
        Measure("message_bytes", "bytes a message", "", is_more_better=False),
    ),
    measure_point=measure_point,
    is_log=False,
)
