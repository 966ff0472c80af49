"""The four shapes of scripts/bench: what is written, its tables, and the targets."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from itertools import count
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from rich.console import Console

from scripts.benchmarks import shapes
from scripts.benchmarks.archive import merged, read
from scripts.benchmarks.contenders import hset_batch, shape_hset_batch
from scripts.benchmarks.curve import CurveResult, Point
from scripts.benchmarks.curves.nodes import NODES
from scripts.benchmarks.curves.snapshot import SNAPSHOT
from scripts.benchmarks.docs_folder import as_text
from scripts.benchmarks.goals import GOALS, goals
from scripts.benchmarks.grid_tables import ratio, sheets
from scripts.benchmarks.grids import GRIDS
from scripts.benchmarks.grids.reads import READS
from scripts.benchmarks.grids.shapes import CHANGES, STATE
from scripts.benchmarks.link import RoleConfig
from scripts.benchmarks.measure import grids_of, planned_runs, planned_seconds, scenarios_of
from scripts.benchmarks.model import Contender, Result, Sample, Scenario
from scripts.benchmarks.options import parse
from scripts.benchmarks.page import page
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.report import Report, as_object
from scripts.benchmarks.rounds import run_rounds
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.scenarios.latency import AT_ONCE
from scripts.benchmarks.scenarios.numbers import NUMBERS
from scripts.benchmarks.shapes import FLOAT, NAMES, PASSES, SHAPES, Updates, final, shape_of
from scripts.benchmarks.table import print_report

WIDTH = 80
KEYS = 2_500
COSTS = {"float": 500.0, "position": 600.0, "record": 1_500.0, "text": 400.0}


def role(updates: int = 0, **details: object) -> RoleConfig:
    """Make the settings of a role."""
    return RoleConfig("", "", "", updates, KEYS, details)


def written(updates: Updates, config: RoleConfig) -> list[tuple[str, object]]:
    """Return everything that a writer would write."""
    return [pair for page_ in updates.pages(config) for pair in page_]


def state_result(rates: dict[str, tuple[float, ...]], scale: float = 1.0) -> Result:
    """Make a result of the first grid: peer -> its rate in each round, the same for all shapes."""
    samples = [
        Sample(
            f"{row}/{peer}",
            number,
            1_000,
            {
                "kilo_per_s": rate * scale,
                "cpu_ns.writer": COSTS[row] * scale,
                "cpu_ns.server": 100.0 * scale,
                "wire_bytes": 24.0 * scale,
                "delivered_k": 1.0 * scale,
            },
        )
        for row in NAMES
        for peer, found in rates.items()
        for number, rate in enumerate(found, start=1)
    ]
    return Result(STATE, tuple(samples), {})


def report_of(*grids: Result) -> Report:
    """Make a report of grids alone."""
    machine = {"processor": "some processor", "cores": "2"}
    return Report(machine, {"Python": "3.11.7"}, {"server": "redis", "seed": 1}, (), (), grids)


def whole_report() -> Report:
    """Make a report with a number for each measure of every part that a target needs."""
    parts = [
        Result(
            scenario,
            tuple(
                Sample(
                    contender.name,
                    1,
                    1_000_000,
                    {
                        "cpu_ns.writer": 1.0,
                        **{one.name: 1.0 for one in (scenario.headline, *scenario.also)},
                    },
                )
                for contender in scenario.contenders
            ),
            {},
        )
        for scenario in (STATE, CHANGES, READS, NUMBERS, AT_ONCE)
    ]
    curves = [
        CurveResult(
            curve,
            tuple(
                Point(line.name, x, 1, {one.name: 1.0 for one in curve.measures})
                for line in curve.lines
                for x in line.compared
            ),
        )
        for curve in (NODES, SNAPSHOT)
    ]
    return dataclasses.replace(report_of(*parts[:3]), results=parts[3:], curve_results=curves)


def without(report: Report, name: str) -> Report:
    """Return the report without one part."""
    return dataclasses.replace(
        report,
        grids=[one for one in report.grids if one.scenario.name != name],
        results=[one for one in report.results if one.scenario.name != name],
        curve_results=[one for one in report.curve_results if one.curve.name != name],
    )


def targets_of(report: Report) -> list[dict[str, Any]]:
    """Return the targets of the JSON object."""
    found: list[dict[str, Any]] = json.loads(as_text(report))["targets"]
    return found


def printed(report: Report) -> str:
    """Return what a terminal of 80 columns shows."""
    out = StringIO()
    print_report(report, Console(file=out, width=WIDTH))
    return out.getvalue()


def goal_row(report: Report, what: str) -> list[str]:
    """Return target, measured and verdict of one target."""
    sheet = goals(report)
    number = [what in one for one in sheet.rows].index(True)
    return [cells[number] for _, cells in sheet.columns]


@pytest.mark.parametrize("shape", NAMES)
def test_a_batch_by_hand_has_each_value_once_in_the_hash_and_once_in_the_message(
    shape: str,
) -> None:
    """Unpacked they are what was packed; floats are a column."""
    keys = [f"key/{number}" for number in range(7)]
    values = [shape_of(shape).value(number) for number in range(7)]
    is_float = shape == FLOAT
    module = hset_batch if is_float else shape_hset_batch
    fields, message = module.packed(keys, values)
    found = module.unpacked(message)
    assert (found[0], list(found[1])) == (keys, values)
    unpack = shape_hset_batch.number if is_float else msgpack.unpackb
    assert fields[::2] == keys
    assert [unpack(one) for one in fields[1::2]] == values
    assert sum(map(len, fields[1::2])) <= len(message) - sum(map(len, keys))


@pytest.mark.parametrize("count", [1, 999, KEYS, KEYS + 1, 3 * KEYS + 7, PASSES * KEYS + 1_001])
@pytest.mark.parametrize("shape", NAMES)
def test_the_right_state_is_the_last_value_of_each_key(shape: str, count: int) -> None:
    """Exactly as many updates as asked for; also when the values begin again."""
    updates = Updates(shape, KEYS)
    pairs = written(updates, role(count))
    assert len(pairs) == updates.written == count
    assert dict(pairs) == final(shape, KEYS, count)
    assert len({key for key, _ in pairs}) == min(count, KEYS)


@pytest.mark.parametrize("shape", NAMES)
def test_a_key_gets_another_value_each_time(shape: str) -> None:
    """So that a reader that missed its last update is found."""
    pairs = written(Updates(shape, KEYS), role(PASSES * KEYS))
    assert len({json.dumps(pair) for pair in pairs}) == PASSES * KEYS


def test_shapes_are_those_that_people_write() -> None:
    """A float, a dict of two floats, one of six fields with a short list, and 100 characters."""
    values = {shape.name: shape.value(123) for shape in SHAPES}
    assert type(values["float"]) is float
    assert set(values["position"]) == {"lat", "lon"}
    assert len(values["record"]) == 6
    assert [type(one) for one in values["record"].values()].count(list) == 1
    assert len(values["text"]) == 100


def test_a_writer_writes_for_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a page begins within the time, whatever the number of updates says."""
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 8)
    monkeypatch.setattr(shapes, "time", clock)
    updates = Updates("float", KEYS)
    pages = [list(page_) for page_ in updates.pages(role(1, seconds=2.5))]
    assert len(pages) == 19
    assert all(pages)
    assert updates.written == sum(map(len, pages)) > 1


