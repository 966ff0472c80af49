"""A bounded queue between a replica and one reader. No I/O; any thread may read.

There is no lock: a signal handler that interrupts a reader may wait for the replica's thread, which
then must not wait for that reader. Each step of a deque is one step of the interpreter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

P = TypeVar("P")
T = TypeVar("T")


class ReaderQueue(ABC, Generic[P, T]):
    """What one reader has not read yet; `_shrink` defines what happens beyond the limit.

    Of type `P` is what waits, of type `T` what the reader gets.

    Args:
        limit: most that waits.
        notify: called, on the replica's thread, whenever there is something to read.

    Attributes:
        conflated: how many the reader did not get one by one.
    """

    def __init__(self, limit: int, notify: Callable[[], object]) -> None:
        self._limit = limit
        self._notify = notify
        self._waiting: deque[P] = deque()
        self._is_putting = False
        self._overflowed = False
        self._closed = False
        self.conflated = 0

    def put(self, items: list[P]) -> None:
        """Add something; called by the replica, on one thread."""
        if self._closed or self._overflowed or not items:
            return
        self._is_putting = True
        try:
            if self._closed:
                # A reader that saw it closed before `_is_putting` has ended.
                return
            self._waiting.extend(items)
            if self._size() > self._limit:
                # A reader may take some meanwhile, or find nothing and wait for the notification.
                kept = deque(self._drained())
                self._shrink(kept)
                self._waiting.extend(kept)
        finally:
            self._is_putting = False
            self._notify()

    def _size(self) -> int:
        """Return how much waits, in what the limit counts."""
        return len(self._waiting)

    @abstractmethod
    def _shrink(self, waiting: deque[P]) -> None:
        """Reduce what waits to the limit; count in `conflated`, or set `_overflowed`."""

    def _drained(self) -> Iterable[P]:
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

    @abstractmethod
    def items(self) -> Iterator[T] | None:
        """Return an iterator over the oldest items that wait, None if nothing waits.

        It may be that of another call, and another thread may take from it too: each item goes to
        one of them. So it may also be empty.

        Raises:
            ChangesOverflowError: all was read, and later items were dropped.
            StopIteration: all was read, and the replica or the reader closed.
        """

    def forget(self) -> None:
        """Leave nothing to read, in a forked child: it belongs to the parent."""
        self._waiting.clear()

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
