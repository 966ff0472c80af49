"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

CANCEL_AGAIN = 0.05


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