def test_a_ratio_is_of_medians_and_within_a_row() -> None:
    """Not the median of the ratios of each round; less is better where the measure says so."""
    result = state_result({"statebroker": (10.0, 20.0, 90.0), "zeromq": (10.0, 5.0, 40.0)})
    assert ratio(result, "record", "zeromq") == 20.0 / 10.0
    assert ratio(result, "record", "nats-kv") is None
    cheaper = dataclasses.replace(STATE.headline, is_more_better=False)
    grid = dataclasses.replace(STATE, headline=cheaper)
    assert ratio(dataclasses.replace(result, scenario=grid), "text", "zeromq") == 10.0 / 20.0


def test_the_first_table_compares_each_shape_with_each_peer() -> None:
    """Rows in the order of the shapes, rounds that differ are marked, what is missing is "-"."""
    found = state_result({"statebroker": (1_337.0, 1_300.0), "zeromq": (10.0, 40.0)})
    samples = [one for one in found.samples if one.contender != "text/zeromq"]
    comparison, details = sheets(dataclasses.replace(found, samples=tuple(samples)))
    assert comparison.rows == ["float", "position", "record", "text"]
    columns = dict(comparison.columns)
    assert columns["statebroker"] == ["1,318"] * 4
    assert columns["zeromq"] == ["25.0! (53)"] * 3 + ["-"]
    assert details.rows[:3] == ["float/statebroker", "float/zeromq", "position/statebroker"]
    assert [details.rows[number] for number in details.stressed] == [
        f"{name}/statebroker" for name in NAMES
    ]
    assert dict(details.columns)["writer CPU"][details.rows.index("record/zeromq")] == "1,500"
    assert "joining late, ms" not in dict(details.columns)


