"""Following a replica with `async for`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from broker.core.queues import ReaderQueue
from broker.engine.replica import ReplicaEngine

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
        make: Callable[[Callable[[], object]], ReaderQueue[T]],
    ) -> None:
        engine.check_fork()
        self._replica = replica
        self._engine = engine
        self._ready = asyncio.Event()
        self._queue = make(self._ready.set)
        self._taken: list[T] = []
        # An iterator that is dropped without `close()` must not be filled for ever.
        weakref.finalize(self, self._queue.abandon).atexit = False
        engine.add_queue(self._queue)

    def __aiter__(self) -> AsyncIterator[T]:
        """Return itself."""
        return self

    async def __anext__(self) -> T:
        """Wait for the next item.

        Raises:
            ChangesOverflowError: a reader of `changes()` was too slow, by its own policy.
            StopAsyncIteration: the replica or this iterator was closed.
        """
        self._engine.check_fork()
        while not self._taken:
            self._ready.clear()
            try:
                self._taken = self._queue.take()[::-1]
            except StopIteration:
                raise StopAsyncIteration from None
            if not self._taken:
                await self._ready.wait()
                self._engine.check_fork()
        return self._taken.pop()

    async def aclose(self) -> None:
        """End the iteration as `close()` does, for `contextlib.aclosing`."""
        self.close()

    def close(self) -> None:
        """End the iteration; items that are queued can still be read."""
        self._engine.remove_queue(self._queue)
