"""The folders of tests mirror those of the source."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("unit", "integration", "processes")
# Tests of broker/core are in tests/unit/core, of workers in tests/*/workers.
PACKAGES = {"broker": Path(), "workers": Path("workers")}

FOLDERS = sorted(
    PACKAGES[package] / init.parent.relative_to(ROOT / package)
    for package in PACKAGES
    for init in (ROOT / package).rglob("__init__.py")
    # The old name of broker/testing: it holds an alias alone.
    if init.parent != ROOT / "broker" / "faults"
)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_each_folder_has_its_tests(folder: Path) -> None:
    """In a folder of the same name, or in files that begin with it: test_cli_watch.py of cli."""
    homes = [ROOT / "tests" / kind / folder for kind in KINDS]
    inside = [file for home in homes for file in home.glob("test_*.py")]
    named = [file for home in homes for file in home.parent.glob(f"test_{folder.name}*.py")]
    assert inside or named
