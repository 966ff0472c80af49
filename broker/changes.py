"""A bounded queue between a replica and one reader of its changes. No I/O; any thread may read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from broker.errors import ChangesOverflowError, ConfigError
from broker.model import Change

OverflowPolicy = Literal["conflate", "raise"]
OVERFLOW_POLICIES = ("conflate", "raise")


class ChangeQueue:
    """What one reader has not read yet.

    Args:
        prefix: only keys that begin with it; None for all.
        limit: most changes that wait.
        overflow: what happens to a reader that falls further behind: "conflate" keeps the newest
            change of each key only (increments included: the value says it all); if even that is
            too much, or with "raise", the reader gets `ChangesOverflowError` once it has read what
            is left.
        notify: called, on the replica's thread, whenever there is something to read.
    """

    def __init__(
        self,
        prefix: str | None,
        limit: int,
        overflow: OverflowPolicy,
        notify: Callable[[], object],
    ) -> None:
        if overflow not in OVERFLOW_POLICIES:
            raise ConfigError([f"overflow={overflow!r}; allowed: {', '.join(OVERFLOW_POLICIES)}"])
        if limit < 1:
            raise ConfigError([f"limit={limit!r}; allowed: 1 and more changes"])
        self._prefix = prefix
        self._limit = limit
        self._overflow = overflow
        self._notify = notify
        self._lock = threading.Lock()
        self._waiting: deque[Change] = deque()
        self._overflowed = False
        self._closed = False
        self.conflated = 0

    def put(self, changes: list[Change]) -> None:
        """Add changes; called by the replica."""
        if self._prefix is not None:
            changes = [change for change in changes if change.key.startswith(self._prefix)]
        with self._lock:
            if self._closed or self._overflowed or not changes:
                return
            self._waiting.extend(changes)
            if len(self._waiting) > self._limit:
                self._shrink()
        self._notify()

    def _shrink(self) -> None:
        if self._overflow == "conflate":
            newest = {change.key: n for n, change in enumerate(self._waiting)}
            kept = deque(
                change for n, change in enumerate(self._waiting) if newest[change.key] == n
            )
            self.conflated += len(self._waiting) - len(kept)
            self._waiting = kept
        if len(self._waiting) > self._limit:
            while len(self._waiting) > self._limit:
                self._waiting.pop()
            self._overflowed = True

    def take(self) -> list[Change]:
        """Return everything that waits; maybe nothing.

        Raises:
            ChangesOverflowError: all was read, and what came then did not fit.
            StopIteration: all was read, and the replica or the reader closed.
        """
        with self._lock:
            taken = list(self._waiting)
            self._waiting.clear()
            if not taken and self._overflowed:
                raise ChangesOverflowError(
                    f"this reader of changes fell more than {self._limit} changes behind; read "
                    "faster, raise limit=, or read the replica and call changes() again"
                )
            if not taken and self._closed:
                raise StopIteration
            return taken

    def close(self) -> None:
        """End it; what waits can still be read. Takes no lock: a signal handler may call it."""
        self._closed = True
        self._notify()
