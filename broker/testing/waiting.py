"""Waiting for a condition, so that nothing sleeps and hopes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.005


def eventually(
    predicate: Callable[[], T],
    timeout: float = 10.0,
    message: str | Callable[[], str] = "condition",
    pause: float = POLL_SECONDS,
) -> T:
    """Return the first true result of `predicate`, asked again and again.

    Args:
        predicate: asked at least once; what it raises is passed on.
        timeout: seconds.
        message: what was waited for; a callable is asked on failure, so that it can tell the state.
        pause: seconds between two questions; more than 5 ms where asking is dear.

    Raises:
        AssertionError: the time is over; it says `message` and the last result.
    """
    deadline = time.monotonic() + timeout
    while not (result := predicate()):
        if time.monotonic() > deadline:
            told = message() if callable(message) else message
            raise AssertionError(f"not within {timeout:g} s: {told} (last result: {result!r})")
        time.sleep(pause)
    return result
