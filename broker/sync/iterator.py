"""Following a replica with an ordinary `for`, on any thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from broker.core.queues import Bell, ReaderQueue
from broker.engine.replica import ReplicaEngine
from broker.sync.loop_thread import LoopThread

T = TypeVar("T")


class Reader(Generic[T]):
    """An iterator over the changes of a replica; `close()`, from any thread, ends it.

    Args:
        engine: of the replica.
        thread: on which the replica runs.
        make: makes the queue, given the function that it has to notify.

    Raises:
        ForkedError: the replica belongs to the process that forked this one.
    """

    def __init__(
        self,
        engine: ReplicaEngine,
        thread: LoopThread,
        make: Callable[[Callable[[], object]], ReaderQueue[T]],
    ) -> None:
        self._engine = engine
        self._thread = thread
        self._bell = Bell()
        self._queue = make(self._bell.ring)
        self._taken: list[T] = []
        # An iterator that is dropped without `close()` must not be filled for ever.
        weakref.finalize(self, self._queue.abandon).atexit = False
        if thread.is_closed:
            thread.guard.check()
            engine.add_queue(self._queue)
        else:
            thread.run(lambda: engine.add_queue(self._queue))

    def __iter__(self) -> Iterator[T]:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Wait for the next item.

        Raises:
            ChangesOverflowError: a reader of `changes()` was too slow, by its own policy.
            StopIteration: the replica or this iterator was closed.
        """
        while not self._taken:
            self._thread.guard.check()
            self._taken = self._queue.take()[::-1]
            if not self._taken:
                self._bell.wait()
        return self._taken.pop()

    def close(self) -> None:
        """End the iteration; items that are queued can still be read."""
        self._queue.close()
        if not self._thread.is_closed:
            self._thread.loop.call_soon_threadsafe(self._engine.remove_queue, self._queue)
