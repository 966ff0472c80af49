"""`scripts/faults`: single faults, and what surrounds a run; `.ci/run` makes all at random."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.testing.history import History
from broker.testing.records import Applied, Balanced, Content, Counted, Logged, Tallied
from broker.testing.validators import VALIDATORS
from broker.testing.waiting import eventually
from tests.chaos.deployment import KINDS, deployment
from tests.chaos.faults import faults_of
from tests.chaos.plan import plan
from tests.chaos.run import arguments

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-P", "-m", "tests.chaos.run"]
MAX_SECONDS = 100
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*options: str) -> tuple[int, dict[str, Any]]:
    """Run it to its end; return exit status and report."""
    done = subprocess.run(
        [*COMMAND, "--json", *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@pytest.mark.slow
def test_only_one_fault() -> None:
    """`--only` injects that fault alone, as the seed plans it; the report lists it."""
    status, report = run("--minutes", "0.1", "--seed", "1", "--only", "reset")
    assert (report["violations"], report["verdict"], status) == ([], "good", 0)
    assert report["faults"] == {"reset": len(plan(1, 6.0, ["reset"]))}
    assert report["faults_missing"] == []
    assert [row["fault"] for row in report["by_fault"]] == ["reset"]
    assert report["proxy"]["reset"] > 0
    assert report["seed"] == 1
    assert report["deltas_accepted"] > 0
    assert report["contents_compared"] > 0
    assert report["largest_lag_while_live_s"] <= report["staleness_bound_s"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["twin_node", "half_snapshot"])
def test_fault_that_needs_a_coincidence_has_an_effect(fault: str) -> None:
    """Two processes with one node name fence each other; a scheduler dies between two pages."""
    status, report = run("--minutes", "0.1", "--seed", "3", "--only", fault)
    assert (report["violations"], status) == ([], 0)
    assert report["faults_missing"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault"),
    [("cluster", "slot_move"), ("cluster", "fail_over"), ("sentinel", "unreplicated_kill")],
)
def test_servers_that_replace_each_other(kind: str, fault: str) -> None:
    """Moves and failovers in order of a Cluster lose nothing; what others lose is sent again."""
    status, report = run("--deployment", kind, "--minutes", "0.15", "--seed", "5", "--only", fault)
    assert (report["violations"], report["verdict"], status) == ([], "good", 0)
    assert report["faults_missing"] == []
    assert report["faults"][fault] > 0
    assert report["deltas_accepted"] > 0
    assert report["deltas_lost_reported"] == 0
    assert (report["rungs"].get("missing -> resend", 0) > 0) == (fault == "unreplicated_kill")


@pytest.mark.slow
def test_a_server_is_damaged() -> None:
    """`--damage` ends well, with a report in the form of the others."""
    status, report = run("--damage", "--minutes", "0.15", "--seed", "1")
    assert (report["violations"], report["verdict"], status) == ([], "good", 0)
    assert report["named"] + report["harmless"] > 0
    assert sum(report["damages"].values()) >= report["named"] + report["harmless"]
    assert (report["seed"], report["left_out"]) == (1, {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_made_or_left_out_with_a_reason(kind: str, tmp_path: Path) -> None:
    """What several servers cannot have is named, and all of it is a fault that they lack."""
    left_out = deployment(kind, tmp_path, 1, None).left_out
    assert left_out.keys() <= faults_of(kind).keys()
    assert all(left_out.values())
    assert ("cut" in left_out) == (kind != "single")
    assert ("slot_move" in faults_of(kind).keys() - left_out.keys()) == (kind == "cluster")


@pytest.mark.slow
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


@pytest.mark.slow
def test_history_of_a_run_can_be_judged_again(tmp_path: Path) -> None:
    """`--keep` leaves histories that the validators read, and that show what was recorded."""
    from broker.testing import read_journal  # noqa: PLC0415 - only this test reads files

    folder = tmp_path / "run"
    status, _ = run("--minutes", "0.1", "--seed", "2", "--only", "cut", "--keep", str(folder))
    files = sorted(folder.glob("*.journal"))
    history = History(record for file in files for record in read_journal(file))
    assert status == 0
    assert [validate(history) for validate in VALIDATORS.values()] == [[]] * len(VALIDATORS)
    assert all(history.of(kind) for kind in (Applied, Balanced, Content, Counted, Logged, Tallied))


def test_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A fault that does not exist is named, with those that do."""
    with pytest.raises(SystemExit):
        arguments(["--only", "earthquake"])
    reported = capsys.readouterr().err
    assert "earthquake" in reported
    assert "flush_all" in reported


def test_fault_of_another_deployment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A single server has no slots to move: the error says so."""
    with pytest.raises(SystemExit):
        arguments(["--only", "slot_move"])
    assert "slot_move does not exist for --deployment single" in capsys.readouterr().err
    assert arguments(["--only", "slot_move", "--deployment", "cluster"]).only == ["slot_move"]
