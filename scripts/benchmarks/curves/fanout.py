"""What Redis spends to hand a batch to one subscriber more."""

from __future__ import annotations

import time

from scripts.benchmarks.curve import Curve, Line, Panel, Setting
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup, cpu_of
from scripts.benchmarks.workload import final_state

KEYS = 1_000
SECONDS = 4.0
SUBSCRIBERS = (0, 10, 100, 300, 1_000)
SHARE = Measure("server_share", "Redis, % of a core", "%", is_more_better=False, digits=2)
SENT = Measure("sent", "kB sent a second", "", is_more_better=False)


def play(setting: Setting) -> dict[str, float]:
    """Write at the rate for so many who only take bytes, and for one replica that is compared.

    Raises:
        BenchmarkError: a process failed, the replica's state is not right, or somebody was not
            sent everything.
    """
    per_s, subscribers = setting.line.settings["per_s"], round(setting.x)
    updates = setting.scaled(per_s * SECONDS, least=100)
    with ProcessGroup(setting.server, {}) as group:
        writer = group.start("writer", "actors.flow.write", updates=updates, keys=KEYS, per_s=per_s)
        reader = group.start("reader", "actors.flow.read", replicas=1)
        crowd = group.start("crowd", "actors.fanout.take", subscribers=subscribers)
        group.ready(crowd, reader, writer)
        server, counters = cpu_of(group.nodes), group.counters
        messages, published = counters.calls("publish"), counters.meta("bytes")
        sent, began = counters.bytes()[1], time.monotonic()
        writer.tell("go")
        reader.tell("note", note=writer.report(TIMEOUT_S)["note"])
        reader.report(TIMEOUT_S)
        spent, seconds = server(), time.monotonic() - began
        messages = counters.calls("publish") - messages
        sent = counters.bytes()[1] - sent
        published = counters.meta("bytes") - published
        group.check([reader], final_state(updates, KEYS))
        crowd.tell("stop")
        taken = crowd.report(TIMEOUT_S)["bytes"]
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
compared in the end, and so many bare subscribers: one process that reads their sockets and throws
away what comes, so that a thousand of them fit on this machine. What Redis takes more with each of
them is the price of one delivery: a copy of the batch into an output buffer, and a write to a
socket. The second line has as many messages as the first, of some seven times the bytes.""",
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
    play=play,
    is_log=False,
)
