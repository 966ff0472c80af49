"""`scripts/faults`: a short chaos run with a fresh seed, and what surrounds it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.faults.history import History
from broker.faults.records import Applied, Content, Logged
from broker.faults.validators import VALIDATORS
from scripts.chaos.faults import FAULTS
from scripts.chaos.plan import plan
from scripts.chaos.run import arguments
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-m", "scripts.chaos.run"]
SHORT = 0.2  # minutes
MOST_SECONDS = 100
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*options: str) -> tuple[int, dict[str, Any]]:
    """Run it to its end; return exit status and report."""
    done = subprocess.run(
        [*COMMAND, "--json", *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@pytest.mark.skipif(
    "STATEBROKER_LONG_TESTS" not in os.environ,
    reason="a random chaos run; set STATEBROKER_LONG_TESTS=1",
)
def test_short_run_keeps_every_promise() -> None:
    """Whatever the seed: some seconds of faults, and no violation."""
    seed = random.randrange(10**6)
    status, report = run("--minutes", str(SHORT), "--seed", str(seed))
    assert (report["violations"], report["verdict"], status) == ([], "good", 0), f"seed {seed}"
    assert report["seed"] == seed
    assert report["deltas_accepted"] > 0
    assert report["contents_compared"] > 0
    assert sum(report["faults"].values()) == len(plan(seed, SHORT * 60, list(FAULTS)))


def test_only_one_fault() -> None:
    """`--only` makes that fault and no other."""
    status, report = run("--minutes", "0.1", "--seed", "1", "--only", "reset")
    assert (report["violations"], status) == ([], 0)
    assert set(report["faults"]) == {"reset"}
    assert report["proxy"]["reset"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop every process of the run."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, "--minutes", "5", "--keep", str(folder)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        eventually(lambda: list(folder.glob("replica-*.journal")), 30, "the fleet runs")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (130, 143), output
    eventually(lambda: not left_over(folder), 10, lambda: f"processes end: {left_over(folder)}")


def left_over(folder: Path) -> list[str]:
    """Return the command lines of processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_plan_is_a_function_of_the_seed() -> None:
    """The same seed makes the same faults at the same times; each kind comes before any again."""
    names = list(FAULTS)
    steps = plan(7, 600, names)
    assert steps == plan(7, 600, names)
    assert steps != plan(8, 600, names)
    assert {step.fault for step in steps[: len(names)]} == set(names)


def test_history_of_a_run_can_be_judged_again(tmp_path: Path) -> None:
    """`--keep` leaves histories that the validators read, and that show what was recorded."""
    from broker.faults import read_journal  # noqa: PLC0415 - only this test reads files

    folder = tmp_path / "run"
    status, _ = run("--minutes", "0.1", "--seed", "2", "--only", "cut", "--keep", str(folder))
    files = sorted(folder.glob("*.journal"))
    history = History(record for file in files for record in read_journal(file))
    assert status == 0
    assert [validate(history) for validate in VALIDATORS.values()] == [[]] * len(VALIDATORS)
    assert all(history.of(kind) for kind in (Applied, Content, Logged))


def test_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault that does not exist is named, with those that do."""
    with pytest.raises(SystemExit):
        arguments(["--only", "earthquake"])
    told = capsys.readouterr().err
    assert "earthquake" in told
    assert "flush_all" in told
