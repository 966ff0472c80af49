"""Wait for a condition instead of sleeping."""

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
    """Call `predicate` until its result is true, and return that result.

    Args:
        predicate: called at least once; its exceptions are passed on.
        timeout: seconds.
        message: describes the condition; a callable is called on failure, to describe the state.
        pause: seconds between two calls.

    Raises:
        AssertionError: timeout; contains `message` and the last result.
    """
    deadline = time.monotonic() + timeout
    while not (result := predicate()):
        if time.monotonic() > deadline:
            what = message() if callable(message) else message
            raise AssertionError(f"not within {timeout:g} s: {what} (last result: {result!r})")
        time.sleep(pause)
    return result
