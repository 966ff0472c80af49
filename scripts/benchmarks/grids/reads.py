"""What it costs to read a replica and to hold it, for the four shapes of values."""

from __future__ import annotations

from scripts.benchmarks.contender_run import ContenderRun
from scripts.benchmarks.grids.shapes import CONTENDERS, OURS
from scripts.benchmarks.model import Contender, Grid, Measure, cell
from scripts.benchmarks.shapes import SHAPES, final

GET_RATIO = Measure("get_ratio", "over a dict's", "x", is_more_better=False, digits=2)
MEMORY_RATIO = Measure("memory_ratio", "memory over a dict's", "x", is_more_better=False, digits=2)
# The shape whose memory is compared at a million keys.
LARGE, KEYS, MANY_KEYS = "position", 200_000, 1_000_000


def measure_run(run: ContenderRun) -> dict[str, float]:
    """Write everything, let the reader load it, and return what its reads cost.

    Raises:
        BenchmarkError: a role failed, or the reader's state is not right.
    """
    run.writer.send("go")
    wrote = run.wait_until_written()
    run.reader.send("go")
    measures: dict[str, float] = run.wait_until_read()["measures"]
    run.check_state(final(run.contender.details["shape"], run.updates, run.updates))
    held = measures.pop("replica_bytes") / run.updates
    dict_held = wrote["measures"]["dict_bytes"] / run.updates
    return measures | {
        GET_RATIO.name: measures["get_ns"] / measures["plain_get_ns"],
        "items_ratio": measures["items_ns"] / measures["plain_items_ns"],
        "keys_k": run.updates / 1e3,
        "replica_bytes": held,
        "dict_bytes": dict_held,
        MEMORY_RATIO.name: held / dict_held,
    }


def _cost(name: str, label: str) -> Measure:
    return Measure(name, label, "ns", is_more_better=False)


READS = Grid(
    name="reads",
    title="Reads of a replica, ns of CPU for each key",
    method=f"""\
A replica joins N keys ({KEYS:,}; {MANY_KEYS:,} for the two fields), and then reads itself, while
no one writes. Compared with a dict of the same keys whose values are bytes packed by msgpack, by
turns in the same process: a look-up of one key, in random order, and `msgpack.unpackb`; and all
items of the dict, each unpacked. Iteration yields keys alone; `items()` and `snapshot()` yield each
key with its value. Numbers are CPU of all threads, for one key, the median of three times. Memory
is what the process grows by when it joins, for each key, with the about 15 MB that each replica
takes for itself, beside what a new process grows by when it makes a dict of the same keys and
values, unpacked.""",
    headline=_cost("get_ns", "replica[key]"),
    also=(
        _cost("plain_get_ns", "dict, unpackb"),
        GET_RATIO,
        _cost("iterate_ns", "iterate keys"),
        _cost("items_ns", "items()"),
        _cost("snapshot_ns", "snapshot()"),
        _cost("plain_items_ns", "dict's items, unpackb"),
        Measure("items_ratio", "items() over that", "x", is_more_better=False, digits=2),
        Measure("keys_k", "keys, k", "k", is_more_better=True),
        Measure("replica_bytes", "memory a key, B", "B", is_more_better=False),
        Measure("dict_bytes", "of a dict, B", "B", is_more_better=False),
        MEMORY_RATIO,
    ),
    quick_scale=0.05,
    measure_run=measure_run,
    row_titles={shape.name: shape.title for shape in SHAPES},
    contenders=tuple(
        Contender(
            name=cell(shape.name, OURS),
            title="statebroker",
            module=CONTENDERS + "reads",
            updates=MANY_KEYS if shape.name == LARGE else KEYS,
            services=("redis", "worker"),
            settings={"STATEBROKER_GLOBAL_DATA_UPDATE_INTERVAL": "1s"},
            needs=("redis", "msgpack"),
            how="a live `Replica` of the threaded API.",
            details={"shape": shape.name},
            row=shape.name,
            peer=OURS,
        )
        for shape in SHAPES
    ),
)
