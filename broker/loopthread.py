"""An event loop on a thread of its own: the sync faces are the asyncio ones, run there."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from broker.errors import ForkedError

T = TypeVar("T")

_alive: weakref.WeakSet[LoopThread] = weakref.WeakSet()


class LoopThread:
    """A daemon thread that runs one event loop until `stop`.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.forked: ForkedError | None = None
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _alive.add(self)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result.

        Ctrl-C while waiting cancels it.

        Raises:
            ForkedError: this is a forked child, where the thread does not exist.
        """
        if self.forked is not None:
            work.close()
            raise self.forked
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End loop and thread; calling it again does nothing."""
        if self.forked is not None or self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        _alive.discard(self)


def _mark_forked() -> None:
    """In a forked child the threads are gone: turn every later call into an error, not a hang."""
    for thread in list(_alive):
        thread.forked = ForkedError(
            f"{thread.name} was made before a fork and cannot be used in the child (pid "
            f"{os.getpid()}); make a new one there, or start processes with 'spawn'"
        )


os.register_at_fork(after_in_child=_mark_forked)