@pytest.mark.parametrize("scale", [1, 1_000])
def test_tables_of_grids_fit_80_columns_and_cut_nothing(scale: float) -> None:
    """Nor do they take brackets for markup."""
    rates = {peer: (694.0 / number, 701.0) for number, peer in enumerate(STATE.peers, start=1)}
    reads = [
        Sample(one.name, 1, 9, {it.name: 1_234.5 * scale for it in (READS.headline, *READS.also)})
        for one in READS.contenders
    ]
    text = printed(report_of(state_result(rates, scale), Result(READS, tuple(reads), {})))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    assert "replica[key]" in text.partition("Targets")[0]
    assert "replica[key]/dict + unpackb" in text
    words = {word.strip("()!") for word in text.split()}
    assert {f"{value * scale:,.0f}" for value in COSTS.values()} <= words
    assert {f"{row}/{peer}" for row in NAMES for peer in STATE.peers} <= words


@pytest.mark.parametrize(
    ("rate", "shown", "verdict"), [(250.0, "2.50", "reached"), (249.0, "2.49", "missed")]
)
def test_a_target_is_reached_if_each_shape_reaches_it(
    rate: float, shown: str, verdict: str
) -> None:
    """Also exactly; a shape that was not measured leaves it open, and one that misses decides."""
    result = state_result({"statebroker": (rate,), "hset-batch": (100.0,)})
    expected = ["≥ 2.5", ", ".join([shown] * 4), verdict]
    assert goal_row(report_of(result), "state: over HSET+PUBLISH by hand") == expected
    samples = tuple(one for one in result.samples if not one.contender.startswith("text/"))
    partly = report_of(dataclasses.replace(result, samples=samples))
    found = goal_row(partly, "state: over HSET+PUBLISH by hand")
    assert found[1:] == [f"{', '.join([shown] * 3)}, -", {"reached": "-"}.get(verdict, verdict)]


def test_the_worst_set_is_over_that_of_a_float() -> None:
    """The writer's CPU alone."""
    report = report_of(state_result({"statebroker": (1.0,)}))
    assert goal_row(report, "CPU of a set") == ["≤ 2", "3.00", "missed"]


@pytest.mark.parametrize(
    ("keys", "memory"), [(1_000_000, ["0.66", "missed"]), (999_999, ["-", "-"])]
)
def test_reads_and_memory_have_targets(keys: int, memory: list[str]) -> None:
    """Of the two fields, not of any other shape; memory of a million keys, not of fewer."""
    samples = tuple(
        Sample(f"{name}/statebroker", 1, keys, {"get_ratio": get, "memory_ratio": held})
        for name, get, held in (("float", 9.0, 9.0), ("position", 1.3, 0.66))
    )
    report = report_of(Result(READS, samples, {}))
    assert goal_row(report, "replica[key]") == ["≤ 1.3", "1.30", "reached"]
    assert goal_row(report, "memory") == ["≤ 0.65", *memory]


def test_without_numbers_no_target_is_reached_or_missed() -> None:
    """They are open."""
    sheet = goals(report_of())
    assert set(dict(sheet.columns)[""]) == {"-"}
    assert len(sheet.rows) == len(GOALS) == len(set(sheet.rows))


def test_the_page_begins_with_the_shapes_and_hides_no_fault() -> None:
    """The first table before every other, all of each shape in it; method, contenders, faults."""
    result = state_result({"statebroker": (500.0,), "zeromq": (100.0,)})
    faulty = Sample("text/zeromq", 2, 9, fault="8 of 9 updates arrived")
    text = page(report_of(dataclasses.replace(result, samples=(*result.samples, faulty))))
    first = next(line for line in text.splitlines() if line.startswith("|"))
    assert first == (
        "| value/contender | thousand updates a second (x) | least to most | writer CPU "
        "| server CPU | published deltas, k | bytes to reader |"
    )
    assert "| **record/statebroker** | 500 | 500 to 500 | 1,500 | 100 | 1 | 24 |" in text
    assert "| record/zeromq | 100 (5.00) | 100 to 100 | 1,500 | 100 | 1 | 24 |" in text
    assert STATE.method in text
    assert "Round 2 of text/zeromq does not count:\n\n    8 of 9 updates arrived" in text
    assert "| state: over ZeroMQ | ≥ 2 | 5.00, 5.00, 5.00, 5.00 | reached |" in text


def test_the_log_of_a_reader_of_changes_holds_a_whole_run() -> None:
    """Else a reader that is late loads the full state, and does not get every change."""
    most_per_s = 400e6
    ours = [one for one in CHANGES.contenders if one.peer == "statebroker"]
    assert len(ours) == len(NAMES)
    for one in ours:
        assert float(one.settings["STATEBROKER_LOG_BYTES"]) > CHANGES.seconds * most_per_s
    assert not any(one.settings for one in STATE.contenders)


