"""The loop of every worker: poll, sleep until told or until it is time, stop when asked.

A worker is one `poll()` that returns how long it may sleep. Knows no Redis.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from broker.errors import BackendError
from broker.runtime.backoff import Backoff
from broker.runtime.tasks import cancel_and_wait

log = logging.getLogger(__name__)

RETRY_FIRST = 0.05
RETRY_MAX = 1.0
STOP_GRACE = 0.3

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error
    """Work was cut off because the process has to stop."""


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first(number: int) -> None:
        log.info("stopping signal=%s", signal.Signals(number).name)
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first, number)
    return stop


async def run_loop(
    name: str,
    poll: Callable[[], Coroutine[Any, Any, float]],
    wake: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    """Poll until stopped; a poll under way may finish, if the server still answers.

    Args:
        name: for the log.
        poll: does what is due, returns seconds to sleep (0: there is more). A `BackendError` is
            logged and tried again, later and later, with jitter.
        wake: ends the sleep early.
        stop: ends the loop, at the latest `STOP_GRACE` seconds after.
    """
    retry = Backoff(RETRY_FIRST, RETRY_MAX)
    while not stop.is_set():
        wake.clear()
        try:
            sleep = await unless_stopped(poll(), stop)
            retry.reset()
        except Stopped:
            return
        except BackendError as error:
            sleep = retry.next()
            log.warning("poll_failed worker=%s error=%s", name, error)
        if sleep > 0:
            await first_of(sleep, wake, stop)
        else:
            # Backlog must not keep the other tasks of this process from running.
            await asyncio.sleep(0)


def tell_health(worker: str, before: str, verdict: str) -> str:
    """Log that a worker turned red or green, once per change; return the verdict.

    Args:
        worker: its name.
        before: the verdict that was told last, "" for green.
        verdict: the one of now.
    """
    if verdict and not before:
        log.error("health_red worker=%s reason=%s", worker, verdict)
    elif before and not verdict:
        log.info("health_green worker=%s", worker)
    return verdict


async def unless_stopped(
    work: Coroutine[Any, Any, T], stop: asyncio.Event, grace: float = STOP_GRACE
) -> T:
    """Return what `work` returns.

    Args:
        work: each of its commands is atomic on the server, so it may be cut off between any two.
        stop: cuts it off.
        grace: seconds it still has then.

    Raises:
        Stopped: it was cut off.
    """
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait((task,), timeout=grace)
        if not task.done():
            raise Stopped
        return task.result()
    finally:
        await cancel_and_wait([task, stopping])


async def first_of(timeout: float, *events: asyncio.Event) -> None:  # noqa: ASYNC109
    """Return when one of the events is set, or after `timeout` seconds."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(tasks)
