"""The latency of an update, from `set` in one process to a reader in another."""

from __future__ import annotations

from scripts.benchmarks.contender_run import ContenderRun
from scripts.benchmarks.model import Contender, Measure, Scenario

CONTENDERS = "scripts.benchmarks.contenders."
P50 = Measure("p50_ms", "p50, ms", "ms", is_more_better=False, digits=2)
P99 = Measure("p99_ms", "p99, ms", "ms", is_more_better=False, digits=2)
MOST = Measure("max_ms", "max, ms", "ms", is_more_better=False, digits=2)
# Of all deltas; most wait less than the maximum age, and so have no delay beyond it.
ALL_P99 = Measure("all_p99_ms", "p99 of all deltas, ms", "ms", is_more_better=False, digits=2)


def measure_run(run: ContenderRun) -> dict[str, float]:
    """Write all updates at the writer's rate, and return the reader's measures.

    Raises:
        BenchmarkError: a role failed, or the reader's state is not right.
    """
    run.writer.send("go")
    run.wait_until_written()
    measures: dict[str, float] = run.wait_until_read()["measures"]
    run.check_state()
    return measures


AT_ONCE = Scenario(
    name="latency",
    title="Latency of single updates",
    method="""\
1,000 updates a second, each published by itself: ours with `local_delta_max_count` 1 and `linger`
0. Each value carries the time of its `set`, of the clock that all processes of a machine share.
p50, p99 and maximum are of all updates of a run, in milliseconds; less is better. The reader's
state is checked as above.""",
    headline=P50,
    also=(P99, MOST),
    quick_scale=0.4,
    measure_run=measure_run,
    contenders=(
        Contender(
            name="statebroker-count-1",
            title="statebroker, count 1",
            module=CONTENDERS + "statebroker_count",
            updates=3_000,
            services=("redis", "worker"),
            needs=("redis",),
            how=(
                "`Producer.set`; our worker drains and publishes each delta; the reader follows "
                "`Replica.changes()`."
            ),
        ),
        Contender(
            name="publish-paced",
            title="HSET + PUBLISH, one by one",
            module=CONTENDERS + "publish_paced",
            updates=3_000,
            services=("redis",),
            needs=("redis", "hiredis"),
            how=(
                "redis-py with hiredis and RESP2; HSET and PUBLISH in one pipeline for each "
                "update. No worker, no offset, no batch: about the minimum with Redis and "
                "Python."
            ),
        ),
    ),
)

BY_AGE = Scenario(
    name="latency-age",
    title="Lateness of batches",
    method="""\
10,000 updates a second with default settings, under which a delta may wait `local_delta_max_age`,
50 ms, before its batch is published. Measured is the delay beyond that, from `set` until a reader
of `Replica.changes()` has the delta, in milliseconds: what scheduling, packing, the worker, the
server and the replica add. p50, p99 and maximum are of the oldest delta of each batch, which waits
longest; a run has about 80 batches, so p99 is nearly the maximum. The last column is p99 of all
deltas: most have no delay beyond 50 ms, since they arrived while the oldest waited. There is no
comparison.""",
    headline=P50,
    also=(P99, MOST, ALL_P99),
    quick_scale=0.4,
    is_quick=False,
    measure_run=measure_run,
    contenders=(
        Contender(
            name="statebroker-age",
            title="statebroker, default settings",
            module=CONTENDERS + "statebroker_age",
            updates=40_000,
            services=("redis", "worker"),
            needs=("redis",),
            how=(
                "`Producer.set` at the rate; the worker with default settings; a reader that calls "
                "`gc.freeze()` once it is live, as any service with low latency should."
            ),
        ),
    ),
)