def test_a_slow_peer_runs_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first ones, beside ours; where fewer are asked for in those. The plan says so."""
    runs: list[tuple[int, str]] = []

    def run_nothing(
        _: Scenario, contender: Contender, number: int, *__: object, **___: object
    ) -> Sample:
        runs.append((number, contender.peer))
        return Sample(contender.name, number, 1, fault="not measured")

    monkeypatch.setattr("scripts.benchmarks.rounds._run_once", run_nothing)
    peers = [one for one in STATE.contenders if one.row == FLOAT]
    able = tuple(dataclasses.replace(one, needs=()) for one in peers)
    grid = dataclasses.replace(STATE, contenders=able)
    for rounds in (3, 1):
        runs.clear()
        run_rounds(
            grid,
            only=(),
            rounds=rounds,
            updates=1,
            server="redis",
            seed=1,
            scale=1.0,
            progress=Progress(),
        )
        slow = {(number, peer) for number in (1, 2) for peer in ("hset-each", "nats-kv")}
        fast = {
            (number, peer)
            for number in (1, 2, 3)
            for peer in ("statebroker", "statebroker-plain", "hset-batch", "zeromq")
        }
        assert set(runs) == {one for one in slow | fast if one[0] <= rounds}
        assert len(runs) == len(set(runs))
    found = [one.rounds_of(3) for one in peers]
    assert sum(found) == 16
    whole = parse([word for one in peers for word in ("--only", one.name)] + ["--only", "shapes"])
    assert planned_seconds(whole) == 160.0


def test_targets_are_in_the_json_object() -> None:
    """Each with its bound, every number, and whether it was reached; null where not measured."""
    result = state_result({"statebroker": (260.0,), "hset-batch": (100.0,)})
    found = {one["what"]: one for one in targets_of(report_of(result))}
    assert found["state: over HSET+PUBLISH by hand"] == {
        "what": "state: over HSET+PUBLISH by hand",
        "sign": "≥",
        "bound": 2.5,
        "measured": [2.6] * 4,
        "verdict": "reached",
    }
    assert found["count 1, p50/bare HSET+PUBLISH"]["measured"] == [None]
    assert len(found) == len(GOALS)


def test_one_name_selects_all_that_targets_need() -> None:
    """With it every target has its numbers; none of the parts is measured for nothing."""
    parts = parse(["--only", "targets"]).only
    whole = whole_report()
    assert {one["verdict"] for one in targets_of(whole)} <= {"reached", "missed"}
    names = {
        *(one.scenario.name for one in (*whole.grids, *whole.results)),
        *(one.curve.name for one in whole.curve_results),
    }
    assert sorted(parts) == sorted(names)
    for name in names:
        open_ = [one for one in targets_of(without(whole, name)) if one["verdict"] == "-"]
        assert open_, name


def test_numbers_of_grids_stay_until_they_are_measured_anew() -> None:
    """Written as JSON and read again; another part that is measured keeps them."""
    report = report_of(state_result({"statebroker": (500.0,)}))
    before = json.loads(json.dumps(as_object(report)))
    assert read(before, SCENARIOS, (), GRIDS).grids == list(report.grids)
    newer = report_of(Result(CHANGES, (), {}))
    assert [one.scenario.name for one in merged(newer, before, SCENARIOS, (), GRIDS).grids] == [
        "shapes",
        "changes",
    ]
    faulty = report_of(Result(STATE, (Sample("text/zeromq", 1, 9, fault="lost"),), {}))
    assert as_object(faulty)["valid"] is False


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ([], ["shapes", "changes", "reads"]),
        (["reads"], ["reads"]),
        (["float/zeromq"], ["shapes", "changes"]),
        (["changes", "float/zeromq"], ["changes"]),
        (["reads", "float/zeromq"], []),
        (["throughput"], []),
        (["curve-nodes"], []),
    ],
)
def test_only_selects_grids_and_their_contenders(only: list[str], left: list[str]) -> None:
    """As it does scenarios; a grid's name selects no scenario."""
    assert [one.name for one in grids_of(only)] == left
    if left and only:
        assert scenarios_of(only) == []


def test_each_shape_is_measured_for_each_peer() -> None:
    """Ours first; long enough, or shorter where the run is quick."""
    for grid in GRIDS:
        names = [one.name for one in grid.contenders]
        assert len(names) == len(set(names)) == len(grid.row_titles) * len(grid.peers)
        assert list(grid.row_titles) == list(NAMES)
        assert grid.peers[0] == "statebroker"
    assert STATE.seconds == CHANGES.seconds >= 10
    whole = parse(["--only", "float/statebroker", "--only", "shapes"])
    quick = parse(["--only", "float/statebroker", "--only", "shapes", "--quick"])
    assert (planned_runs(whole), planned_seconds(whole)) == (3, 30.0)
    assert (planned_runs(quick), planned_seconds(quick)) == (1, 0.5)
