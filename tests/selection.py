"""A pytest plugin that selects the tests to run when the command line names none.

All tests run when `--all` is given; those that are named run when anything says which tests to
run: a path, -k, -m or --last-failed. Otherwise slow tests are left out, and a test that exists once
for each kind of server runs with one of them, in turns. One line at the end tells how many are left
out.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from broker.testing.server import KINDS, find_binary

NO_DOCKER = "not docker"
NO_SLOW = "not docker and not slow"
EFFORT = "TEST_EFFORT"
LESS_EFFORT = "0.25"

# How many tests are left out: slow ones, and those that run with another server.
_left_out = pytest.StashKey[tuple[int, int]]()


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
    config.stash[_left_out] = (0, 0)
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


def twins(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that need not run, since they run with another server.

    Of quick tests that differ only in the kind of the server one is kept: in each folder the kind
    that has the fewest so far. Those of a kind without a server are kept too, to be skipped with
    the reason.
    """
    there = [kind for kind in KINDS if not isinstance(find_binary(kind), str)]
    groups: dict[tuple[str, ...], dict[str, pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("docker"):
            continue
        given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        ways = [name for name, value in given.items() if isinstance(value, str) and value in KINDS]
        if len(ways) == 1:
            kind = given.pop(ways[0])
            rest = sorted(f"{name}={value!r}" for name, value in given.items())
            groups.setdefault((item.nodeid.partition("[")[0], *rest), {})[kind] = item
    left: list[pytest.Item] = []
    runs: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (name, *_), group in groups.items():
        able = [kind for kind in there if kind in group]
        if able:
            here = runs[name.rpartition("/")[0]]
            kept = min(able, key=here.__getitem__)
            here[kept] += 1
            left += (group[kind] for kind in able if kind != kept)
    return left


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that run with another server."""
    if config.option.markexpr == NO_SLOW:
        others = twins(items)
        config.hook.pytest_deselected(items=others)
        left = set(others)
        items[:] = [one for one in items if one not in left]


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the tests that are left out."""
    if items and items[0].config.option.markexpr == NO_SLOW:
        stash = items[0].config.stash
        slow, others = stash[_left_out]
        for item in items:
            is_slow = item.get_closest_marker("slow") is not None
            if not item.get_closest_marker("docker"):
                slow, others = slow + is_slow, others + (not is_slow)
        stash[_left_out] = slow, others


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a pytest-xdist process report its number; all processes collect the same tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[_left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the numbers of a process of pytest-xdist; one that died has none."""
    reported = tuple(getattr(node, "workeroutput", {}).get("left_out", (0, 0)))
    node.config.stash[_left_out] = max(reported, node.config.stash[_left_out])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Report how many tests were left out."""
    slow, others = config.stash[_left_out]
    if slow or others:
        terminalreporter.write_line(
            f"left out: {slow} slow tests, {others} that ran with another server; "
            "scripts/test --all runs them"
        )
