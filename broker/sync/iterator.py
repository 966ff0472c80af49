"""Following a replica with an ordinary `for`, on any thread."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from broker.core.queues import ReaderQueue
from broker.engine.replica import ReplicaEngine
from broker.runtime.bell import Bell
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
        make: Callable[[Callable[[], object]], ReaderQueue[T]],
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._thread = thread
        self._bell = Bell()
        self._queue = make(self._bell.ring)
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
        was_woken = False
        while True:
            self._thread.guard.check()
            try:
                item = self._queue.take_one()
            except Exception:
                # The bell wakes one thread: each that finds the end wakes the next one.
                self._bell.ring()
                raise
            if item is not None:
                if was_woken and not self._queue.is_empty:
                    self._bell.ring()
                return item
            self._bell.wait()
            was_woken = True

    def close(self) -> None:
        """End the iteration; items that are queued can still be read."""
        self._queue.close()
        # The loop may end meanwhile.
        with suppress(RuntimeError):
            if not self._thread.is_closed:
                self._thread.loop.call_soon_threadsafe(self._engine.remove_queue, self._queue)
