"""A bounded queue between a replica and one reader. No I/O; any thread may read.

There is no lock: a signal handler that interrupts a reader may wait for the replica's thread, which
then must not wait for that reader. Each step of the deque is one step of the interpreter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class ReaderQueue(Generic[T]):
    """The items that one reader has not read yet; `_shrink` defines what happens beyond the limit.

    Args:
        limit: most that waits.
        notify: called, on the replica's thread, whenever there is something to read.

    Attributes:
        conflated: how many the reader did not get one by one.
    """

    def __init__(self, limit: int, notify: Callable[[], object]) -> None:
        self._limit = limit
        self._notify = notify
        self._waiting: deque[T] = deque()
        self._is_putting = False
        self._overflowed = False
        self._closed = False
        self.conflated = 0

    def put(self, items: list[T]) -> None:
        """Add something; called by the replica, on one thread."""
        if self._closed or self._overflowed or not items:
            return
        self._is_putting = True
        try:
            if self._closed:
                # A reader that saw it closed before `_is_putting` has ended.
                return
            self._waiting.extend(items)
            if len(self._waiting) > self._limit:
                # A reader may take some meanwhile, or find nothing and wait for the notification.
                kept = deque(self._drained())
                self._shrink(kept)
                self._waiting.extend(kept)
        finally:
            self._is_putting = False
            self._notify()

    def _shrink(self, waiting: deque[T]) -> None:
        """Reduce the items to the limit; count in `conflated`, or set `_overflowed`."""
        raise NotImplementedError

    def _drained(self) -> list[T]:
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._waiting.popleft())
        return taken

    @property
    def _has_ended(self) -> bool:
        """Whether nothing will be added; what was added may still wait."""
        # In this order: a `put` that begins after the first look adds nothing.
        return (self._closed or self._overflowed) and not self._is_putting

    def take(self) -> list[T]:
        """Return everything that waits; maybe nothing.

        Raises:
            ChangesOverflowError: all was read, and later items were dropped.
            StopIteration: all was read, and the replica or the reader closed.
        """
        has_ended = self._has_ended
        taken = self._drained()
        if not taken and has_ended:
            raise self._end()
        return taken

    def take_one(self) -> T | None:
        """Return the oldest item, None if none waits. Raises as `take`."""
        has_ended = self._has_ended
        try:
            return self._waiting.popleft()
        except IndexError:
            if has_ended:
                raise self._end() from None
            return None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def _end(self) -> Exception:
        """Return the error that ends the queue."""
        return StopIteration()

    def abandon(self) -> None:
        """End it: its reader is gone. Called by the garbage collector, on any thread."""
        self._closed = True

    @property
    def is_closed(self) -> bool:
        """Whether nothing is added any more."""
        return self._closed

    def close(self) -> None:
        """End it; what waits can still be read. Takes no lock: a signal handler may call it."""
        self._closed = True
        self._notify()
