"""How objects of the sync face end: by `close()`, when they are forgotten, or with the program.

A finalizer runs wherever the garbage collector happens to: on the object's own loop, in a signal
handler, below any lock. So it never waits: it only tells the loop to close, and the thread ends by
itself. Only the end of the program waits, for a limited time.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from broker.errors import BrokerError
from broker.runtime.forks import ForkGuard

log = logging.getLogger(__name__)

END_TIMEOUT_S = 10.0  # as a producer's close()
# Seconds beyond a call's own timeout, after which the loop itself is considered as blocked.
GRACE_S = 2.0


class EndingThread(Protocol):
    """A thread that runs an event loop, as `broker.sync.loop_thread.LoopThread`."""

    name: str
    guard: ForkGuard

    @property
    def is_here(self) -> bool:
        """Whether the caller is on this thread."""

    def call(self, work: Coroutine[Any, Any, object], timeout: float | None) -> object:
        """Run a coroutine on the loop and wait for its end."""

    def stop_after(self, last: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run one last coroutine and stop, without waiting."""

    def stop(self, timeout: float | None) -> None:
        """End loop and thread."""

    def join(self, timeout: float | None) -> None:
        """Wait until the thread has ended."""


class Closing:
    """Closes one object exactly once.

    Args:
        owner: the object; not kept alive by this.
        thread: of its loop, which ends with it.
        finish: closes its engine; for an end that nobody waits for.
    """

    def __init__(
        self,
        owner: object,
        thread: EndingThread,
        finish: Callable[[], Coroutine[Any, Any, object]],
    ) -> None:
        self.thread = thread
        self._finish = finish
        self._unclaimed = [True]
        self._finalizer = weakref.finalize(owner, self._forgotten)
        self._finalizer.atexit = False
        _open.add(self)
        _run_at_end_of_child()

    def close(
        self,
        work: Callable[[], Coroutine[Any, Any, object]],
        timeout: float | None,
        *,
        waits: bool = True,
    ) -> None:
        """Close the engine, then end the thread. Only the first call of all ways does it.

        Args:
            work: closes the engine.
            timeout: seconds that `work` may take by itself; None: no limit.
            waits: false where the caller must not wait. It is then closed in the background, as it
                is for callers on the loop's own thread.
        """
        if not self.claim():
            return
        if self.thread.is_here or not waits:
            self.begin()
            return
        is_stuck = True
        try:
            self.thread.call(work(), timeout)
            is_stuck = False
        finally:
            self.thread.stop(GRACE_S if is_stuck else None)
            _open.discard(self)

    def claim(self) -> bool:
        """Return true for the first caller only; false for all in a forked child."""
        if self.thread.guard.is_forked:
            return False
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        self._finalizer.detach()
        return True

    def begin(self) -> None:
        """Close in the background; the caller has claimed it."""
        self.thread.stop_after(self._finished)

    async def _finished(self) -> None:
        try:
            await self._finish()
        except BrokerError as error:
            log.error("close_failed name=%s error=%s", self.thread.name, error)  # noqa: TRY400
        finally:
            _open.discard(self)

    def _forgotten(self) -> None:
        if self.claim():
            self.begin()
            warnings.warn(
                f"{self.thread.name} was not closed; use `with`, or call close()",
                ResourceWarning,
                stacklevel=2,
            )


_open: set[Closing] = set()
_registered = -1  # the process whose children were provided for


@atexit.register
def _close_all() -> None:
    """Close what the program left open: deltas in buffers still get sent."""
    mine = [closing for closing in list(_open) if not closing.thread.guard.is_forked]
    for closing in mine:
        if closing.claim():
            closing.begin()
    deadline = time.monotonic() + END_TIMEOUT_S + GRACE_S
    for closing in mine:
        closing.thread.join(max(0.0, deadline - time.monotonic()))


def _run_at_end_of_child() -> None:
    """Register with multiprocessing: its forked children skip Python's exit handlers."""
    global _registered  # noqa: PLW0603 - one for each process
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _registered != os.getpid():
        _registered = os.getpid()
        util.Finalize(None, _close_all, exitpriority=10)
