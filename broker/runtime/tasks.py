"""Cancel tasks reliably, and shield work from cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

RECANCEL_INTERVAL_S = 0.05

_finishing: set[asyncio.Task[Any]] = set()


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks until they have ended; their errors are dropped.

    One cancel is not enough: up to Python 3.11 `asyncio.wait_for`, which the Redis client uses,
    swallows a cancel that arrives just after the awaited future has finished.

    Raises:
        asyncio.CancelledError: the caller was cancelled too; raised only once the tasks have ended,
            since a task left behind would connect again after its connections were closed.
    """
    waiting = {task for task in tasks if task is not None}
    cut_off: asyncio.CancelledError | None = None
    while waiting:
        for task in waiting:
            task.cancel()
        try:
            await asyncio.wait(waiting, timeout=RECANCEL_INTERVAL_S)
        except asyncio.CancelledError as error:
            cut_off = error
        done = {task for task in waiting if task.done()}
        waiting -= done
        for task in done:
            if not task.cancelled():
                task.exception()
    if cut_off is not None:
        raise cut_off


async def run_shielded(work: Coroutine[Any, Any, Any]) -> None:
    """Run work that continues in the background if the caller is cancelled."""
    task = asyncio.create_task(work)
    _finishing.add(task)
    task.add_done_callback(_finishing.discard)
    await asyncio.shield(task)
