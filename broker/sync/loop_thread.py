"""An event loop on a thread of its own: the sync faces run the engines there.

Callers wait on a `SimpleQueue` and hold no lock: a signal handler that interrupts one of them at
any point can call and wait itself, and the loop never waits for what a caller holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import Any, TypeVar

from broker.errors import BrokerError, ClosedError, ReentrantError
from broker.runtime.closing import GRACE_S
from broker.runtime.eventloop import EventLoop
from broker.runtime.forks import ForkGuard
from broker.runtime.greenlets import refuse_greenlets
from broker.runtime.tasks import cancel_and_wait
from broker.runtime.threads import start_thread

T = TypeVar("T")

# The task that ended; None: the loop ended first.
_Answer = SimpleQueue[asyncio.Task[Any] | None]


class LoopThread:
    """A daemon thread that runs one event loop until `stop`.

    Args:
        name: of the thread, and of the object it works for.

    Raises:
        BrokerError: no thread can be started, or gevent or eventlet replaced threads.
    """

    def __init__(self, name: str) -> None:
        refuse_greenlets(name)
        self.name = name
        self.guard = ForkGuard(name, self)
        self.loop = EventLoop()
        self._closed = False
        self._is_ending = False
        self._stops = [True]
        self._callers: set[_Answer] = set()
        try:
            self._thread = start_thread(self._run, name)
        except OSError as error:
            self.loop.close()
            raise BrokerError(str(error)) from error

    def _run(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            self._is_ending = True
            loop.run_until_complete(_cancel_others())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            self._closed = True
            asyncio.set_event_loop(None)
            loop.close()
            # Whoever was too late for the loop: later callers see that it is closed.
            for answer in list(self._callers):
                answer.put(None)

    @property
    def is_here(self) -> bool:
        """Whether the caller is on this thread, which cannot wait for itself."""
        return get_ident() == self._thread.ident

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for its result.

        Ctrl-C while waiting cancels it.

        Args:
            work: the coroutine.
            timeout: the seconds that it is given itself, if it is; its own error names them.

        Raises:
            ForkedError: this is a forked child, where the thread does not exist.
            ClosedError: the loop was stopped, before or while waiting.
            ReentrantError: the caller is on the loop's own thread.
            TimeoutError: the loop is blocked, so that the coroutine cannot keep its own timeout.
        """
        answer: _Answer = SimpleQueue()
        try:
            self._submit(work, answer)
        except BaseException:
            work.close()
            raise
        try:
            task = answer.get(timeout=None if timeout is None else max(0.0, timeout) + GRACE_S)
        except Empty:
            self._cancel(work)
            raise TimeoutError(
                f"{self.name} did nothing for {timeout:g} s: its thread is blocked, as by a long "
                "function given to TableView.read()"
            ) from None
        except BaseException:
            self._cancel(work)
            raise
        finally:
            self._callers.discard(answer)
        try:
            if task is None or task.cancelled():
                work.close()
                raise self._gone()
            return task.result()  # type: ignore[no-any-return]
        finally:
            # The traceback of its error refers to this frame.
            del task

    def run(self, act: Callable[[], T]) -> T:
        """Call a function between two steps of the loop, and return its result.

        On the loop's own thread it is called at once.

        Raises:
            ForkedError, ClosedError: as `call`.
        """
        if self.is_here:
            self.guard.check()
            return act()

        async def acted() -> tuple[T | None, BaseException | None]:
            try:
                return act(), None
            except BaseException as error:  # noqa: BLE001 - SystemExit, too, is the caller's
                return None, error

        result, error = self.call(acted())
        try:
            if error is not None:
                raise error
            return result  # type: ignore[return-value]
        finally:
            del error

    def _submit(self, work: Coroutine[Any, Any, Any], answer: _Answer) -> None:
        self.guard.check()
        if self.is_here:
            raise ReentrantError(
                f"{self.name} cannot wait on its own thread: within TableView.read() call nothing "
                "that waits or closes; do it when read() has returned"
            )
        # In this order: the thread sets `_closed`, and then answers all callers it finds.
        self._callers.add(answer)
        with suppress(RuntimeError):
            if not self._closed:
                self.loop.call_soon_threadsafe(self._begin, work, answer)
                return
        self._callers.discard(answer)
        raise self._gone()

    def _begin(self, work: Coroutine[Any, Any, Any], answer: _Answer) -> None:
        if answer not in self._callers:
            # Its caller gave up while the loop was blocked.
            work.close()
        elif self._is_ending:
            answer.put(None)
        else:
            task = self.loop.create_task(work)
            task.add_done_callback(answer.put)

    def _cancel(self, work: Coroutine[Any, Any, Any]) -> None:
        """Cancel the task of a coroutine whose caller does not wait any more."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(_cancel_task, work)

    def _gone(self) -> ClosedError:
        return ClosedError(f"{self.name} is closed; make a new one")

    def stop_after(self, last: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run one last coroutine and stop, without waiting; from any thread and any handler."""

        def begin() -> None:
            task = self.loop.create_task(last())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            task.add_done_callback(lambda _: self._stop_loop())

        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(begin)

    def _stop_loop(self) -> None:
        try:
            self._stops.pop()
        except IndexError:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)

    def stop(self, timeout: float | None = None) -> None:
        """End loop and thread; waiting calls raise `ClosedError`. May be repeated.

        Args:
            timeout: seconds for which to wait for the end; None: no limit.
        """
        if self.guard.is_forked:
            return
        with suppress(RuntimeError):
            self._stop_loop()
        if not self.is_here:
            self.join(timeout)

    def join(self, timeout: float | None) -> None:
        """Wait until the thread has ended, at most for so many seconds."""
        self._thread.join(timeout)

    @property
    def is_closed(self) -> bool:
        """Whether the loop has ended, or belongs to another process."""
        return self._closed or self.guard.is_forked


async def _cancel_others() -> None:
    await cancel_and_wait(asyncio.all_tasks() - {asyncio.current_task()})


def _cancel_task(work: Coroutine[Any, Any, Any]) -> None:
    for task in asyncio.all_tasks():
        if task.get_coro() is work:
            task.cancel()
