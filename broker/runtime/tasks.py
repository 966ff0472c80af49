"""Cancel tasks reliably, and shield work from cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

RECANCEL_INTERVAL_S = 0.05

T = TypeVar("T")

_finishing: set[asyncio.Task[Any]] = set()


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks until they have ended; their errors are dropped.

    One cancel may not be enough: up to Python 3.11 `asyncio.wait_for`, which libraries use, loses a
    cancellation that arrives just after the awaited future has finished.

    Raises:
        asyncio.CancelledError: the caller was cancelled too; raised only once the tasks have ended,
            since a task left behind would connect again after its connections were closed.
    """
    # A task of a loop that has ended cannot run any more, so nothing has to be waited for.
    waiting = {task for task in tasks if task is not None and not task.get_loop().is_closed()}
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


def run_detached(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run work on this loop without anybody waiting for it."""
    task = asyncio.create_task(work)
    _finishing.add(task)
    task.add_done_callback(_finishing.discard)
    return task


async def run_shielded(work: Coroutine[Any, Any, Any]) -> None:
    """Run work that continues in the background if the caller is cancelled."""
    await asyncio.shield(run_detached(work))


async def first_success(
    attempts: Iterable[Callable[[], Coroutine[Any, Any, T]]],
    stagger_s: float,
    discard: Callable[[T], object] = lambda _: None,
) -> T:
    """Return the first result; the next attempt starts when one fails or is slow.

    Args:
        attempts: at least one, in the order in which they start.
        stagger_s: seconds after which an attempt counts as slow; it goes on.
        discard: called with results that come too late.

    Raises:
        ExceptionGroup: every attempt failed; it has their errors.
    """
    waiting = list(attempts)
    running: set[asyncio.Task[T]] = set()
    errors: list[Exception] = []
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.create_task(waiting.pop(0)()))
            done, running = await asyncio.wait(
                running,
                timeout=stagger_s if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            good = [task.result() for task in done if task.exception() is None]
            for late in good[1:]:
                discard(late)
            if good:
                return good[0]
            errors += [error for task in done if isinstance(error := task.exception(), Exception)]
    finally:
        try:
            await cancel_and_wait(running)
        finally:
            # Also if the caller was cancelled meanwhile.
            for task in running:
                if not task.cancelled() and task.exception() is None:
                    discard(task.result())
    raise ExceptionGroup("every attempt failed", errors)


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until an event is set, or for so long; false if it was not."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
