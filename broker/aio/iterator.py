"""Following a replica with `async for`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from broker.core.queues import ReaderQueue
from broker.engine.replica import ReplicaEngine
from broker.runtime.forks import ForkGuard

T = TypeVar("T")


class Reader(Generic[T]):
    """An async iterator over the changes of a replica; `close()` ends it.

    Args:
        replica: not closed as forgotten while this iterator is used.
        engine: of the replica.
        make: makes the queue, given the function that it has to notify.

    Raises:
        ForkedError: the replica belongs to the process that forked this one.
    """

    def __init__(
        self,
        replica: object,
        engine: ReplicaEngine,
        make: Callable[[Callable[[], object]], ReaderQueue[Any, T]],
    ) -> None:
        engine.check_fork()
        self._replica = replica
        self._engine = engine
        self._ready = asyncio.Event()
        self._queue = make(self._ready.set)
        # Shared by all who read: what one of them leaves is read by the next.
        self._items: Iterator[T] = iter(())
        self._fork = ForkGuard("reader", self)
        self._fork.call_in_child(self._queue.forget)
        # An iterator that is dropped without `close()` must not be filled for ever.
        weakref.finalize(self, self._queue.abandon).atexit = False
        engine.add_queue(self._queue)

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate; what a loop leaves is read by the next one."""
        return self

    async def __anext__(self) -> T:
        """Wait for the next item.

        Raises:
            ChangesOverflowError: a reader of `changes()` was too slow, by its own policy.
            StopAsyncIteration: the replica or this iterator was closed.
        """
        while True:
            for item in self._items:
                return item
            self._engine.check_fork()
            self._ready.clear()
            try:
                items = self._queue.items()
            except StopIteration:
                raise StopAsyncIteration from None
            if items is None:
                await self._ready.wait()
            else:
                self._items = items

    async def aclose(self) -> None:
        """End the iteration as `close()` does, for `contextlib.aclosing`."""
        self.close()

    def close(self) -> None:
        """End the iteration; items that are queued can still be read."""
        self._engine.remove_queue(self._queue)
