"""`scripts/mutations` over a small table: what it calls noticed, and what it does not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.tree import Tree, TreeError, files_of

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-P", "-m", "tests.mutants.run"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
MAX_SECONDS = 100
TEST = "tests/unit/core/test_fold.py::test_an_absent_key_counts_as_zero"
FILE = "broker/protocol/operations.py"
OLD = "value = values.get(key, 0)"


def obstacle() -> str:
    """Return why no copy can be made here; empty if one can."""
    try:
        files_of(ROOT)
    except TreeError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "none")


def table(folder: Path, *entries: tuple[str, str, str]) -> Path:
    """Write a table of breaks of increments: promise, old text, new text."""
    path = folder / "table.toml"
    path.write_text(
        "".join(
            f'[[mutation]]\npromise = "{promise}"\nbreaks = "Break {number}."\n'
            f'file = "{FILE}"\nold = "{old}"\nnew = "{new}"\ntest = "{TEST}"\n'
            for number, (promise, old, new) in enumerate(entries)
        )
    )
    return path


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*COMMAND, *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        check=False,
    )


@pytest.mark.slow
def test_what_no_test_notices_is_reported(tmp_path: Path) -> None:
    """Only a test that failed counts; the project itself stays as it was."""
    before = (ROOT / FILE).read_text()
    path = table(
        tmp_path,
        ("unique", OLD, OLD.replace("0", "1")),
        ("accounted", OLD, f"{OLD}  # the same"),
        ("bounded", OLD, "value ="),
    )
    done = run("--json", "--table", str(path))
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    verdicts = [(one["promise"], one["verdict"]) for one in report["mutations"]]
    assert verdicts == [("unique", "red"), ("accounted", "survived"), ("bounded", "unclear")]
    assert report["mutations"][0]["told"].startswith(f"FAILED {TEST}")
    assert (report["survived"], done.returncode) == (2, 1)
    assert "3/3" in done.stderr
    assert (ROOT / FILE).read_text() == before


@pytest.mark.slow
def test_only_one_promise_as_a_table(tmp_path: Path) -> None:
    """`--only` leaves out the others; if every mutation is detected the status is 0."""
    path = table(
        tmp_path, ("unique", OLD, OLD.replace("0", "1")), ("accounted", OLD, f"{OLD}  # the same")
    )
    done = run("--only", "unique", "--table", str(path))
    assert done.returncode == 0, done.stderr
    assert "Break 0." in done.stdout
    assert "Break 1." not in done.stdout
    assert "1 of 1 breaks turned a test red" in done.stdout


@pytest.mark.parametrize(
    ("old", "words"), [("not in it", "0 times, not once"), ("import", "times, not once")]
)
def test_a_table_that_does_not_fit_is_refused_at_once(tmp_path: Path, old: str, words: str) -> None:
    """Before any test runs, with the entry and the fix."""
    done = run("--table", str(table(tmp_path, ("unique", old, "x"))))
    assert done.returncode == 2
    assert words in done.stderr
    assert "nothing broken yet" not in done.stderr


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    """The error includes the message of git."""
    with pytest.raises(TreeError, match=r"takes git and a checkout: .*not a git repository"):
        files_of(tmp_path)


def test_a_test_that_hangs_is_stopped(tmp_path: Path) -> None:
    """At the end of its time it is killed, and has no status."""
    tree = Tree(ROOT, files_of(ROOT), tmp_path / "tree")
    # Python alone takes longer to start.
    assert asyncio.run(tree.run([TEST], 0.001)).status is None
