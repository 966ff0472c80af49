import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest

from broker.embedded import attach
from broker.testing.waiting import eventually

ROOT = Path(__file__).parents[3]
DATA = ROOT / "scripts" / "flights" / "data" / "flights-2013-01.csv.gz"
PROCESSES = Path("/proc")
ROWS = 3000
TIMEOUT_S = 100.0

needs_proc = pytest.mark.skipif(not PROCESSES.is_dir(), reason="reads /proc to find processes")


@pytest.fixture(scope="module")
def some_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first days of the month, as a plain file."""
    lines = gzip.decompress(DATA.read_bytes()).splitlines(keepends=True)
    path = tmp_path_factory.mktemp("flights") / "some.csv"
    path.write_bytes(b"".join(lines[: 1 + ROWS]))
    return path


def command(*arguments: str | Path, module: str = "scripts.flights.run") -> list[str]:
    """Return the command that a script runs once its environment is made."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def summary_of(*arguments: str | Path) -> dict[str, Any]:
    """Run the demo, which must succeed, and return the one JSON object that it prints."""
    result = run("--json", *arguments)
    assert result.returncode == 0, result.stderr + result.stdout
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def assert_all_agree(summary: dict[str, Any]) -> None:
    """The replicas, the full state, the file and the counts say the same."""
    assert summary["faults"] == []
    assert (summary["converged"], summary["oracle_match"], summary["accounted"]) == (True,) * 3
    assert summary["replicas"] == 2
    assert {replica["digest"] for replica in summary["replica"].values()} == {summary["digest"]}
    assert summary["by_count"] + summary["by_age"] == summary["batches"]


def test_replicas_full_state_and_file_agree(some_flights: Path) -> None:
    """As fast as it goes, two replicas of three nodes end with the answer of the file."""
    summary = summary_of("--flights", some_flights, "--speed", "max")
    assert_all_agree(summary)
    assert summary["flights"] == ROWS
    assert summary["deltas"] > 10 * ROWS
    assert summary["bytes_published"] > summary["deltas"]
    assert summary["by_count"] > 0
    assert summary["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["flusher", "scheduler", "subscriber"])
def test_a_killed_process_changes_nothing_in_the_end(some_flights: Path, victim: str) -> None:
    """SIGKILL in the middle of the replay, and every copy still equals the file's answer."""
    summary = summary_of("--flights", some_flights, "--kill", victim)
    assert_all_agree(summary)
    assert victim in summary["killed"].replace("replica a", "subscriber")
    assert set(summary["replica"]) == ({"b", "c"} if victim == "subscriber" else {"a", "b"})


@pytest.mark.slow
def test_a_difference_is_shown_and_ends_with_one(some_flights: Path) -> None:
    """If the replicas differ from the file's answer, the demo fails and names the keys."""
    altered = """if True:
        import sys
        from scripts.flights import demo, run
        right = demo.final_state
        demo.final_state = lambda flights: right(flights) | {"count/EWR/departures": -1}
        sys.exit(run.main(sys.argv[1:]))
    """
    arguments = ("--json", "--speed", "max", "--flights", str(some_flights))
    result = subprocess.run(
        [sys.executable, "-c", altered, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["converged"], summary["oracle_match"], summary["accounted"]) == (
        True,
        False,
        True,
    )
    assert "full-state hash against the file: count/EWR/departures: 1" in summary["faults"][-1]
    assert len(summary["faults"]) == 4


@pytest.mark.slow
def test_one_airport_and_no_flights(tmp_path: Path) -> None:
    """Nodes without anything to write do not disturb the demo: neither two nor all three."""
    lines = gzip.decompress(DATA.read_bytes()).decode().splitlines()
    path = tmp_path / "flights.csv"
    path.write_text("\n".join([lines[0], *(line for line in lines[1:900] if ",LGA," in line)]))
    assert_all_agree(summary_of("--flights", path, "--speed", "max"))
    path.write_text(lines[0] + "\n")
    nothing = summary_of("--flights", path)
    assert_all_agree(nothing)
    assert (nothing["flights"], nothing["deltas"], nothing["batches"]) == (0, 0, 0)


@pytest.mark.slow
def test_a_server_that_runs_already(some_flights: Path) -> None:
    """With --url two runs share a server, and neither sees data of the other."""
    with attach(None) as server:
        for _ in range(2):
            arguments = ("--flights", some_flights, "--speed", "max", "--url", server.url)
            assert_all_agree(summary_of(*arguments))


@pytest.mark.slow
def test_a_person_without_a_terminal_reads_plain_lines(some_flights: Path) -> None:
    """Without a terminal there is no board, but progress and the summary as plain text."""
    result = run("--flights", some_flights)
    assert result.returncode == 0, result.stderr
    assert "by count" in result.stdout
    assert "both equal the file's state" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_a_wrong_file_is_reported_in_one_line(tmp_path: Path) -> None:
    """An invalid value is reported with its line before anything is started."""
    path = tmp_path / "wrong.csv"
    lines = gzip.decompress(DATA.read_bytes()).decode().splitlines()[:5]
    path.write_text("\n".join(lines).replace(",EWR,", ",BOS,"))
    result = run("--flights", path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"scripts/demo: {path}, line 2, column origin: 'BOS' is not one of EWR, JFK, LGA"
    ]
    absent = run("--json", "--flights", tmp_path / "absent.csv")
    assert absent.returncode == 2
    assert json.loads(absent.stdout)["converged"] is False


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "nan"])
def test_a_wrong_speed_is_refused(speed: str) -> None:
    """A speed is a number above 0, or max."""
    result = run(f"--speed={speed}")
    assert result.returncode == 2
    assert "--speed" in result.stderr


