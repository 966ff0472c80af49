"""What scripts/bench makes of the points of its cost curves, and of numbers from before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import docs_folder
from scripts.benchmarks.archive import merged
from scripts.benchmarks.curve import Curve, CurveResult, Line, Panel, Point, PointSpec
from scripts.benchmarks.curves import CURVES
from scripts.benchmarks.measure import curves_of, extent_of, planned_runs
from scripts.benchmarks.model import BenchmarkError, Measure, Provenance, Result, Sample
from scripts.benchmarks.options import parse
from scripts.benchmarks.page import page
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.report import Report, as_object
from scripts.benchmarks.run import main
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.stats import Summary
from scripts.benchmarks.sweep import Extent, sweep
from scripts.benchmarks.targets import target_lines
from scripts.benchmarks.workload import digest, texts

RATE = Measure("rate", "per second", "1/s", is_more_better=True)
SHOWN = Measure("ms", "late, ms", "ms", is_more_better=False, digits=1)
PROVENANCE = Provenance("2026-11-22 12:00 UTC", "abc1234", 0.5, 1, 3.0)
LINES = (
    Line("a", "line a", (1, 10, 100), (1, 100), compared=(100,)),
    Line("b", "line b", (5,), ()),
)


def measure_point(spec: PointSpec) -> Mapping[str, float]:
    """Measure nothing, but fail at 10."""
    if spec.x == 10:
        raise BenchmarkError("too much\nof it")
    return {"rate": spec.x * 2, "ms": 0.25, "size": 1000 - spec.x}


CURVE = Curve(
    name="curve-test",
    title="Something against something",
    method="How it is done.",
    axis=Measure("x", "things", "", is_more_better=True),
    lines=LINES,
    panels=(Panel("rate", (RATE,)), Panel("more", (RATE, SHOWN))),
    measure_point=measure_point,
)


def curve_result(
    curve: Curve = CURVE, *, rounds: int = 1, compared_rounds: int = 0, extent: Extent = "all"
) -> CurveResult:
    """Sweep over the curve above."""
    swept = sweep(
        curve,
        rounds=rounds,
        compared_rounds=compared_rounds,
        extent=extent,
        scale=1.0,
        server="redis",
        seed=1,
        progress=Progress(),
    )
    return dataclasses.replace(swept, provenance=PROVENANCE)


def run(*curve_results: CurveResult, results: tuple[Result, ...] = ()) -> Report:
    """Make a run of these."""
    return Report({"cores": "2"}, {"Python": "3.11.7"}, {"seed": 1}, results, curve_results)


def test_every_point_of_every_line_is_measured_in_each_round() -> None:
    """A quick run takes its part; what fails is a fault and no number."""
    swept = curve_result(rounds=2)
    assert swept.xs("a") == [1, 10, 100]
    assert swept.xs("b") == [5]
    assert [point.round for point in swept.points] == [1] * 4 + [2] * 4
    assert swept.at("a", 100, "rate") == Summary(200.0, 200.0, 200.0, 2)
    assert swept.at("a", 10, "rate") is None
    assert [(point.x, point.fault) for point in swept.faults] == [(10, "too much\nof it")] * 2
    assert curve_result(extent="quick").xs("a") == [1, 100]
    assert curve_result(extent="quick").xs("b") == []


def test_what_a_target_compares_is_measured_more_often() -> None:
    """By turns: once in each round. Never less often than the other points."""
    swept = curve_result(compared_rounds=3)
    assert [(one.round, one.x) for one in swept.points if one.round > 1] == [(2, 100), (3, 100)]
    assert swept.at("a", 100, "rate") == Summary(200.0, 200.0, 200.0, 3)
    assert swept.at("b", 5, "rate") == Summary(10.0, 10.0, 10.0, 1)
    rounds = [one.round for one in curve_result(rounds=2, compared_rounds=1).points]
    assert rounds == [1] * 4 + [2] * 4
    only = curve_result(extent="compared")
    assert [(one.line, one.x) for one in only.points] == [("a", 100)]


def test_points_are_drawn_over_what_was_measured_if_the_curve_says_so() -> None:
    """In ascending order of that; what does not count is not drawn."""
    assert curve_result().drawn("a", "rate") == ([1, 100], [2, 200])
    over = curve_result(dataclasses.replace(CURVE, over="size"))
    assert over.drawn("a", "rate") == ([900, 999], [200, 2])


def test_the_page_shows_every_point_and_what_does_not_count() -> None:
    """A table for each line, the picture, the method, and when it was made."""
    text = page(run(curve_result()))
    assert "| line a: things | per second | late, ms |" in text
    assert "| 100 | 200 | 0.2 |" in text
    assert "| 10 | - | - |" in text
    assert "At 10 (a, round 1) it does not count:\n\n    too much\n    of it" in text
    assert "![Something against something](curve-test.svg)" in text
    assert "How it is done." in text
    assert "Measured 2026-11-22 12:00 UTC at abc1234: one round in 3 s" in text
    assert "| 100 | 200 (200 to 200) |" in page(run(curve_result(rounds=2)))


def test_a_run_with_a_point_that_does_not_count_is_not_good() -> None:
    """As with the rounds of contenders."""
    assert as_object(run(curve_result()))["valid"] is False
    assert as_object(run(curve_result(extent="quick")))["valid"] is True


def before(**changes: Any) -> dict[str, Any]:
    """Return what an earlier run wrote: a scenario, and two curves, one of which is no more."""
    sample = Sample("zeromq", 1, 1000, {"updates_per_s": 5.0})
    result = Result(SCENARIOS[0], (sample,), {"nats-kv": "not here"}, PROVENANCE)
    old = curve_result(dataclasses.replace(CURVE, name="curve-gone"))
    written: dict[str, Any] = json.loads(
        json.dumps(as_object(run(old, curve_result(), results=(result,))))
    )
    return written | changes


def test_what_is_not_made_anew_stays_with_its_own_date() -> None:
    """New curves replace old ones; curves that no longer exist are removed."""
    other = dataclasses.replace(CURVE, name="curve-other")
    now = run(curve_result(other))
    whole = merged(now, before(), SCENARIOS, (other, CURVE))
    assert [one.curve.name for one in whole.curve_results] == ["curve-other", "curve-test"]
    assert whole.curve_results[1] == curve_result()
    assert whole.results[0].of("zeromq", "updates_per_s") == {1: 5.0}
    assert (whole.results[0].provenance, whole.results[0].skipped) == (
        PROVENANCE,
        {"nats-kv": "not here"},
    )
    anew = dataclasses.replace(curve_result(), provenance=Provenance("later"))
    assert merged(run(anew), before(), SCENARIOS, (CURVE,)).curve_results == [anew]


def test_numbers_that_were_written_give_the_same_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--redraw measures nothing; without numbers it is an error that says so."""
    (real,) = curves_of(["curve-state"])
    points = tuple(Point("floats", x, 1, {"updates_per_s": x}) for x in (1_000, 10_000))
    docs_folder.write(run(CurveResult(real, points, PROVENANCE)), tmp_path)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for file in tmp_path.glob("*[!n]"):
        file.unlink()
    assert main(["--redraw", "--docs", str(tmp_path)]) == 0
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first
    assert "curve-state.svg" in first or "matplotlib" in capsys.readouterr().err
    assert main(["--redraw", "--docs", str(tmp_path / "none")]) == 2


