"""The grids of `scripts/bench` with real servers and few updates: each cell is right, or none."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from scripts.benchmarks.grids import GRIDS
from scripts.benchmarks.grids.reads import READS
from scripts.benchmarks.grids.shapes import CHANGES, STATE
from scripts.benchmarks.model import Contender, Grid, Result
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.rounds import run_rounds, skip_reason
from tests.processes.lossy_shape import (
    GOOD,
    HOLDS_AN_OLD_VALUE,
    JOINS_WITHOUT_A_KEY,
    MISSES_AN_UPDATE,
)

LOSSY = Contender(
    *("record/lossy", "lossy", "tests.processes.lossy_shape", 1, (), (), "badly"),
    details={"shape": "record"},
    row="record",
    peer="lossy",
)
# Fewer than keys: each value is the last one of its key, so the check of the state sees them all.
# Of the last batch by hand, of 200, a part is left.
UPDATES = 3_050

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="scripts/bench needs Linux"),
    pytest.mark.usefixtures("from_here"),
]


def run(grid: Grid, *only: str, updates: int | None = UPDATES, scale: float = 1.0) -> Result:
    """Run one round of these."""
    return run_rounds(
        grid,
        only=only,
        rounds=1,
        updates=updates,
        server="valkey",
        seed=1,
        scale=scale,
        progress=Progress(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS, ids=[grid.name for grid in GRIDS])
def test_every_cell_gives_what_its_table_shows(grid: Grid) -> None:
    """Every single value arrived, and was unpacked; the number of updates is that."""
    result = run(grid)
    assert [one.fault for one in result.faults] == []
    able = [one.name for one in grid.contenders if not skip_reason(one)]
    assert {one.contender for one in result.samples} == set(able)
    given = {name for one in result.samples for name in one.measures}
    assert {one.name for one in (grid.headline, *grid.also)} <= given
    assert all(UPDATES < one.keys for one in grid.contenders)
    for sample in result.samples:
        assert sample.updates == UPDATES
        assert all(value > 0 for value in sample.measures.values())
        assert sample.measures.get("delivered_k", UPDATES / 1e3) == UPDATES / 1e3


@pytest.mark.slow
@pytest.mark.parametrize("grid", [STATE, CHANGES], ids=[STATE.name, CHANGES.name])
def test_a_writer_of_a_grid_writes_for_its_time(grid: Grid) -> None:
    """Its number of updates is known only then, and is that of the sample."""
    (sample,) = run(grid, "position/statebroker", updates=None, scale=0.05).samples
    assert not sample.fault
    assert sample.measures["seconds"] >= 0.5
    assert sample.updates == pytest.approx(1_000 * sample.measures["delivered_k"])
    assert sample.updates > 1


def test_a_replica_is_read_and_weighed_beside_a_dict() -> None:
    """Every read takes time, and both hold something."""
    (sample,) = run(READS, "position/statebroker").samples
    assert not sample.fault
    measures = sample.measures
    assert measures["get_ratio"] == measures["get_ns"] / measures["plain_get_ns"] > 0
    assert measures["dict_bytes"] > 100
    assert measures["memory_ratio"] == measures["replica_bytes"] / measures["dict_bytes"]


@pytest.mark.parametrize(
    ("updates", "fault"),
    [
        (GOOD, ""),
        (MISSES_AN_UPDATE, f"{MISSES_AN_UPDATE - 1} of {MISSES_AN_UPDATE} updates arrived"),
        (HOLDS_AN_OLD_VALUE, "the reader's state is wrong: 0 keys missing, 1 wrong, 0 foreign"),
        (JOINS_WITHOUT_A_KEY, "a reader that joined late holds another state"),
    ],
)
def test_a_cell_that_went_wrong_gives_no_number(updates: int, fault: str) -> None:
    """An update that did not arrive counts, even if the state is right in the end."""
    grid = dataclasses.replace(STATE, contenders=(LOSSY,))
    (sample,) = run(grid, updates=updates).samples
    assert sample.fault == fault
    assert bool(sample.measures) is not bool(fault)
    if not fault:
        assert (sample.updates, sample.measures["wire_bytes"]) == (GOOD, 7)
