"""Calling a user's function for each item of a queue, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from broker.core.queues import ReaderQueue
from broker.runtime.bell import Bell

log = logging.getLogger(__name__)

T = TypeVar("T")


def call_for_each(
    callback: Callable[[T], object],
    queue: ReaderQueue[Any, T],
    bell: Bell,
    name: str,
) -> None:
    """Start a daemon thread that calls a function, one call at a time, until the queue closes.

    It is also called for the items that were queued before the queue closed. Nothing waits for the
    thread: a function that hangs delays neither a replica nor its close(). An error that the
    function raises is logged, and the next call follows.

    Args:
        callback: the user's function.
        queue: the items to call it for.
        bell: the bell that the queue rings.
        name: of the thread, and of its owner in the log.
    """
    work = (callback, queue, bell, name)
    threading.Thread(target=_run, args=work, name=name, daemon=True).start()


def _run(
    callback: Callable[[T], object], queue: ReaderQueue[Any, T], bell: Bell, name: str
) -> None:
    while True:
        try:
            items = queue.items()
        except StopIteration:
            return
        if items is None:
            bell.wait()
            continue
        for item in items:
            try:
                callback(item)
            except Exception:
                log.exception("callback_failed owner=%s item=%s", name, item)
