"""Tasks always end, whichever waiter is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

import pytest

from broker.runtime.tasks import cancel_and_wait, first_success


async def stubborn(begun: asyncio.Event, cancels: int) -> None:
    """Run until it is cancelled more often than this."""
    begun.set()
    for _ in range(cancels):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    await asyncio.Event().wait()


async def begin(cancels: int) -> asyncio.Task[None]:
    """Return a stubborn task that is under way."""
    begun = asyncio.Event()
    task = asyncio.create_task(stubborn(begun, cancels))
    await begun.wait()
    return task


def test_a_task_that_swallows_a_cancel_is_cancelled_again() -> None:
    """The caller returns only once the task has ended."""

    async def play() -> None:
        task = await begin(cancels=2)
        await cancel_and_wait([task, None])
        assert task.cancelled()

    asyncio.run(play())


def test_who_is_cancelled_while_ending_others_leaves_none_behind() -> None:
    """A worker's poll that is left behind would connect after the session was closed."""

    async def play() -> None:
        task = await begin(cancels=3)
        ending = asyncio.create_task(cancel_and_wait([task]))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        left_behind = not task.done()
        await cancel_and_wait([task])
        assert not left_behind

    asyncio.run(play())


def test_errors_of_what_is_ended_are_dropped() -> None:
    """An error of an ended task is ignored, without a warning of asyncio."""
    reported: list[object] = []

    async def fail(begun: asyncio.Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context)
        )
        begun = asyncio.Event()
        failing = asyncio.create_task(fail(begun))
        await begun.wait()
        await cancel_and_wait([failing])
        assert not failing.cancelled()
        # asyncio complains when such a task is collected.
        del failing
        gc.collect()

    asyncio.run(play())
    assert reported == []


def test_a_late_result_is_discarded_though_the_caller_is_cancelled_twice() -> None:
    """A connection that is made while its caller is being cancelled must not stay open."""
    discarded: list[str] = []

    async def late() -> str:
        for _ in range(10):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        return "late"

    async def play() -> None:
        waiting = asyncio.create_task(first_success([late], 1.0, discarded.append))
        for _ in range(2):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(play())
    assert discarded == ["late"]
