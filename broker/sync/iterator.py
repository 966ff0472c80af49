"""Following a replica with an ordinary `for`, on any thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Generic, TypeVar

from broker.core.queues import ReaderQueue
from broker.engine.replica import ReplicaEngine
from broker.runtime.bell import Bell
from broker.runtime.forks import ForkGuard
from broker.sync.loop_thread import LoopThread

T = TypeVar("T")


class Reader(Generic[T]):
    """An iterator over the changes of a replica; `close()`, from any thread, ends it.

    Args:
        replica: not closed as forgotten while this iterator is used.
        engine: of the replica.
        thread: on which the replica runs.
        make: makes the queue, given the function that it has to notify.

    Raises:
        ForkedError: the replica belongs to the process that forked this one.
    """

    def __init__(
        self,
        replica: object,
        engine: ReplicaEngine,
        thread: LoopThread,
        make: Callable[[Callable[[], object]], ReaderQueue[Any, T]],
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._thread = thread
        self._bell = Bell()
        self._queue = make(self._bell.ring)
        # Shared by all who read: what one of them leaves is read by the next.
        self._items: Iterator[T] = iter(())
        self._fork = ForkGuard("reader", self)
        self._fork.call_in_child(self._queue.forget)
        # An iterator that is dropped without `close()` must not be filled for ever.
        weakref.finalize(self, self._queue.abandon).atexit = False
        if thread.is_closed:
            thread.guard.check()
            engine.add_queue(self._queue)
        else:
            thread.run(lambda: engine.add_queue(self._queue))

    def __iter__(self) -> Iterator[T]:
        """Iterate; what a loop leaves is read by the next one."""
        # The items of one batch take no step of Python here.
        return chain.from_iterable(iter(self._next_items, None))

    def __next__(self) -> T:
        """Wait for the next item.

        Raises:
            ChangesOverflowError: a reader of `changes()` was too slow, by its own policy.
            StopIteration: the replica or this iterator was closed.
        """
        while True:
            for item in self._items:
                return item
            self._items = self._next_items()

    def _next_items(self) -> Iterator[T]:
        """Wait for items, and return an iterator over the oldest; raises as `__next__`."""
        was_woken = False
        while True:
            self._thread.guard.check()
            try:
                items = self._queue.items()
            except Exception:
                # The bell wakes one thread: each that finds the end wakes the next one.
                self._bell.ring()
                raise
            if items is not None:
                if was_woken and not self._queue.is_empty:
                    self._bell.ring()
                return items
            self._bell.wait()
            was_woken = True

    def close(self) -> None:
        """End the iteration; items that are queued can still be read."""
        self._queue.close()
        # The loop may end meanwhile.
        with suppress(RuntimeError):
            if not self._thread.is_closed:
                self._thread.loop.call_soon_threadsafe(self._engine.remove_queue, self._queue)