def test_what_cannot_join_earlier_numbers_is_refused_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A measurement of many minutes is not thrown away."""

    def measure_nothing(*_: object) -> Report:
        pytest.fail("measured, although the numbers cannot be kept")

    monkeypatch.setattr("scripts.benchmarks.run.measure", measure_nothing)
    (tmp_path / "numbers.json").write_text(json.dumps(before()))
    assert main(["--only", "curve-state", "--docs", str(tmp_path)]) == 2
    assert "were measured with another" in capsys.readouterr().err


def test_numbers_of_different_machines_do_not_get_onto_one_page() -> None:
    """Nor do those of different versions; the error names the difference."""
    versions = {"Python": "3.11.7", "hiredis": "3"}
    for changes, reported in (
        ({"machine": {"cores": "4"}}, "cores"),
        ({"versions": versions}, "hire"),
    ):
        with pytest.raises(BenchmarkError, match=reported):
            merged(run(), before(**changes), SCENARIOS, ())


def test_curves_have_names_of_their_own_and_quick_points_among_all() -> None:
    """Names are for the command line, measures for the page."""
    names = [curve.name for curve in CURVES]
    assert len(set(names)) == len(names)
    for curve in CURVES:
        assert curve.name.startswith("curve-")
        assert any(line.quick_xs for line in curve.lines)
        assert all(set(line.compared) <= set(line.quick_xs) <= set(line.xs) for line in curve.lines)
        labels = [one.name for one in curve.measures]
        assert len(set(labels)) == len(labels)


def test_only_names_curves_too() -> None:
    """`--only` accepts names of curves; the name of a scenario selects no curve."""
    assert curves_of([]) == list(CURVES)
    assert curves_of(["load"]) == []
    assert [curve.name for curve in curves_of(["load", "curve-chunk"])] == ["curve-chunk"]


def test_a_quick_run_measures_the_points_that_targets_compare() -> None:
    """All those of a quick run where it names the curve; in a whole run these more often."""
    quick = curves_of([], is_quick=True)
    assert [curve.name for curve in quick] == ["curve-nodes", "curve-snapshot"]
    assert all(len([1 for line in curve.lines if line.compared]) == 2 for curve in quick)
    named = ["--only", "curve-snapshot"]
    assert planned_runs(parse([*named, "--quick"])) == 3
    assert extent_of(parse([*named, "--quick"])) == "quick"
    assert extent_of(parse(["--quick"])) == "compared"
    assert extent_of(parse(named)) == "all"
    assert planned_runs(parse(named)) == 6 + 2 * 2
    assert planned_runs(parse([*named, "--rounds", "2"])) == 6 * 2


def test_equal_states_have_equal_digests_in_whatever_order() -> None:
    """Another value, or type, is another digest."""
    assert digest({"a": 1, "b": "x"}) == digest({"b": "x", "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})


def test_texts_have_their_size_and_differ() -> None:
    """So that a replica that missed one is found."""
    keys, values = texts(20, 10, 8)
    assert {len(value) for value in values} == {8}
    assert len(set(values)) == 20
    assert len(set(keys)) == 10


def measured(curve: str, points: dict[tuple[str, float], dict[str, float]]) -> CurveResult:
    """Make a curve_result of a real curve with these points."""
    (found,) = curves_of([curve])
    made = tuple(Point(line, x, 1, numbers) for (line, x), numbers in points.items())
    return CurveResult(found, made, PROVENANCE)


def row(report: Report, what: str) -> list[str]:
    """Return the cells of one row of the table of targets."""
    (line,) = [line for line in target_lines(report) if line.startswith("|") and what in line]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("share", "reported"),
    [(25.0, ["≤ 25 %", "25.0 %", "reached"]), (25.1, ["≤ 25 %", "25.1 %", "**missed** (1)"])],
)
def test_a_target_is_reached_at_its_bound_and_a_miss_is_explained(
    share: float, reported: list[str]
) -> None:
    """With the number that was measured."""
    measured_ = measured("curve-nodes", {("bare", 1_000): {"server_share": share}})
    assert row(run(measured_), "1,000 nodes") == reported
    notes = [line for line in target_lines(run(measured_)) if line.startswith("1. Evenly spread")]
    assert len(notes) == (share > 25)


def test_a_target_that_was_not_measured_is_neither_reached_nor_missed() -> None:
    """No number is made up for it."""
    assert all("| - | not measured |" in line for line in target_lines(run())[2:-1])


def test_missed_for_the_same_reason_is_explained_once() -> None:
    """The table points to the reasons below it."""
    rates = (("statebroker", 2.0), ("hset-publish", 1.0), ("zeromq", 1.0))
    samples = tuple(Sample(name, 1, 9, {"updates_per_s": rate}) for name, rate in rates)
    made = run(results=(Result(SCENARIOS[0], samples, {}, PROVENANCE),))
    assert row(made, "object plane against HSET")[1:] == ["2.0 x", "**missed** (1)"]
    assert row(made, "ZeroMQ")[1:] == ["2.0 x", "**missed** (1)"]
    assert [line[:2] for line in target_lines(made) if line[:1].isdigit()] == ["1."]


def test_targets_over_two_numbers_need_both() -> None:
    """Memory: a replica's over that of a dict; snapshots: one point over another, in percent."""
    held = {("replica", 1e6): {"held_mb": 130.0}}
    assert row(run(measured("curve-load", held)), "memory")[1] == "-"
    held[("dict", 1e6)] = {"held_mb": 100.0}
    assert row(run(measured("curve-load", held)), "memory")[1:] == ["1.30 x", "reached"]
    cpu = {("folded", 1.0): {"cpu_ms": 50.0}, ("folded", 100.0): {"cpu_ms": 2000.0}}
    assert row(run(measured("curve-snapshot", cpu)), "full state, 1 %")[1] == "2.50 %"


def test_ratios_of_throughput_and_medians_of_scenarios_reach_targets() -> None:
    """And a load of fewer keys than a million is not that of a million."""
    throughput, load = SCENARIOS[0], next(one for one in SCENARIOS if one.name == "load")
    rates = (("statebroker", 80.0), ("hset-publish", 2.0), ("zeromq", 8.0))
    samples = tuple(Sample(name, 1, 9, {"updates_per_s": rate}) for name, rate in rates)
    result = Result(throughput, samples, {}, PROVENANCE)
    assert row(run(results=(result,)), "object plane against HSET")[1:] == ["40.0 x", "reached"]
    assert row(run(results=(result,)), "ZeroMQ")[1] == "10.0 x"
    for updates, reported in ((1_000_000, ["3.00 s", "1.50 x"]), (250_000, ["-", "-"])):
        loads = tuple(
            Sample(name, 1, updates, {"seconds": seconds})
            for name, seconds in (("statebroker-load", 3.0), ("hscan", 2.0))
        )
        loaded = run(results=(Result(load, loads, {}, PROVENANCE),))
        assert [row(loaded, "full load")[1], row(loaded, "bare HSCAN")[1]] == reported
