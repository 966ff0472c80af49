"""The bandwidth of the same flights: as deltas, as full states, and as both."""

from __future__ import annotations

import time

from broker import Inspector
from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.contenders.statebroker_load import is_folded
from scripts.benchmarks.curve import Curve, Line, Panel, PointSpec
from scripts.benchmarks.flights import day, fold, timed
from scripts.benchmarks.model import BenchmarkError, Measure
from scripts.benchmarks.process_group import TIMEOUT_S, ProcessGroup

DAY_S = 12.0
POLL_S = 0.02
MIN_SENT = 0.9
AGE, INTERVAL, KIND, COMPRESS = "age", "interval", "kind", "compress"
BOTH, DELTAS, STATES = "both", "deltas", "states"
TO_ONE = Measure("to_one_kb", "kB a second to a subscriber", "kB/s", is_more_better=False, digits=1)
ALL = Measure("all_kb", "kB a second, all that Redis moves", "kB/s", is_more_better=False, digits=1)


def measure_point(spec: PointSpec) -> dict[str, float]:
    """Replay the day in one of the ways, and count bytes.

    Raises:
        BenchmarkError: a process failed, the state is not right, or the writer fell behind.
    """
    kind = spec.line.settings[KIND]
    seconds = DAY_S * spec.scale
    before, during = day()
    right: dict[str, object] = {}
    fold(right, before)
    fold(right, during)
    measures = _both(spec, seconds, right) if kind == BOTH else _alone(spec, seconds, right)
    return {name: value / 1e3 / seconds for name, value in measures.items()}


def _both(spec: PointSpec, seconds: float, right: dict[str, object]) -> dict[str, float]:
    """Ours, with the one setting that varies and the other that the line has."""
    settings = {AGE: spec.x, INTERVAL: spec.x, **spec.line.settings}
    worker = {
        "LOCAL_DELTA_MAX_AGE": f"{settings[AGE]}s",
        "GLOBAL_DATA_UPDATE_INTERVAL": f"{settings[INTERVAL]}s",
    }
    with ProcessGroup(spec.server, worker) as group:
        writer = group.start(
            "writer",
            "roles.replay.both",
            seconds=seconds,
            max_age=settings[AGE],
            compress=settings.get(COMPRESS),
        )
        reader = group.start("reader", "roles.flow.read", replicas=1, notes=2)
        reader.send("note", note=group.ready(writer, reader)[0]["note"])
        group.ready(reader)
        _wait_until_folded(group.redis)
        began = group.counters.bytes()
        published = group.counters.meta("bytes")
        writer.send("go")
        reader.send("note", note=writer.receive(TIMEOUT_S)["note"])
        group.ready(reader)
        moved = sum(group.counters.bytes()) - sum(began)
        to_one = group.counters.meta("bytes") - published
        group.check([reader], right)
    return {"to_one_kb": to_one, "all_kb": moved}


def _wait_until_folded(url: str) -> None:
    """Wait until the earlier state is folded, so that this is not counted."""
    deadline = time.monotonic() + TIMEOUT_S
    with Inspector(url, namespace=NAMESPACE) as inspector:
        while not is_folded(inspector):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no full state within {TIMEOUT_S:g} s")
            time.sleep(POLL_S)


def _alone(spec: PointSpec, seconds: float, right: dict[str, object]) -> dict[str, float]:
    """Deltas or full states alone, by the shortest code that does it."""
    kind = spec.line.settings[KIND]
    with ProcessGroup(spec.server) as group:
        writer = group.start("writer", f"roles.replay.{kind}", seconds=seconds, every=spec.x)
        reader = group.start("reader", f"roles.replay.read_{kind}")
        group.ready(writer, reader)
        began = group.counters.bytes()
        writer.send("go")
        wrote = writer.receive(TIMEOUT_S)
        group.ready(reader)
        moved = sum(group.counters.bytes()) - sum(began)
        group.check([reader], right)
    periods = {int(at / spec.x) for at, _ in timed(day()[1], seconds)}
    if kind == STATES and wrote["messages"] < MIN_SENT * len(periods):
        raise BenchmarkError(
            f"{wrote['messages']} full states instead of {len(periods)}: the writer fell behind"
        )
    return {"to_one_kb": wrote["bytes"], "all_kb": moved}


METHOD = f"""\
A day of real flights (the tenth of the demo's month: some 11,000 deltas over a state of 2,700 keys,
which packed has 220 kB) is replayed in {DAY_S:g} seconds, after the nine days before it. Three ways
to keep a subscriber current, each over a real server; the final states are compared:

* *deltas alone*: the changes of each period are published. The minimum; but a late joiner gets
  nothing, and a lost message is never noticed.
* *full states alone*: the whole state is packed and published every period. Errors do not last;
  but a subscriber is up to a period late, and the bytes grow as the period shrinks.
* *both*: ours, with its two settings.

*To a subscriber* are the bytes of all messages that one subscriber gets; each further subscriber
costs these again. *All that Redis moves* is what the server counted in and out over all its
connections: producers' chunks, batches to one subscriber, and for ours also the worker, which
receives its own batches, reads the log, and writes the full state. All bytes are measured."""

PANELS = (
    Panel("kB a second to a subscriber", (TO_ONE,), is_log=True),
    Panel("kB a second, all that Redis moves", (ALL,), is_log=True),
)
AGES = (0.02, 0.05, 0.2, 1.0, 5.0)
INTERVALS = (0.1, 0.3, 1.0, 3.0, 10.0)


def _both_line(fixed: str, value: float, title: str, xs: tuple[float, ...]) -> Line:
    return Line(f"both-{value:g}", title, xs, (xs[1],), {KIND: BOTH, fixed: value})


BY_AGE = Curve(
    name="curve-bandwidth-age",
    title="Bandwidth over `local_delta_max_age`: deltas, full states, both",
    method=METHOD,
    axis=Measure("age", "local_delta_max_age, or period, s", "s", is_more_better=False, digits=2),
    lines=(
        _both_line(INTERVAL, 1.0, "both, full state every 1 s", AGES),
        _both_line(INTERVAL, 10.0, "both, full state every 10 s", AGES),
        Line(
            "both-plain",
            "both, every 10 s, not compressed",
            AGES,
            (AGES[1],),
            {KIND: BOTH, INTERVAL: 10.0, COMPRESS: 0},
        ),
        Line(DELTAS, "deltas alone", AGES, (AGES[1],), {KIND: DELTAS}),
        Line(STATES, "full states alone", AGES, (AGES[1],), {KIND: STATES}),
    ),
    panels=PANELS,
    measure_point=measure_point,
    at_once=5,
    quick_scale=0.3,
)

BY_INTERVAL = Curve(
    name="curve-bandwidth-interval",
    title="Bandwidth over `global_data_update_interval`: deltas, full states, both",
    method="""\
The same day in the same ways, over the other setting: how often the full state is written, or
published if there are no deltas. Deltas alone have no such setting: see the points above. Ours
writes full states incrementally and sends them only on request, so what a subscriber gets does not
depend on it.""",
    axis=Measure(
        "interval",
        "global_data_update_interval, or period, s",
        "s",
        is_more_better=False,
        digits=1,
    ),
    lines=(
        _both_line(AGE, 0.05, "both, deltas after 0.05 s", INTERVALS),
        _both_line(AGE, 1.0, "both, deltas after 1 s", INTERVALS),
        Line(STATES, "full states alone", INTERVALS, (INTERVALS[1],), {KIND: STATES}),
    ),
    panels=PANELS,
    measure_point=measure_point,
    at_once=5,
    quick_scale=0.3,
)
