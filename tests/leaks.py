"""A pytest plugin that lets the test fail that leaves a connection open, not a later one.

A transport that nobody closed warns when it is collected, at any time. So garbage is collected at
the end of each test that made an event loop; other tests need no such delay. A loop that still runs
on a thread is never garbage; it has to be closed too, unless a fixture of several tests made it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator, Iterator
from weakref import WeakSet

import pytest

_init = asyncio.BaseEventLoop.__init__


class Loops:
    """The event loops of the current test.

    Attributes:
        made: how many were made, by the test or a fixture.
        own: those that have to be closed at its end.
    """

    def __init__(self) -> None:
        self.made = 0
        self.own: WeakSet[asyncio.BaseEventLoop] = WeakSet()

    def add(self, loop: asyncio.BaseEventLoop) -> None:
        """Count a new loop."""
        self.made += 1
        self.own.add(loop)

    def clear(self) -> None:
        """Begin with the next test."""
        self.made = 0
        self.own.clear()


_loops = Loops()


def _init_and_count(loop: asyncio.BaseEventLoop) -> None:
    _init(loop)
    _loops.add(loop)


def pytest_configure() -> None:
    """Count each event loop that is made from now on."""
    asyncio.BaseEventLoop.__init__ = _init_and_count  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """Exempt what was imported from collections, most of whose time it would take."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
    """Exempt loops that a fixture of several tests makes."""
    before = set(_loops.own)
    try:
        return (yield)
    finally:
        if fixturedef.scope != "function":
            _loops.own.intersection_update(before)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Check after all other fixtures of the test; a warning of the collection is its error."""
    _loops.clear()
    yield
    if _loops.made:
        gc.collect()
    left = [loop for loop in _loops.own if not loop.is_closed()]
    assert not left, "the test left an event loop open"
