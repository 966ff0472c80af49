"""The loop of every worker: poll, sleep until told or until it is time, stop when asked.

A worker is one `poll()` that returns how long it may sleep. Knows no Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Awaitable, Callable

from broker.errors import BackendError

log = logging.getLogger(__name__)

RETRY_FIRST = 0.05
RETRY_MOST = 1.0


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first, number)
    return stop


async def run_loop(
    name: str,
    poll: Callable[[], Awaitable[float]],
    wake: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    """Poll until stopped; never in the middle of a poll.

    Args:
        name: for the log.
        poll: does what is due, returns seconds to sleep (0: there is more). A `BackendError` is
            logged and tried again, later and later, with jitter.
        wake: ends the sleep early.
        stop: ends the loop, after the poll under way.
    """
    delay = 0.0
    while not stop.is_set():
        wake.clear()
        try:
            sleep = await poll()
            delay = 0.0
        except BackendError as error:
            delay = min(RETRY_MOST, max(RETRY_FIRST, delay * 2))
            sleep = delay * random.uniform(0.5, 1.0)
            log.warning("poll_failed worker=%s error=%s", name, error)
        if sleep > 0:
            await first_of(sleep, wake, stop)
        else:
            # Backlog must not keep the other tasks of this process from running.
            await asyncio.sleep(0)


async def first_of(timeout: float, *events: asyncio.Event) -> None:  # noqa: ASYNC109
    """Return when one of the events is set, or after `timeout` seconds."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
