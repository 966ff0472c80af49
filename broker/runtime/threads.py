"""Daemon threads: one that cannot be started leaves nothing behind, and none delays the end."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def start_thread(target: Callable[[], object], name: str) -> Thread:
    """Start a daemon thread.

    Raises:
        OSError: the system has none left (EAGAIN), so that callers treat it like other shortages.
    """
    thread = Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(
            errno.EAGAIN,
            f"cannot start the thread {name!r} ({error}); raise the limit of processes (ulimit -u, "
            "or pids of the container)",
        ) from error
    return thread


def call_on_thread(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Call a blocking function on a thread of its own; called on the loop that gets the result.

    Unlike the executor of asyncio it also works while the interpreter ends, and a call that does
    not return delays neither that nor the end of the loop.

    Raises:
        OSError: no thread can be started.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        try:
            result, error = function(), None
        except Exception as caught:  # noqa: BLE001 - raised where the answer is awaited
            result, error = None, caught
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, answer, result, error)

    start_thread(call, name)
    return answer


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.cancelled():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
