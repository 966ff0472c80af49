"""Throughput of numbers, from the arrays of one process into those of another."""

from __future__ import annotations

from dataclasses import replace

from scripts.benchmarks.model import Contender, Measure, Scenario
from scripts.benchmarks.scenarios.throughput import CONTENDERS, THROUGHPUT, measure_run

BYTES = "bytes_per_update"


_PEERS = tuple(
    replace(one, name="numbers-" + one.name)
    for one in THROUGHPUT.contenders
    if one.name in ("hset-publish", "hset-publish-batch")
)

NUMBERS = Scenario(
    name="numbers",
    title="Numbers: from one process' arrays into another's",
    method="""\
The updates of the throughput, written as columns of float64 into a table, and held by a live
`Replica` as an array. Clock, CPU and the check of the final state are those of the throughput
above. Bytes are those of the packets that the replica received, headers included, for each update.

The peers are the same as above, in the same run. The one that is batched by hand sends a column,
too; in the hash each number is a field of its own.""",
    headline=THROUGHPUT.headline,
    also=(Measure(BYTES, "bytes for each update", "B", is_more_better=False, digits=2),),
    quick_scale=0.2,
    measure_run=measure_run,
    contenders=(
        Contender(
            name="statebroker-table",
            title="statebroker, table, 10,000 at once",
            module=CONTENDERS + "statebroker_table_large",
            updates=20_000_000,
            services=("redis", "worker"),
            needs=("redis", "numpy"),
            keys=100_000,
            how=(
                "`table.set_many` of 10,000 numbers for keys that `table.keys` looked up once; "
                "text keys, float64, no timestamps."
            ),
        ),
        Contender(
            name="statebroker-table-1000",
            title="statebroker, table, 1,000 at once",
            module=CONTENDERS + "statebroker_table",
            updates=10_000_000,
            services=("redis", "worker"),
            needs=("redis", "numpy"),
            how="the same, 1,000 numbers in each call, and so in each chunk or more of them.",
        ),
        Contender(
            name="statebroker-records",
            title="statebroker, table, records of 24 bytes",
            module=CONTENDERS + "statebroker_records",
            updates=10_000_000,
            services=("redis", "worker"),
            needs=("redis", "numpy"),
            how=(
                "`table.set_records` of 10,000 records of u64 key, float64 value and int64 "
                "timestamp, slices of one array."
            ),
        ),
        *_PEERS,
    ),
)
