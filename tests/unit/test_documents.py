"""README and docs: length limit, valid links, existing paths and names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "broker" / "PROTOCOL.md",
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    )
)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MAX_README_WORDS = 1500
MAX_FIVE = 5
MIN_ROWS = 10


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def test_the_readme_is_short() -> None:
    """It has at most 1,500 words; everything else is in docs."""
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= MAX_README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files that a page links to exist, and so do the headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_of_docs_is_in_the_index() -> None:
    """docs/README.md links to each page and folder beside it."""
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    for page in (ROOT / "docs").iterdir():
        target = f"{page.name}/README.md" if page.is_dir() else page.name
        assert page.name == "README.md" or f"]({target})" in index, target


# -- docs/architecture.md -------------------------------------------------------------------------

LINES = re.sub(r"```.*?```", "", ARCHITECTURE, flags=re.DOTALL).splitlines()
PATH = re.compile(r"[\w.\-]+/[\w./\-]*|\w+\.(toml|yml|md)")
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")


def paths_and_names() -> list[tuple[str, list[str]]]:
    """Return each path of the page with the names that follow it in the same line."""
    found: list[tuple[str, list[str]]] = []
    for line in LINES:
        names: list[str] | None = None
        for quoted in re.findall(r"`([^`]+)`", line):
            if PATH.fullmatch(quoted):
                names = []
                found.append((quoted, names))
            elif NAME.fullmatch(quoted) and ("." in quoted or quoted[0].isupper() or "(" in quoted):
                assert names is not None, f"`{quoted}` follows no path: {line}"
                names.append(quoted.removesuffix("()"))
    return found


NAMED = sorted({(path, name) for path, names in paths_and_names() for name in names})


@pytest.mark.parametrize("path", sorted({path for path, _ in paths_and_names()}))
def test_every_path_of_the_architecture_exists(path: str) -> None:
    """Every path on the page exists."""
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_name_of_the_architecture_resolves(path: str, name: str) -> None:
    """A module, function or class is where the page says that it is."""
    if name.startswith("broker."):
        importlib.import_module(name)
        return
    found: object = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)


def test_every_folder_of_the_package_is_a_room() -> None:
    """The first table has a row for each folder of broker, and for workers."""
    folders = {one.parent.name for one in (ROOT / "broker").glob("*/__init__.py")}
    rooms = set(re.findall(r"^\| `broker/(\w+)/` \|", ARCHITECTURE, re.MULTILINE))
    assert rooms == folders
    assert "\n| `workers/` |" in ARCHITECTURE


def test_an_operation_takes_at_most_five_files() -> None:
    """The page lists the files for a new operation, and there are no more than five."""
    section = ARCHITECTURE.partition("## Add an operation")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. `([\w./]+)`", section, re.MULTILINE)
    assert 0 < len(steps) <= MAX_FIVE


def test_where_to_change_what_has_ten_rows() -> None:
    """Ten questions of the kind "I want to change X" are answered."""
    section = ARCHITECTURE.partition("## I want to change")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| (?!I want|---)", section, re.MULTILINE)) >= MIN_ROWS
