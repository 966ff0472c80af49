"""Fixtures of the tests that run scripts."""

from __future__ import annotations

import pytest

from scripts.benchmarks.processes import ROOT


@pytest.fixture
def from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes find the project."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
