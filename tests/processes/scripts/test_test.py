"""`scripts/test`: what it runs, what it leaves out, and what a test process that dies costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.testing.server import KINDS, REDIS, VALKEY, find_binary
from tests.mutants.mutation import PROMISES, load
from tests.selection import EFFORT

ROOT = Path(__file__).parents[3]
MAX_SECONDS = 110

# -- processes that die ---------------------------------------------------------------------------

DYING = """
import os, signal
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(12))
def test_one(number):
    with Path(__file__).with_name("ran").open("a") as ran:
        ran.write(f"{number}\\n")
    if number in (2, 11):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(command: list[str], folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as from a shell."""
    inherited = {name: text for name, text in os.environ.items() if name != EFFORT}
    return subprocess.run(
        command,
        cwd=folder,
        env=inherited
        | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "COLUMNS": "200"}
        | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )


def test_a_process_that_dies_fails_its_test_alone(tmp_path: Path) -> None:
    """The test that ran is a failure, all others run, once each, and the exit status is 1."""
    (tmp_path / "test_dying.py").write_text(DYING)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    script = str(ROOT / "scripts" / "test")
    options = ["-q", "-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path)]
    done = run([script, *options, str(tmp_path)], tmp_path)
    failed = re.findall(
        r"^FAILED \S*::test_one\[(\d+)\] - worker .* crashed", done.stdout, re.MULTILINE
    )
    assert sorted(failed, key=int) == ["2", "11"], done.stdout + done.stderr
    assert "2 failed, 10 passed" in done.stdout
    ran = (tmp_path / "ran").read_text().split()
    assert sorted(ran, key=int) == [str(number) for number in range(12)]
    assert done.returncode == 1


# -- connections left open ------------------------------------------------------------------------

LEAVING = """
import asyncio
from broker.sync.loop_thread import LoopThread

def test_before(): ...

def test_a_transport():
    async def leave():
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        circle = [writer]
        circle.append(circle)
        server.close()
    asyncio.run(leave())

def test_a_loop_of_a_thread():
    LoopThread("left")

def test_after(): ...
"""


def test_the_test_fails_that_leaves_a_connection_open(tmp_path: Path) -> None:
    """Not a later one in whose time it is collected."""
    (tmp_path / "test_leaving.py").write_text(LEAVING)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.leaks", "-c", "pytest.ini"]
    done = run([*command, str(tmp_path)], tmp_path)
    found = re.findall(r"^ERROR \S*::(\w+) - ", done.stdout, re.MULTILINE)
    assert found == ["test_a_transport", "test_a_loop_of_a_thread"], done.stdout + done.stderr
    assert "4 passed, 2 errors" in done.stdout


# -- selection ------------------------------------------------------------------------------------

VALUES = 8
AWAY = [kind for kind in KINDS if isinstance(find_binary(kind), str)]
# Each kind without a server keeps its tests, and all others share one set.
KEPT, EVERY = VALUES * (len(AWAY) + 1), VALUES * len(KINDS)

SUITE = """
import os
import pytest

def test_quick(): ...

@pytest.mark.slow
def test_slow(): ...

@pytest.mark.slow
@pytest.mark.docker
def test_in_docker(): ...

@pytest.mark.parametrize("kind", ["valkey", "redis", "redis-8"])
@pytest.mark.parametrize("n", range(8))
def test_with_a_server(kind, n):
    with open("kinds", "a") as file:
        file.write(kind + "\\n")

def test_effort():
    assert os.environ.get("TEST_EFFORT") == os.environ.get("EXPECTED")
"""
INI = """
[pytest]
testpaths = suite
markers =
    slow: slow
    docker: docker
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Give a folder with a suite of four tests that are chosen from as ours are."""
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text(INI)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "passed", "left_out", "effort"),
    [
        ([], 2 + KEPT, [("1", str(EVERY - KEPT))], "0.25"),
        (["-n", "2", "--dist", "worksteal"], 2 + KEPT, [("1", str(EVERY - KEPT))], "0.25"),
        (["--all"], 3 + EVERY, [], None),
        pytest.param(["suite"], 3 + EVERY, [], None, marks=pytest.mark.slow),
        pytest.param(["-k", "slow"], 1, [], None, marks=pytest.mark.slow),
        pytest.param(["-m", "docker"], 1, [], None, marks=pytest.mark.slow),
    ],
)
def test_slow_tests_run_when_asked_for(
    suite: Path,
    arguments: list[str],
    passed: int,
    left_out: list[tuple[str, str]],
    effort: str | None,
) -> None:
    """With `--all`, or if tests are named; else they are left out, and one line says how many.

    Likewise those that run with another server. Each kind of server has some.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.selection", *arguments]
    done = run(command, suite, **({} if effort is None else {"EXPECTED": effort}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{passed} passed" in done.stdout
    line = r"^left out: (\d+) slow tests, (\d+) that ran with another server; scripts/test --all"
    assert re.findall(line, done.stdout, re.MULTILINE) == left_out
    if passed >= 10:
        kinds = (suite / "kinds").read_text().split()
        assert set(kinds) == set(KINDS)
        assert len(kinds) == (KEPT if left_out else EVERY)


def test_what_cannot_run_is_not_left_out(suite: Path) -> None:
    """Tests of a kind without a server are kept, to be skipped with the reason.

    So are those of one of the other kinds, in turns.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.selection"]
    done = run(command, suite, PATH="", EXPECTED="0.25")
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = Counter((suite / "kinds").read_text().split())
    assert kinds[REDIS] == VALUES
    away = {REDIS, *AWAY}
    assert sum(kinds.values()) == VALUES * (len(away) + 1)
    assert set(kinds) == set(KINDS)


# -- coverage of the tests that run by default ----------------------------------------------------

COLLECT = """
import json, sys
import pytest

class Collector:
    def pytest_collection_finish(self, session):
        from tests.selection import twins
        slow = {one for one in session.items if one.get_closest_marker("slow")}
        left_out = {*slow, *twins(session.items)}
        for item in session.items:
            given = item.callspec.params.values() if hasattr(item, "callspec") else ()
            texts = [one for one in given if isinstance(one, str)]
            print(json.dumps([item.nodeid, item in left_out, texts]), file=sys.stderr)

sys.exit(pytest.main(["--collect-only", "-q", "--all", "-p", "no:cacheprovider"], [Collector()]))
"""


@dataclass(frozen=True, slots=True)
class Collected:
    """One test of the whole suite.

    Attributes:
        name: as pytest calls it: file, test, parameters.
        is_left_out: by default.
        texts: those of its parameters that are texts, such as a kind of server.
    """

    name: str
    is_left_out: bool
    texts: frozenset[str]

    @property
    def file(self) -> str:
        """The file, from the project's root."""
        return self.name.partition("::")[0]


def collected() -> list[Collected]:
    """Return all tests that need no Docker."""
    done = run([sys.executable, "-c", COLLECT], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[Any] = [json.loads(line) for line in done.stderr.splitlines() if line[0] == "["]
    return [Collected(name, is_left_out, frozenset(texts)) for name, is_left_out, texts in found]


def unnoticed(quick: set[str], promise: str) -> list[str]:
    """Return the tests that the table of mutations names for a promise, and that are not run."""
    tests = {one.test for one in load() if one.promise == promise}
    assert tests
    return [
        test
        for test in sorted(tests)
        if not any(name == test or name.startswith((f"{test}[", f"{test}::")) for name in quick)
    ]


# What is covered by slow tests alone: of all processes at once, and of the wheel, installed.
ONLY_SLOW = {
    *(f"tests/processes with {kind}" for kind in (VALKEY, REDIS)),
    "tests/processes/workers/test_idle.py",
    "tests/processes/workers/test_kill.py",
}


def test_what_runs_by_default_covers_everything() -> None:
    """Of each test file something is run, and in each folder with every kind of server.

    Each test that the table of mutations names for a promise is run, in one variant at least. All
    in one test, for it is long: it collects the whole suite.
    """
    everything: set[str] = set()
    covered: set[str] = set()
    quick: set[str] = set()
    for one in collected():
        folder = Path(one.file).parent
        places = {one.file, *(f"{folder} with {kind}" for kind in one.texts & {*KINDS})}
        everything |= places
        if not one.is_left_out:
            covered |= places
            quick.add(one.name)
    assert everything - covered == ONLY_SLOW
    assert {
        promise: missing for promise in PROMISES if (missing := unnoticed(quick, promise))
    } == {}
