"""Recovery of a replica from outages and lost messages: time, latency, bytes."""

from __future__ import annotations

import time
from typing import Any

from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup
from scripts.benchmarks.processes import Process
from scripts.benchmarks.scenarios.latency import MOST, P50, P99
from scripts.benchmarks.workload import workload

PER_S = 10_000
KEYS = 100_000
BEFORE_S, AFTER_S = 1.0, 3.0
POLL_S = 0.02
LOG, FULL = "log", "full"
SHORT_LOG = {"LOG_RETENTION": "1s", "GLOBAL_DATA_UPDATE_INTERVAL": "0.5s"}
RECOVERY = Measure("recovery_s", "seconds until live", "s", is_more_better=False, digits=3)
RECEIVED = Measure("received_kb", "kB until live", "kB", is_more_better=False)
MISSED = Measure("missed_kb", "kB published meanwhile", "kB", is_more_better=False)
LOADS = Measure("loads", "full loads", "", is_more_better=False)


def measure_outage(spec: PointSpec) -> dict[str, float]:
    """Break the connections for a while, and measure the recovery from their return.

    Raises:
        BenchmarkError: a process failed, or the replica did not become live or has a wrong state.
    """
    total_s = BEFORE_S + spec.x + AFTER_S
    updates = round(PER_S * total_s)
    keys = spec.scaled(KEYS)
    with ProcessGroup(spec.server, spec.line.settings) as group:
        proxy = group.start("proxy", "roles.faulty_link.proxy")
        (between,) = group.ready(proxy)
        writer = group.start(
            "writer", "roles.flow.write", updates=updates, keys=keys, preload=True, per_s=PER_S
        )
        group.ready(writer)
        reader = group.start("reader", "roles.faulty_link.follow", redis=between["url"])
        group.ready(reader)
        writer.send("go")
        time.sleep(BEFORE_S)
        before = group.counters.meta("bytes")
        _ask(proxy, "break")
        time.sleep(spec.x)
        missed = group.counters.meta("bytes") - before
        repaired = _ask(proxy, "repair")
        live_at, loads = _live(reader, repaired["at"])
        passed = _ask(proxy, "count")
        reader.send("note", note=writer.receive(TIMEOUT_S)["note"])
        group.ready(reader)
        group.check([reader], _right(updates, keys))
    return {
        "recovery_s": (live_at - repaired["at"]) / 1e9,
        "received_kb": (passed["bytes_to_client"] - repaired["bytes_to_client"]) / 1e3,
        "missed_kb": missed / 1e3,
        # The first was when it joined.
        "loads": loads - 1,
    }


def _ask(proxy: Process, order: str) -> dict[str, Any]:
    proxy.send(order)
    return proxy.receive(TIMEOUT_S)


def _live(reader: Process, since: int) -> tuple[int, int]:
    """Return the time when the replica was live again, and its number of full loads."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        report = _ask(reader, "statuses")
        for at, status, _ in report["changes"]:
            if at > since and status == "live":
                return at, report["loads"]
        time.sleep(POLL_S)
    raise BenchmarkError(f"the replica is not live {TIMEOUT_S:g} s after the end of the outage")


def _right(updates: int, keys: int) -> dict[str, float]:
    right = dict.fromkeys(workload(keys, keys)[0], 0.0)
    right.update(zip(*workload(updates, keys), strict=True))
    return right


def measure_loss(spec: PointSpec) -> dict[str, float]:
    """Lose a share of the messages for some seconds, and measure the latency of deltas.

    Raises:
        BenchmarkError: a process failed, or the replica's state is not right.
    """
    updates = spec.scaled(PER_S * 4, least=1_000)
    with ProcessGroup(spec.server, spec.line.settings) as group:
        proxy = group.start("proxy", "roles.faulty_link.proxy", drop=spec.x / 100)
        (between,) = group.ready(proxy)
        writer = group.start(
            "writer", "roles.flow.write", updates=updates, keys=KEYS, per_s=PER_S, stamped=True
        )
        reader = group.start(
            "reader", "roles.faulty_link.watch", redis=between["url"], updates=updates
        )
        group.ready(writer, reader)
        before = _ask(proxy, "drop")
        published = group.counters.meta("bytes")
        writer.send("go")
        writer.receive(TIMEOUT_S)
        report = reader.receive(TIMEOUT_S)
        passed = _ask(proxy, "count")
        published = group.counters.meta("bytes") - published
        group.check([reader], dict(zip(*workload(updates, KEYS), strict=True)))
    received = passed["bytes_to_client"] - before["bytes_to_client"]
    return {
        **{name: report[name] for name in ("p50_ms", "p99_ms", "max_ms", "gaps")},
        "lost": passed.get("messages_dropped", 0),
        "bytes_ratio": received / published,
    }


OUTAGE = Curve(
    name="curve-outage",
    title="Recovery against the length of an outage",
    method=f"""\
{PER_S:,} deltas a second over {KEYS:,} keys; the replica's connections run through a proxy
(loopback TCP), which breaks all of them and refuses new ones during the outage. The clock runs from
the end of the outage until the replica is `live`, which means that it has everything. The bytes are
those that the proxy sent to the replica in this time. A replica reconnects after pauses that grow
to 2 s, so that a thousand of them do not reconnect together; most of the time is such a pause.

*Log reaches back*: default settings; what was missed is read from the log. *Log too short*: the log
is kept for a second only; after a longer outage the full state is read instead, as by a new
replica. Which of the two is smaller depends on the outage: the log of a long one may be larger than
the full state. The state is compared after the writer has ended.""",
    axis=Measure("outage", "outage, s", "s", is_more_better=False, digits=1),
    lines=(
        Line(LOG, "log reaches back", (0.1, 0.3, 1, 3, 10), (1,), {}),
        Line(FULL, "log too short", (0.1, 1, 3, 10), (3,), SHORT_LOG),
    ),
    panels=(
        Panel("seconds until live", (RECOVERY,)),
        Panel("kB until live, and kB that were missed", (RECEIVED, MISSED), is_log=True),
    ),
    also=(LOADS,),
    measure_point=measure_outage,
    at_once=2,
)

LOSS = Curve(
    name="curve-loss",
    title="Latency and bytes against lost messages",
    method=f"""\
{PER_S:,} deltas a second in batches of 10 ms (`local_delta_max_age`), so about a hundred messages a
second; the proxy drops a share of them. The replica detects a lost message by the next one, whose
offset leaves a gap, and reads the log. Measured is the latency of all deltas, from `set` until a
reader of `Replica.changes()` has them; the bytes are all that the proxy sent to the replica,
divided by what was published. The state is compared in the end.""",
    axis=Measure("loss", "% of messages lost", "%", is_more_better=False, digits=1),
    lines=(
        Line(
            "age 10 ms",
            "batches of 10 ms",
            (0, 1, 3, 10, 20, 40),
            (0, 10),
            {"LOCAL_DELTA_MAX_AGE": "10ms"},
        ),
    ),
    panels=(
        Panel("latency, ms", (P50, P99, MOST)),
        Panel(
            "bytes received over bytes published",
            (
                Measure(
                    "bytes_ratio", "bytes received / published", "", is_more_better=False, digits=2
                ),
            ),
        ),
    ),
    also=(
        Measure("lost", "messages lost", "", is_more_better=False),
        Measure("gaps", "gaps noticed", "", is_more_better=False),
    ),
    measure_point=measure_loss,
    is_log=False,
    at_once=1,
)
