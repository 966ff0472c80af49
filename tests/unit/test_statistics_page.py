"""docs/statistics.md says of each number what the docstrings of broker/stats say."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from broker import stats

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text("utf-8")
CLASSES = {name: getattr(stats, name) for name in stats.__all__ if name != "Statistics"}
# unit; kind, meaning: a label has neither, a status no unit
TEXT = re.compile(r"(?:(?:([^;,.]+); )?(counter|gauge), )?(.*)")


def rows_of(statistics: type) -> list[str]:
    """Return the rows that the page must have for a class, made from its docstring."""
    _, _, attributes = (inspect.getdoc(statistics) or "").partition("Attributes:\n")
    rows = []
    for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
        found = TEXT.fullmatch(" ".join(text.split()))
        assert found is not None
        rows.append(
            "| " + " | ".join((f"`{name}`", *(part or "-" for part in found.groups()))) + " |"
        )
    return rows


def test_the_page_has_a_section_for_each_class() -> None:
    """No class is missing, and none is described that does not exist."""
    assert CLASSES
    assert set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_describes_each_field(name: str) -> None:
    """Every field is documented, and its row on the page is what the docstring says."""
    section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    expected = rows_of(CLASSES[name])
    assert [row.split("`")[1] for row in expected] == [one.name for one in fields(CLASSES[name])]
    assert re.findall(r"^\| `.*$", section, re.MULTILINE) == expected
