"""What a mutation is, how it is applied, and what its test says of it. No I/O but one read."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

TABLE = Path(__file__).with_name("table.toml")

# In the order of README, "What it guarantees".
PROMISES = (
    "ordered",
    "unique",
    "atomic",
    "resumable",
    "never silently stale",
    "convergent",
    "accounted",
    "bounded",
    "confirmed",
    "confined",
)

PYTEST_PASSED = 0
PYTEST_FAILED = 1


class TableError(Exception):
    """The table of mutations does not fit itself or the code; says the entry and the fix."""


class Verdict(StrEnum):
    """What the test said of the broken code."""

    RED = "red"
    HUNG = "red (hung)"
    SURVIVED = "survived"
    UNCLEAR = "unclear"

    @property
    def is_noticed(self) -> bool:
        """Whether the test turned red because of what it tests."""
        return self in (Verdict.RED, Verdict.HUNG)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One deliberate break.

    Attributes:
        promise: the one of PROMISES that does not hold any more.
        breaks: what is wrong now, in a sentence.
        file: in which file, from the project's root.
        old: text that is in the file exactly once.
        new: what it becomes.
        test: the narrowest pytest selection that must turn red, a file or one test of it.
    """

    promise: str
    breaks: str
    file: str
    old: str
    new: str
    test: str

    def applied(self, text: str) -> str:
        """Return the file's text with the break in it.

        Raises:
            TableError: the old text is not there exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise TableError(
                f"{self.file} has the text of {self.breaks!r} {found} times, not once; give more "
                f"or other lines around it in {TABLE.name}: {self.old!r}"
            )
        return text.replace(self.old, self.new)


def load(path: Path = TABLE) -> list[Mutation]:
    """Read a table, in the order of the promises.

    Raises:
        TableError: an entry lacks a field, has one too many, names no promise, or changes nothing.
    """
    names = {one.name for one in fields(Mutation)}
    found = []
    for number, entry in enumerate(tomllib.loads(path.read_text()).get("mutation", []), 1):
        if set(entry) != names:
            raise TableError(
                f"{path.name}: mutation {number} has the fields {sorted(entry)}, not "
                f"{sorted(names)}"
            )
        one = Mutation(**entry)
        if one.promise not in PROMISES:
            raise TableError(
                f"{path.name}: mutation {number} is of promise {one.promise!r}; "
                f"there are {', '.join(PROMISES)}"
            )
        if one.old == one.new:
            raise TableError(f"{path.name}: mutation {number} changes nothing: {one.breaks}")
        found.append(one)
    return sorted(found, key=lambda one: PROMISES.index(one.promise))


def verdict_of(status: int | None) -> Verdict:
    """Say what pytest's exit status means.

    Args:
        status: None if it was still running at the end of its time.
    """
    if status is None:
        return Verdict.HUNG
    if status == PYTEST_PASSED:
        return Verdict.SURVIVED
    # Anything else than a failed test (there is none, or a file cannot be imported) proves nothing.
    return Verdict.RED if status == PYTEST_FAILED else Verdict.UNCLEAR


def first_failure(output: str) -> str:
    """Return what pytest's summary says of the first test that failed; empty if nothing."""
    # Captured log lines begin with ERROR too.
    starts = ("FAILED tests/", "ERROR tests/")
    lines = [line for line in output.splitlines() if line.startswith(starts)]
    return lines[0] if lines else ""
