"""A pytest plugin that selects the tests to run when the command line names none.

Slow tests run when `--all` is given, or when anything says which tests to run: a path, -k, -m or
--last-failed. Otherwise they are left out, and one line at the end tells how many.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

NO_DOCKER = "not docker"
NO_SLOW = "not docker and not slow"
EFFORT = "TEST_EFFORT"
LESS_EFFORT = "0.25"

_left_out = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --all."""
    parser.addoption(
        "--all",
        action="store_true",
        dest="all_tests",
        help="run slow tests too, and all examples of the randomised ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose by marker; every process of pytest-xdist does so, from the same command line."""
    config.stash[_left_out] = 0
    if config.option.markexpr:
        return
    config.option.markexpr = NO_DOCKER if config.option.all_tests or _names(config) else NO_SLOW
    if config.option.markexpr == NO_SLOW:
        # Read when the modules of the tests are imported, here or in processes that inherit it.
        os.environ.setdefault(EFFORT, LESS_EFFORT)


def _names(config: pytest.Config) -> bool:
    """Whether the command line says which tests are wanted."""
    option = config.option
    is_given = config.args_source is pytest.Config.ArgsSource.ARGS
    return bool(is_given or option.keyword or getattr(option, "lf", False))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the slow tests that are left out."""
    if items and items[0].config.option.markexpr == NO_SLOW:
        slow = [item for item in items if not item.get_closest_marker("docker")]
        items[0].config.stash[_left_out] += len(slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a pytest-xdist process report its number; all processes collect the same tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[_left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the number of a process of pytest-xdist; one that died has none."""
    reported = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[_left_out] = max(reported, node.config.stash[_left_out])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Report how many tests were left out."""
    if count := config.stash[_left_out]:
        terminalreporter.write_line(f"{count} slow tests left out; scripts/test --all runs them")
