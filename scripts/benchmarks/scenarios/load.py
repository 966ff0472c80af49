"""The time that a late joiner needs to load the full state."""

from __future__ import annotations

from scripts.benchmarks.contender_run import ContenderRun
from scripts.benchmarks.model import Contender, Measure, Scenario

CONTENDERS = "scripts.benchmarks.contenders."
KEYS = 1_000_000


def measure_run(run: ContenderRun) -> dict[str, float]:
    """Write everything, then let the reader join.

    Raises:
        BenchmarkError: a role failed, or the reader's state is not right.
    """
    run.writer.send("go")
    run.wait_until_written()
    run.reader.send("go")
    read = run.wait_until_read()
    run.check_state()
    return {"seconds": (read["at"] - read["measures"]["began"]) / 1e9}


LOAD = Scenario(
    name="load",
    title="Joining late: everything into a dict",
    method="""\
N different keys are written before; no one writes while the reader joins. The clock runs from just
before the reader connects until it holds everything; seconds, less is better. Ours is then live,
and has checked that it missed no batch; a bare HSCAN mixes fields of different moments if someone
writes meanwhile. The reader's state is checked as above.""",
    headline=Measure("seconds", "seconds to join", "s", is_more_better=False, digits=2),
    quick_scale=0.1,
    # Both grids of shapes tell how long a late reader takes.
    is_quick=False,
    measure_run=measure_run,
    contenders=(
        Contender(
            name="statebroker-load",
            title="statebroker",
            module=CONTENDERS + "statebroker_load",
            updates=KEYS,
            keys=KEYS,
            services=("redis", "worker"),
            settings={"STATEBROKER_GLOBAL_DATA_UPDATE_INTERVAL": "1s"},
            needs=("redis",),
            how=(
                "The scheduler (interval 1 s, to shorten the run) has folded everything into the "
                "full state; then `Replica()` and `wait_live()`."
            ),
        ),
        Contender(
            name="hscan",
            title="bare HSCAN",
            module=CONTENDERS + "hscan",
            updates=KEYS,
            keys=KEYS,
            services=("redis",),
            needs=("redis", "hiredis"),
            how="redis-py with hiredis and RESP2; one hash, HSCAN with COUNT 10,000 into a dict.",
        ),
    ),
)
