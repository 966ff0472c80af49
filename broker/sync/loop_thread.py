"""An event loop on a thread of its own: the sync faces are the asyncio ones, run there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from broker.errors import ClosedError
from broker.runtime.eventloop import EventLoop
from broker.runtime.forks import ForkGuard
from broker.runtime.tasks import cancel_and_wait

T = TypeVar("T")


class LoopThread:
    """A daemon thread that runs one event loop until `stop`.

    Args:
        name: of the thread, and of the object it works for.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.guard = ForkGuard(name, self)
        self.loop = EventLoop()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result.

        Ctrl-C while waiting cancels it.

        Raises:
            ForkedError: this is a forked child, where the thread does not exist.
            ClosedError: the loop was stopped, before or while waiting.
        """
        try:
            future = self._submit(work)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            if self._closed:
                raise self._gone() from None
            raise
        except BaseException:
            future.cancel()
            raise

    def run(self, act: Callable[[], T]) -> T:
        """Call a function between two steps of the loop, and return its result.

        Raises:
            ForkedError, ClosedError: as `call`.
        """

        async def acted() -> T:
            return act()

        return self.call(acted())

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        self.guard.check()
        with self._closing:
            if self._closed:
                raise self._gone()
            return asyncio.run_coroutine_threadsafe(work, self.loop)

    def _gone(self) -> ClosedError:
        return ClosedError(f"{self.name} is closed; make a new one")

    def stop(self) -> None:
        """End loop and thread; waiting calls raise `ClosedError`. May be repeated."""
        if self.guard.is_forked:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    @property
    def is_closed(self) -> bool:
        """Whether the loop has ended, or belongs to another process."""
        return self._closed or self.guard.is_forked


async def _cancel_others() -> None:
    await cancel_and_wait(asyncio.all_tasks() - {asyncio.current_task()})
