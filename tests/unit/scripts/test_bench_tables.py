"""What scripts/bench prints: tables that fit a terminal of 80 columns and cut nothing off."""

from __future__ import annotations

import dataclasses
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from scripts.benchmarks.archive import read
from scripts.benchmarks.curves import CURVES
from scripts.benchmarks.model import Sample
from scripts.benchmarks.report import Report, rows
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.table import Column, print_report, tables

WIDTH = 80
NUMBERS = Path(__file__).parents[3] / "docs" / "benchmarks" / "numbers.json"


def committed() -> Report:
    """Return the committed report: every scenario and curve, with real numbers."""
    return read(json.loads(NUMBERS.read_text()), SCENARIOS, CURVES)


def printed(report: Report) -> str:
    """Return what a terminal of 80 columns shows."""
    out = StringIO()
    print_report(report, Console(file=out, width=WIDTH))
    return out.getvalue()


def enlarged(report: Report, factor: float) -> Report:
    """Return the report with every measure of scenarios multiplied."""
    results = [
        dataclasses.replace(
            result,
            samples=[
                Sample(
                    one.contender,
                    one.round,
                    one.updates,
                    {name: value * factor * one.round for name, value in one.measures.items()},
                    one.fault,
                )
                for one in result.samples
            ],
        )
        for result in report.results
    ]
    return dataclasses.replace(report, results=results)


@pytest.mark.parametrize("factor", [1, 1_000])
def test_tables_fit_80_columns_and_show_every_number(factor: float) -> None:
    """No line is longer, nothing is cut, and each median, spread and CPU time is there whole."""
    report = enlarged(committed(), factor)
    text = printed(report)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "…" not in text
    words = {word.strip("()") for word in text.split()}
    for result in report.results:
        headline = result.scenario.headline
        for row in rows(result):
            assert row.contender.name in words
            for value in (row.headline.median, row.headline.low, row.headline.high):
                assert headline.shown(value) in words
            assert {f"{value:,.0f}" for value in row.roles.values()} <= words
    for curve_result in report.curve_results:
        for point in curve_result.points:
            for measure in curve_result.curve.measures:
                found = curve_result.at(point.line, point.x, measure.name)
                assert found is None or measure.shown(found.median) in words


def test_names_are_explained_and_ratios_compare_with_ours() -> None:
    """A legend gives the title of each contender; the row of ours has no ratio."""
    text = printed(committed())
    for scenario in SCENARIOS:
        for contender in scenario.contenders:
            assert f"{contender.name} " in text
            assert contender.title in " ".join(text.split())
    assert "ours is: how many times better" in text


def test_quick_numbers_are_said_to_be_rough() -> None:
    """Only those of a quick run."""
    report = committed()
    quick = dataclasses.replace(report, options={**report.options, "quick": True})
    assert "--quick: rough numbers" in printed(quick)
    assert "--quick" not in printed(report)


def test_columns_that_do_not_fit_go_into_another_table() -> None:
    """Each begins with the first column; none is empty."""
    columns = [Column(str(number), ["x" * 30]) for number in range(5)]
    title, *parts = tables("title", Column("", ["name"]), columns, WIDTH)
    assert str(title) == "title"
    assert [len(one.columns) for one in parts if isinstance(one, Table)] == [3, 3, 2]
