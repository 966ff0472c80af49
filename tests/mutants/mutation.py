"""Mutations, how they are applied, and the verdict of their tests. No I/O but one read."""

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
    """The table of mutations is invalid or does not match the code."""


class Verdict(StrEnum):
    """The result of the test on the broken code."""

    RED = "red"
    HUNG = "red (hung)"
    SURVIVED = "survived"
    UNCLEAR = "unclear"

    @property
    def is_noticed(self) -> bool:
        """Whether the test failed because of the break."""
        return self in (Verdict.RED, Verdict.HUNG)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One deliberate break.

    Attributes:
        promise: the one of PROMISES that is broken.
        breaks: the fault, in one sentence.
        file: path from the root of the project.
        old: text that occurs in the file exactly once.
        new: its replacement.
        test: the narrowest pytest selection that must fail, a file or one test of it.
    """

    promise: str
    breaks: str
    file: str
    old: str
    new: str
    test: str

    def applied(self, text: str) -> str:
        """Return the text of the file with the break.

        Raises:
            TableError: the old text does not occur exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise TableError(
                f"{self.file} has the text of {self.breaks!r} {found} times, not once; give more "
                f"or other lines around it in {TABLE.name}: {self.old!r}"
            )
        return text.replace(self.old, self.new)


def load(path: Path = TABLE) -> list[Mutation]:
    """Read a table, sorted by promise.

    Raises:
        TableError: an entry has wrong fields, an unknown promise, or changes nothing.
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
    """Return the verdict for an exit status of pytest.

    Args:
        status: None after a timeout.
    """
    if status is None:
        return Verdict.HUNG
    if status == PYTEST_PASSED:
        return Verdict.SURVIVED
    # Other errors (no test found, or an import error) prove nothing.
    return Verdict.RED if status == PYTEST_FAILED else Verdict.UNCLEAR


def first_failure(output: str) -> str:
    """Return the first FAILED or ERROR line in the summary of pytest; empty if there is none."""
    # Captured log lines begin with ERROR too.
    starts = ("FAILED tests/", "ERROR tests/")
    lines = [line for line in output.splitlines() if line.startswith(starts)]
    return lines[0] if lines else ""
