"""The loop of workers: it polls when woken or due, and stops soon."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count

import pytest

from broker.errors import BackendError
from workers import loop
from workers.loop import run_loop, run_until_stopped

LONG_S = 3600.0
SOON_S = 5.0


def test_a_request_to_stop_ends_the_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has nothing to do ends at once, not when its grace is over."""
    monkeypatch.setattr(loop, "run_until_stopped", partial(run_until_stopped, grace=LONG_S))

    async def work() -> None:
        wake, stop, polled = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def poll() -> float:
            polled.set()
            return LONG_S

        running = asyncio.create_task(run_loop("one", poll, wake, stop))
        await polled.wait()
        stop.set()
        async with asyncio.timeout(SOON_S):
            await running

    asyncio.run(work())


def test_a_wake_up_ends_the_sleep_also_one_during_the_poll() -> None:
    """Nothing that was said while it polled waits for the next deadline."""

    async def work() -> None:
        wake, stop = asyncio.Event(), asyncio.Event()
        numbers = count(1)

        async def poll() -> float:
            number = next(numbers)
            if number == 1:
                wake.set()
            elif number == 2:
                asyncio.get_running_loop().call_soon(wake.set)
            else:
                stop.set()
            return LONG_S

        async with asyncio.timeout(SOON_S):
            await run_loop("one", poll, wake, stop)
        assert next(numbers) == 4

    asyncio.run(work())


@pytest.mark.parametrize(("grace", "end"), [(LONG_S, "finished"), (0.0, "cancelled")])
def test_a_poll_in_progress_may_finish_if_it_does_so_in_time(
    monkeypatch: pytest.MonkeyPatch, grace: float, end: str
) -> None:
    """A worker ends although its server does not answer."""
    monkeypatch.setattr(loop, "run_until_stopped", partial(run_until_stopped, grace=grace))
    ended = []

    async def work() -> None:
        wake, stop, polled, answered = (asyncio.Event() for _ in range(4))

        async def poll() -> float:
            polled.set()
            try:
                await answered.wait()
                ended.append("finished")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return LONG_S

        running = asyncio.create_task(run_loop("one", poll, wake, stop))
        await polled.wait()
        stop.set()
        if end == "finished":
            asyncio.get_running_loop().call_soon(answered.set)
        async with asyncio.timeout(SOON_S):
            await running

    asyncio.run(work())
    assert ended == [end]


def test_a_failed_poll_is_repeated_and_any_other_error_ends_the_loop() -> None:
    """Redis may be away for a while; a fault of our own is not hidden."""

    async def work() -> None:
        errors = iter([BackendError("away"), BackendError("away"), ValueError("ours")])

        async def poll() -> float:
            raise next(errors)

        async with asyncio.timeout(SOON_S):
            with pytest.raises(ValueError, match="ours"):
                await run_loop("one", poll, asyncio.Event(), asyncio.Event())

    asyncio.run(work())
