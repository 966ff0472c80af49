"""The changes that one reader of a replica has not read yet. No I/O; any thread may read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from broker.core.queues import ReaderQueue
from broker.errors import ChangesOverflowError, ConfigError, DecodeError
from broker.model import Change
from broker.protocol.packed import unpacked

OverflowPolicy = Literal["conflate", "raise"]
OVERFLOW_POLICIES = ("conflate", "raise")


class ChangeQueue(ReaderQueue[Change]):
    """The changes that one reader has not read yet.

    Args:
        prefix: only keys that begin with it; None for all.
        limit: most changes that wait.
        overflow: what happens to a reader that falls further behind: "conflate" keeps the newest
            change of each key only (also of increments, as a change holds the value after it). If
            that is still too much, or with "raise", the reader gets `ChangesOverflowError` after
            the changes that are left.
        notify: called, on the replica's thread, whenever there is something to read.
        note: called, on the reader's thread, with key and fault of each value that cannot be read.
    """

    def __init__(
        self,
        prefix: str | None,
        limit: int,
        overflow: OverflowPolicy,
        notify: Callable[[], object],
        note: Callable[[str, DecodeError], object],
    ) -> None:
        if overflow not in OVERFLOW_POLICIES:
            raise ConfigError([f"overflow={overflow!r}; allowed: {', '.join(OVERFLOW_POLICIES)}"])
        if type(limit) is not int or limit < 1:
            raise ConfigError([f"limit={limit!r}; allowed: 1 and more changes"])
        if prefix is not None and not isinstance(prefix, str):
            raise ConfigError([f"prefix={prefix!r}; allowed: one str, or None for all keys"])
        super().__init__(limit, notify)
        self._prefix = prefix
        self._overflow = overflow
        self._note = note

    def put(self, items: list[Change]) -> None:
        """Add changes with cells as values; called by the replica."""
        if self._prefix is not None:
            items = [change for change in items if change.key.startswith(self._prefix)]
        super().put(items)

    def take(self) -> list[Change]:
        """Return all changes that wait, maybe none; lists and maps in them are the reader's own.

        Those whose value cannot be read are left out.

        Raises:
            ChangesOverflowError: all was read, and later changes were dropped.
            StopIteration: all was read, and the replica or the reader closed.
        """
        while changes := super().take():
            if bytes not in {type(change.value) for change in changes}:
                return changes
            read = [one for one in map(self._read, changes) if one is not None]
            if read:
                return read
        return []

    def take_one(self) -> Change | None:
        """Return the oldest change that can be read, None if none waits. Raises as `take`."""
        while (change := super().take_one()) is not None:
            if (read := self._read(change)) is not None:
                return read
        return None

    def _read(self, change: Change) -> Change | None:
        """Return a change with the value of its cell, None if that cannot be read."""
        cell = change.value
        if type(cell) is not bytes:
            return change
        try:
            return change._replace(value=unpacked(cell))
        except DecodeError as error:
            self._note(change.key, error)
            return None

    def _shrink(self, waiting: deque[Change]) -> None:
        if self._overflow == "conflate":
            newest = {change.key: n for n, change in enumerate(waiting)}
            kept = [change for n, change in enumerate(waiting) if newest[change.key] == n]
            self.conflated += len(waiting) - len(kept)
            waiting.clear()
            waiting.extend(kept)
        if len(waiting) > self._limit:
            while len(waiting) > self._limit:
                waiting.pop()
            self._overflowed = True

    def _end(self) -> Exception:
        if not self._overflowed:
            return super()._end()
        return ChangesOverflowError(
            f"this reader of changes fell more than {self._limit} changes behind; read "
            "faster, raise limit=, or read the replica and call changes() again"
        )
