"""The table of scripts/mutations fits the code, and verdicts are what tests said."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.mutation import (
    PROMISES,
    Mutation,
    TableError,
    Verdict,
    first_failure,
    load,
    verdict_of,
)

ROOT = Path(__file__).parents[3]
FEWEST = 3
TABLE = load()
ENTRY = """
[[mutation]]
promise = "ordered"
breaks = "Nothing is in order."
file = "a.py"
old = "1"
new = "2"
test = "tests/test_a.py"
"""


def name_of(mutation: Mutation) -> str:
    """Return what an entry is called in pytest's output."""
    return f"{mutation.promise}: {mutation.breaks}"


def named_in(file: Path) -> set[str]:
    """Return the tests of a file, those of classes as `Class::test`."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = [one.name for one in node.body if isinstance(one, ast.FunctionDef)]
            found |= {f"{node.name}::{name}" for name in inner}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_promise_of_the_readme_is_broken_often_enough() -> None:
    """Every promise of README is broken at least three times; no mutation occurs twice."""
    readme = (ROOT / "README.md").read_text()
    _, _, rest = readme.partition("| promise | meaning |\n|---|---|\n")
    rows = rest.partition("\n\n")[0].splitlines()
    assert tuple(row.split(" | ")[0].removeprefix("| ") for row in rows) == PROMISES
    counts = Counter(one.promise for one in TABLE)
    assert {promise for promise in PROMISES if counts[promise] < FEWEST} == set()
    assert len({one.breaks for one in TABLE}) == len(TABLE)


@pytest.mark.parametrize("mutation", TABLE, ids=name_of)
def test_an_entry_still_applies(mutation: Mutation) -> None:
    """Its text is there once, Python stays Python, and its test exists."""
    assert mutation.file.startswith(("broker/", "workers/"))
    broken = mutation.applied((ROOT / mutation.file).read_text())
    if mutation.file.endswith(".py"):
        ast.parse(broken)
    file, _, test = mutation.test.partition("::")
    assert file.startswith("tests/")
    tests = named_in(ROOT / file)
    assert tests
    assert not test or test in tests


@pytest.mark.parametrize("text", ["", "1 and 1"])
def test_a_text_that_is_not_there_once_is_an_error(text: str) -> None:
    """It names file, entry and fix, and applies nothing."""
    one = Mutation("ordered", "Nothing is in order.", "a.py", "1", "2", "tests/test_a.py")
    assert one.applied("(1)") == "(2)"
    with pytest.raises(TableError, match=r"^a\.py .*'Nothing is in order\.' [02] times.*'1'$"):
        one.applied(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"ordered"', '"tidy"', "mutation 1 is of promise 'tidy'"),
        ('new = "2"', 'new = "1"', "mutation 1 changes nothing"),
        ('new = "2"', "", r"mutation 1 has the fields \['breaks', 'file', 'old'"),
        ('new = "2"', 'new = "2"\nmore = 1', "mutation 1 has the fields"),
    ],
)
def test_an_inconsistent_table_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Fields, promise and change of every entry are checked."""
    path = tmp_path / "table.toml"
    path.write_text(ENTRY)
    assert [one.file for one in load(path)] == ["a.py"]
    path.write_text(ENTRY.replace(old, new))
    with pytest.raises(TableError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("status", "verdict", "noticed"),
    [
        (0, Verdict.SURVIVED, False),
        (1, Verdict.RED, True),
        (None, Verdict.HUNG, True),
        # Interrupted or not importable, internal error, usage, no such test, killed.
        *((status, Verdict.UNCLEAR, False) for status in (2, 3, 4, 5, -9)),
    ],
)
def test_only_a_test_that_failed_or_hung_has_noticed(
    status: int | None, verdict: Verdict, *, noticed: bool
) -> None:
    """A test that did not run proves nothing."""
    assert verdict_of(status) is verdict
    assert verdict.is_noticed is noticed


def test_the_first_failure_is_reported() -> None:
    """The reason is the one in pytest's summary."""
    output = "..F\nERROR    broker: logged\nFAILED tests/a.py::test_a - assert 1 == 2\nFAILED b\n"
    assert first_failure(output) == "FAILED tests/a.py::test_a - assert 1 == 2"
    assert first_failure("5 passed\n") == ""
