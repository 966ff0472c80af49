"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

CANCEL_AGAIN = 0.05

_finishing: set[asyncio.Task[Any]] = set()


async def end(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks until they have ended; their errors are dropped.

    One cancel is not enough: up to Python 3.11 `asyncio.wait_for`, which the Redis client uses,
    swallows a cancel that comes when what it waits for has just finished, and the task goes on.
    """
    waiting = {task for task in tasks if task is not None}
    while waiting:
        for task in waiting:
            task.cancel()
        done, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN)
        for task in done:
            if not task.cancelled():
                task.exception()


async def to_the_end(work: Coroutine[Any, Any, Any]) -> None:
    """Do something that a cancel does not cut off: who waits is let go, the work goes on."""
    task = asyncio.create_task(work)
    _finishing.add(task)
    task.add_done_callback(_finishing.discard)
    await asyncio.shield(task)
