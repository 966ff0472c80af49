"""Calling a user's function for what a queue gets, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from broker.core.queues import Bell, ReaderQueue

log = logging.getLogger(__name__)

T = TypeVar("T")


def call_for_each(
    callback: Callable[[T], object],
    queue: ReaderQueue[T],
    bell: Bell,
    name: str,
) -> None:
    """Start a daemon thread that calls a function, one call at a time, until the queue closes.

    What was told before the queue closed is still called for. Nobody waits for the thread: a
    function that hangs keeps up neither a replica nor its close(). What the function raises is
    logged, and the next call follows.

    Args:
        callback: the user's.
        queue: what it is called for.
        bell: what the queue notifies.
        name: of the thread, and of its owner in the log.
    """
    work = (callback, queue, bell, name)
    threading.Thread(target=_run, args=work, name=name, daemon=True).start()


def _run(callback: Callable[[T], object], queue: ReaderQueue[T], bell: Bell, name: str) -> None:
    while True:
        try:
            items = queue.take()
        except StopIteration:
            return
        for item in items:
            try:
                callback(item)
            except Exception:
                log.exception("callback_failed owner=%s item=%s", name, item)
        if not items:
            bell.wait()