def processes_with(marker: str, words: str = "") -> list[int]:
    """Return the processes that inherited a marker in their environment."""
    found = []
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            arguments = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if marker.encode() in environment and words.encode() in arguments:
            found.append(int(folder.name))
    return found


@pytest.fixture
def running(some_flights: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo in the middle of a long replay, and the marker of its processes."""
    marker = f"DEMO_TEST={uuid4()}"
    name, value = marker.split("=")
    # A killed demo leaves its files; the name is short because sockets' paths have to be.
    with TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as files:
        process = subprocess.Popen(
            command("--flights", some_flights, "--speed", "600"),
            cwd=ROOT,
            env=os.environ | {name: value, "TMPDIR": files},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert any("deltas" in line and " 0 deltas" not in line for line in process.stdout)
        yield process, marker
        process.kill()
        process.communicate()
        eventually(lambda: not processes_with(marker), 20)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_it_leaves_nothing_behind(
    running: tuple[subprocess.Popen[str], str], number: signal.Signals, status: int
) -> None:
    """Control-C ends the demo and all its processes within seconds, and without a traceback."""
    process, marker = running
    process.send_signal(number)
    _, errors = process.communicate(timeout=8)
    assert process.returncode == status
    assert "Traceback" not in errors
    eventually(lambda: not processes_with(marker), 20)


@pytest.mark.slow
@needs_proc
def test_a_process_that_dies_ends_the_demo(running: tuple[subprocess.Popen[str], str]) -> None:
    """When a producer dies unexpectedly, the demo says so and ends."""
    process, marker = running
    (producer,) = processes_with(marker, "scripts.flights.producer --node JFK")
    os.kill(producer, signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "producer JFK ended unexpectedly (status -9)" in errors
    assert "Traceback" not in errors


@needs_proc
def test_nothing_outlives_a_killed_demo(running: tuple[subprocess.Popen[str], str]) -> None:
    """When the demo itself is killed all its processes end too, workers and server included."""
    process, marker = running
    process.kill()
    process.wait()
    eventually(lambda: not processes_with(marker), 20)


def test_the_original_two_scenarios() -> None:
    """12 writes give 10 by count at once and 2 by age; one write after a pause goes by age."""
    result = subprocess.run(
        command("--json", module="scripts.thresholds.run"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    batches = json.loads(result.stdout)["batches"]
    found = [(b["scenario"], b["offset"], b["trigger"], b["size"]) for b in batches]
    assert found == [
        ("burst", 1, "count", 10),
        ("burst", 2, "age", 2),
        ("one write", 3, "age", 1),
    ]
    by_count, *by_age = [batch["age_ms"] for batch in batches]
    assert by_count < 498
    assert all(498 <= age < 2000 for age in by_age)
    assert all(batch["bytes"] > 60 for batch in batches)


def test_the_scenarios_as_a_table() -> None:
    """A person sees trigger, size, age and bytes of each batch."""
    result = subprocess.run(
        command(module="scripts.thresholds.run"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    for word in ("trigger", "size", "age", "bytes", "count", "as expected"):
        assert word in result.stdout
