"""The loop of every worker: poll, sleep until woken or due, stop on request.

A worker is one `poll()` that returns how long it may sleep. Independent of Redis.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from broker.errors import BackendError
from broker.runtime.backoff import Backoff
from broker.runtime.outage_log import OutageLog
from broker.runtime.tasks import cancel_and_wait

log = logging.getLogger(__name__)

RETRY_FIRST = 0.05
RETRY_MAX = 1.0
STOP_GRACE_S = 0.3

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error
    """Work was cancelled because the process must stop."""


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


def poll_outage(name: str) -> OutageLog:
    """Return the log of failed polls of a worker."""
    return OutageLog(log, "poll_failed", f"worker={name}")


async def run_loop(
    name: str,
    poll: Callable[[], Coroutine[Any, Any, float]],
    wake: asyncio.Event,
    stop: asyncio.Event,
    *,
    shard: int | None = None,
    outage: OutageLog | None = None,
) -> None:
    """Poll until stopped; a poll in progress may finish if it does so in time.

    Args:
        name: for the log.
        poll: does what is due, returns seconds to sleep (0: there is more). After a
            `BackendError`, which is logged, it is called again with backoff and jitter.
        wake: ends the sleep early.
        stop: ends the loop within `STOP_GRACE_S` seconds.
        shard: that is polled; None for all.
        outage: of the loops of all shards; None: of this loop alone.
    """
    waking = asyncio.create_task(_wake_on(stop, wake))
    try:
        await run_until_stopped(
            _poll_until_stopped(poll, wake, stop, shard, outage or poll_outage(name)), stop
        )
    except Stopped:
        return
    finally:
        await cancel_and_wait([waking])


async def _poll_until_stopped(
    poll: Callable[[], Coroutine[Any, Any, float]],
    wake: asyncio.Event,
    stop: asyncio.Event,
    shard: int | None,
    outage: OutageLog,
) -> None:
    # All polls are one task: tasks of its own would cost a poll more than its commands do.
    retry = Backoff(RETRY_FIRST, RETRY_MAX)
    while not stop.is_set():
        wake.clear()
        try:
            sleep = await poll()
            retry.reset()
            outage.ended(shard)
        except BackendError as error:
            sleep = retry.next()
            outage.failed(error, shard=shard)
        if sleep > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(sleep):
                    await wake.wait()
        else:
            # Let the other tasks of this process run.
            await asyncio.sleep(0)


async def _wake_on(stop: asyncio.Event, wake: asyncio.Event) -> None:
    await stop.wait()
    wake.set()


def log_health_change(worker: str, before: str, verdict: str) -> str:
    """Log that a worker turned red or green, once per change; return the verdict.

    Args:
        worker: its name.
        before: the last verdict, "" for green.
        verdict: the current one.
    """
    if verdict and not before:
        log.error("health_red worker=%s reason=%s", worker, verdict)
    elif before and not verdict:
        log.info("health_green worker=%s", worker)
    return verdict


async def run_until_stopped(
    work: Coroutine[Any, Any, T], stop: asyncio.Event, grace: float = STOP_GRACE_S
) -> T:
    """Return the result of `work`, or cancel it after `stop`.

    Args:
        work: each of its commands is atomic on the server, so it may be cancelled anywhere.
        stop: the request to stop.
        grace: seconds that the work may continue after the request.

    Raises:
        Stopped: it was cancelled.
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


async def wait_for_any(timeout: float, *events: asyncio.Event) -> None:  # noqa: ASYNC109
    """Return when one of the events is set, or after `timeout` seconds."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(tasks)
