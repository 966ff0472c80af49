"""What scripts/bench makes of its runs: medians, ratios, and a page that hides nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest

from scripts.benchmarks.measure import scenarios_of
from scripts.benchmarks.model import Provenance, Result, Sample
from scripts.benchmarks.options import parse
from scripts.benchmarks.pace import paced, quantile
from scripts.benchmarks.page import page
from scripts.benchmarks.report import Report, as_object, rows
from scripts.benchmarks.rounds import order_of, skip_reason
from scripts.benchmarks.scenarios import SCENARIOS
from scripts.benchmarks.scenarios.latency import AT_ONCE
from scripts.benchmarks.scenarios.throughput import THROUGHPUT
from scripts.benchmarks.stats import Summary, advantage, summary
from scripts.benchmarks.workload import difference, final_state, workload

KEYS = 1_000
FAULT = "the reader's state is wrong: 1 keys missing"


def sample(contender: str, number: int, rate: float, cpu: float = 10.0) -> Sample:
    """Make a run that counts, with the CPU of two roles."""
    measures = {"updates_per_s": rate, "cpu_ns.writer": cpu, "cpu_ns.server": 2 * cpu}
    return Sample(contender, number, 1000, measures)


RESULT = Result(
    THROUGHPUT,
    (
        sample("zeromq", 1, 100.0, 20.0),
        sample("statebroker", 1, 200.0),
        sample("statebroker", 2, 900.0),
        sample("zeromq", 2, 300.0, 20.0),
        Sample("zeromq", 3, 1000, fault=FAULT),
        sample("statebroker", 3, 300.0),
    ),
    {"nats-kv": "not installed here: nats"},
    Provenance("2026-11-22 12:00 UTC", "abc1234", 0.5, 3, 12.0),
)
REPORT = Report(
    machine={"processor": "some processor", "cores": "2"},
    versions={"Python": "3.11.7"},
    options={"server": "redis", "seed": 1},
    results=[RESULT],
)


def test_a_summary_tells_median_and_spread() -> None:
    """The median is not the mean, and nothing is no number."""
    assert summary([100.0, 1.0, 3.0]) == Summary(3.0, 1.0, 100.0, 3)
    assert summary([4.0, 2.0]) == Summary(3.0, 2.0, 4.0, 2)
    assert summary([]) is None


@pytest.mark.parametrize(("high", "noisy"), [(150.0, False), (151.0, True)])
def test_rounds_that_differ_by_more_than_half_are_marked(high: float, *, noisy: bool) -> None:
    """The median of such rounds is not reliable."""
    assert Summary(100.0, 100.0, high, 3).is_noisy is noisy


def test_a_ratio_is_made_of_runs_of_the_same_round() -> None:
    """The median of ratios, not the ratio of medians; what only one side has is left out."""
    ours, theirs = {1: 10.0, 2: 100.0, 3: 30.0, 4: 1.0}, {1: 5.0, 2: 100.0, 3: 10.0}
    assert advantage(ours, theirs, is_more_better=True) == Summary(2.0, 1.0, 3.0, 3)
    assert advantage(theirs, ours, is_more_better=False) == Summary(2.0, 1.0, 3.0, 3)
    assert advantage(ours, {5: 1.0}, is_more_better=True) is None


def test_rows_are_sorted_and_compare_with_ours() -> None:
    """The best first; ratios over the rounds that count on both sides; CPU of all roles added."""
    ours, zeromq = rows(RESULT)
    assert (ours.contender.name, ours.headline.median) == ("statebroker", 300.0)
    assert (ours.ratio, ours.cpu_ratio) == (None, None)
    assert zeromq.headline == Summary(200.0, 100.0, 300.0, 2)
    assert zeromq.ratio == Summary(2.5, 2.0, 3.0, 2)
    assert zeromq.cpu == Summary(60.0, 60.0, 60.0, 2)
    assert zeromq.cpu_ratio == Summary(2.0, 2.0, 2.0, 2)
    assert zeromq.roles == {"writer": 20.0, "server": 40.0}


def test_the_page_shows_every_run_and_what_does_not_count() -> None:
    """Raw numbers, faults, what was skipped and why, the machine, and the versions."""
    text = page(REPORT)
    assert "| statebroker | 1,000 | 200 | 900 | 300 |" in text
    assert "| bare ZeroMQ PUB/SUB | 1,000 | 100 | 300 | does not count |" in text
    assert f"Round 3 of zeromq does not count:\n\n    {FAULT}" in text
    assert "NATS JetStream KV was skipped: not installed here: nats" in text
    assert "2.50 x (2.00 to 3.00)" in text
    for words in ("some processor", "Python 3.11.7", "12:00 UTC at abc1234: 3 rounds", "2 cores"):
        assert words in text
    assert all(one.how in text for one in THROUGHPUT.contenders)


def test_the_json_object_holds_every_run() -> None:
    """It can be serialized, has faults and ratios, and is valid only without a fault."""
    reported = json.loads(json.dumps(as_object(REPORT)))
    throughput = reported["scenarios"]["throughput"]
    assert reported["valid"] is False
    assert len(throughput["samples"]) == len(RESULT.samples)
    assert throughput["samples"][4]["fault"] == FAULT
    assert throughput["contenders"]["zeromq"]["ratio"]["median"] == 2.5
    good = dataclasses.replace(RESULT, samples=RESULT.samples[:4])
    assert as_object(dataclasses.replace(REPORT, results=[good]))["valid"] is True


def test_each_round_has_an_order_of_its_own() -> None:
    """A function of the seed; all play once; the first is not always the same."""
    names = [one.name for one in THROUGHPUT.contenders]
    orders = [order_of(names, number, 1) for number in range(1, 6)]
    assert orders == [order_of(names, number, 1) for number in range(1, 6)]
    assert orders != [order_of(names, number, 2) for number in range(1, 6)]
    assert len({order[0] for order in orders}) > 1
    assert all(sorted(order) == sorted(names) for order in orders)


@pytest.mark.parametrize("updates", [1, 7, KEYS, KEYS + 1, 3 * KEYS])
def test_the_right_state_is_the_last_value_of_each_key(updates: int) -> None:
    """Every key once before any twice, so that the number of keys is known."""
    right = final_state(updates, KEYS)
    assert len(right) == min(updates, KEYS)
    keys, values = workload(updates, KEYS)
    assert right[keys[-1]] == values[-1]
    assert difference(dict(right), updates, KEYS) == ""


def test_a_state_that_is_wrong_is_reported() -> None:
    """A key that is missing, one too many, and a value that is old."""
    state = final_state(KEYS + 1, KEYS)
    del state["vehicle/00001"]
    state["vehicle/00000"] = 0.0
    state["other"] = 1.0
    assert difference(state, KEYS + 1, KEYS).endswith("1 keys missing, 1 wrong, 1 foreign")


def test_who_is_not_installed_is_skipped_with_the_fix() -> None:
    """The modules are named."""
    ours = THROUGHPUT.contenders[0]
    assert skip_reason(ours) == ""
    reported = skip_reason(dataclasses.replace(ours, needs=("redis", "no_such_module")))
    assert reported == "not installed here: no_such_module; pip install 'statebroker[bench]'"


def test_without_docs_no_folder_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Only --docs names the folder, whatever the other options; --redraw needs it."""
    for words in ([], ["--quick"], ["--only", "zeromq"], ["--json"]):
        assert parse(words).docs is None
    assert parse(["--quick", "--docs", "here"]).docs == Path("here")
    with pytest.raises(SystemExit):
        parse(["--redraw"])
    assert "--redraw needs --docs FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["--only", "carrier-pigeon"], "xadd-xread"),
        (["--rounds", "0"], "0 is not from 1 to 100"),
        (["--updates", "many"], "invalid number value: 'many'"),
        (["--scale", "0"], "0 is not above 0, up to 1"),
    ],
)
def test_what_cannot_be_run_is_refused(
    words: list[str], reported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what can."""
    with pytest.raises(SystemExit):
        parse(words)
    assert reported in capsys.readouterr().err


def test_scenarios_name_each_contender_once_and_ours_first() -> None:
    """Names are for the command line."""
    for scenario in SCENARIOS:
        names = [one.name for one in scenario.contenders]
        assert len(set(names)) == len(names)
        assert scenario.ours.startswith("statebroker")


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ([], ["throughput", "numbers", "latency", "latency-age", "load", "limit"]),
        (["zeromq"], ["throughput"]),
        (["latency"], ["latency"]),
        (["latency", "zeromq"], []),
        (["curve-chunk"], []),
        (["statebroker", "publish-paced"], ["throughput", "latency"]),
    ],
)
def test_only_leaves_the_scenarios_that_have_something_to_play(
    only: list[str], left: list[str]
) -> None:
    """Names of scenarios and of contenders narrow each other."""
    assert [one.name for one in scenarios_of(only)] == left


@pytest.mark.parametrize(("part", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_a_share_is_a_value_that_was_there(part: float, value: float) -> None:
    """So much of all is not above it; of one value it is that value."""
    assert quantile([float(number) for number in range(100, 0, -1)], part) == value
    assert quantile([7.0], part) == 7.0


def test_a_paced_writer_keeps_the_rate_and_loses_nothing() -> None:
    """Every item in order, none before its time."""
    began = time.monotonic()
    times = {item: time.monotonic() - began for item in paced(iter(range(200)), 2_000)}
    assert list(times) == list(range(200))
    assert all(at >= item / 2_000 for item, at in times.items())


def test_less_is_better_where_the_measure_says_so() -> None:
    """Latency: half as long is twice as good, listed first, with the digits that it has.

    What these runs did not measure yet is no number.
    """
    latencies = {"statebroker-count-1": 0.25, "publish-paced": 0.125}
    samples = tuple(
        Sample(name, 1, 9, {"p50_ms": value, "p99_ms": 3 * value})
        for name, value in latencies.items()
    )
    result = Result(AT_ONCE, samples, {})
    peer, ours = rows(result)
    assert (peer.contender.name, peer.also) == ("publish-paced", {"p99_ms": 0.375})
    assert (ours.ratio, peer.ratio) == (None, Summary(0.5, 0.5, 0.5, 1))
    text = page(dataclasses.replace(REPORT, results=[result]))
    assert "| **statebroker, count 1** | 0.25 | 0.25 to 0.25 | 0.75 | - | - |" in text
