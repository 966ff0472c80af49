"""`scripts/bench` with real servers and few updates: what it reports, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.cpu import cpu_ns
from scripts.benchmarks.model import Contender, Sample, Scenario
from scripts.benchmarks.progress import Progress
from scripts.benchmarks.rounds import run_rounds, skip_reason
from scripts.benchmarks.scenarios.latency import AT_ONCE, BY_AGE
from scripts.benchmarks.scenarios.limit import LIMIT
from scripts.benchmarks.scenarios.load import LOAD
from scripts.benchmarks.scenarios.throughput import THROUGHPUT
from scripts.benchmarks.stats import Summary
from scripts.benchmarks.table import times
from tests.processes.lossy_contender import CRASHES, GOOD, LOSES_A_KEY

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-P", "-m", "scripts.benchmarks.run"]
MAX_SECONDS = 100
UPDATES, ROUNDS = 12_000, 2
PEERS = THROUGHPUT.contenders[2:]
LOSSY = Contender("lossy", "lossy", "tests.processes.lossy_contender", 1, (), (), "badly")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scripts/bench needs Linux")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a folder of one's own near the root: paths of sockets have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        yield Path(folder)


def run(
    folder: Path, *names: str, scenario: str = "throughput", updates: int = UPDATES
) -> tuple[dict[str, Any], str]:
    """Run only these to the end; return numbers and output."""
    only = [word for name in names for word in ("--only", name)]
    done = subprocess.run(
        [
            *[*COMMAND, *only, "--docs", str(folder / "docs")],
            *["--updates", str(updates), "--rounds", str(ROUNDS)],
        ],
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "docs" / "numbers.json").read_text())
    numbers: dict[str, Any] = report["scenarios"][scenario]
    return numbers, done.stdout


@pytest.mark.slow
def test_ours_and_a_peer_in_one_run(short_path: Path) -> None:
    """Each round both, with the right state; a ratio of each round; the page; and nothing left."""
    numbers, output = run(short_path, "statebroker", "hset-publish")
    played = numbers["contenders"]
    assert set(played) == {"statebroker", "hset-publish"}
    assert [one["fault"] for one in numbers["samples"]] == [""] * 2 * ROUNDS
    for sample in numbers["samples"]:
        assert all(value > 0 for value in sample["measures"].values())
    assert set(played["statebroker"]["roles"]) == {"writer", "reader", "server", "worker"}
    assert played["hset-publish"]["ratio"]["count"] == ROUNDS
    assert times(Summary(**played["hset-publish"]["ratio"])) in output
    assert "# How fast" in (short_path / "docs" / "README.md").read_text()
    # Of the runs nothing is left: no folder, hence no socket and no server in it.
    assert {one.name for one in short_path.iterdir()} <= {"docs", "matplotlib"}


@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
def test_a_peer_ends_with_the_right_state(short_path: Path, peer: Contender) -> None:
    """This covers the peers whose packages are installed; scripts/bench runs all of them."""
    if why := skip_reason(peer):
        pytest.skip(why)
    numbers, _ = run(short_path, peer.name)
    assert [one["fault"] for one in numbers["samples"]] == [""] * ROUNDS
    assert numbers["contenders"][peer.name]["headline"]["median"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [AT_ONCE, BY_AGE], ids=[AT_ONCE.name, BY_AGE.name])
def test_latency_is_measured_from_set_to_sight(short_path: Path, scenario: Scenario) -> None:
    """Every update once; the state is checked, too; p50 is not above p99."""
    numbers, _ = run(short_path, scenario.name, scenario=scenario.name, updates=300)
    assert [one["fault"] for one in numbers["samples"]] == [""] * ROUNDS * len(scenario.contenders)
    for sample in numbers["samples"]:
        assert 0 < sample["measures"]["p50_ms"] <= sample["measures"]["p99_ms"]


@pytest.mark.slow
def test_a_late_reader_has_everything(short_path: Path) -> None:
    """Ours from the full state and bare HSCAN, both with every key."""
    numbers, _ = run(short_path, LOAD.name, scenario=LOAD.name, updates=3_000)
    assert [one["fault"] for one in numbers["samples"]] == [""] * ROUNDS * len(LOAD.contenders)
    assert set(numbers["contenders"]) == {"statebroker-load", "hscan"}
    assert all(sample["measures"]["seconds"] > 0 for sample in numbers["samples"])


@pytest.mark.slow
def test_what_the_limit_is_made_of_ends_with_the_right_state(short_path: Path) -> None:
    """Those that write all of it several times, too; the more is taken away, the less CPU it is."""
    numbers, _ = run(short_path, LIMIT.name, scenario=LIMIT.name, updates=20_000)
    assert [one["fault"] for one in numbers["samples"]] == [""] * ROUNDS * len(LIMIT.contenders)
    cpu = {name: one["cpu"]["median"] for name, one in numbers["contenders"].items()}
    assert cpu["bare-socket"] < cpu["bare-chunks"] < cpu["statebroker-limit"]


@pytest.mark.parametrize(
    ("updates", "fault"),
    [
        (GOOD, ""),
        (LOSES_A_KEY, "the reader's state is wrong: 1 keys missing, 0 wrong, 0 foreign"),
        (CRASHES, "writer ended with status 1\n  | the writer has had enough"),
    ],
)
def test_a_run_that_went_wrong_gives_no_number(
    updates: int, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that is not right, or a process that fails, counts as a fault and as nothing else."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    progress = Progress()
    result = run_rounds(
        dataclasses.replace(THROUGHPUT, contenders=(LOSSY,)),
        only=[],
        rounds=1,
        updates=updates,
        server="valkey",
        seed=1,
        scale=1.0,
        progress=progress,
    )
    assert [one.fault for one in result.samples] == [fault]
    assert bool(result.samples[0].measures) is not bool(fault)
    assert result.faults == ([] if not fault else [Sample("lossy", 1, updates, fault=fault)])
    assert ("does not count" in progress.lines[-1]) is bool(fault)


def test_without_docs_a_run_changes_no_file(short_path: Path) -> None:
    """Numbers go to stdout as one JSON object; git sees the same tree as before."""
    before = git_status()
    done = subprocess.run(
        [
            *[*COMMAND, "--quick", "--only", "statebroker", "--only", "throughput", "--json"],
            *["--updates", "5000", "--rounds", "1"],
        ],
        cwd=ROOT,
        env={**ENVIRONMENT, "TMPDIR": str(short_path)},
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["valid"] is True
    assert done.stderr.startswith("1 runs; about 1 s on two cores")
    assert "[1/1, " in done.stderr
    assert git_status() == before


def git_status() -> str:
    """Return what git sees changed, contents included."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git working tree")
    return "".join(
        subprocess.run([git, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for words in (["status", "--porcelain"], ["diff", "--stat"])
    )


def test_cpu_time_counts_all_threads_of_another_process() -> None:
    """To the nanosecond, and threads that ended too; where there is no process it is an error."""
    code = (
        "import threading, time\n"
        "def burn():\n"
        "    while time.thread_time_ns() < 200_000_000: pass\n"
        "thread = threading.Thread(target=burn); thread.start(); thread.join()\n"
        "print(time.process_time_ns(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        own = int(process.stdout.readline())
        assert own >= 200_000_000
        assert own <= cpu_ns(process.pid) < own + 100_000_000
        process.communicate(b"\n")
    with pytest.raises(OSError, match=f"process {process.pid}"):
        cpu_ns(process.pid)
