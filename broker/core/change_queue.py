"""The changes that one reader of a replica has not read yet. No I/O; any thread may read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import compress, count
from operator import length_hint
from typing import Final, Literal

from broker.core.changes import ChangeColumns
from broker.core.queues import ReaderQueue
from broker.errors import ChangesOverflowError, ConfigError, DecodeError
from broker.model import Change
from broker.protocol.cells import values_of

OverflowPolicy = Literal["conflate", "raise"]
OVERFLOW_POLICIES = ("conflate", "raise")

# Made at once for a reader: enough that what each part costs does not count, and few enough that
# they stay in the processor's cache.
PART: Final = 256
# A part that was opened counts as read, so it has to be a small share of the limit.
_PARTS: Final = 64
_CHANGES: Final = "changes"

Note = Callable[[str, DecodeError], object]


class ChangePart:
    """Some changes in a row, which become changes when the first of them is read.

    Args:
        columns: the changes.
        end: the number of changes that were put into the queue, up to the last of these.
        note: called, by the reader, with key and fault of each value that cannot be read.
    """

    __slots__ = ("_note", "_opened", "columns", "end")

    def __init__(self, columns: ChangeColumns, end: int, note: Note) -> None:
        self.columns = columns
        self.end = end
        self._note = note
        # Of several threads the first one decides, in one step: `setdefault`.
        self._opened: dict[str, Iterator[Change]] = {}

    def open(self) -> Iterator[Change]:
        """Return the iterator that all readers share; a step of it is one of the interpreter."""
        opened = self._opened.get(_CHANGES)
        if opened is None:
            changes, faults = self._read()
            mine = iter(changes)
            opened = self._opened.setdefault(_CHANGES, mine)
            if opened is mine:
                for key, fault in faults:
                    self._note(key, fault)
        return opened

    def _read(self) -> tuple[list[Change], list[tuple[str, DecodeError]]]:
        """Return those whose value can be read, and what is wrong with the others."""
        columns = self.columns
        values, faults = values_of(columns.cells)
        if not faults:
            return columns.changes(values), []
        picks = [n not in faults for n in range(len(columns))]
        left = columns.picked(picks).changes(compress(values, picks))
        return left, [(columns.keys[n], fault) for n, fault in faults.items()]

    def withdraw(self) -> bool:
        """Return whether no reader opened it; then none will get anything from it."""
        nothing: Iterator[Change] = iter(())
        return self._opened.setdefault(_CHANGES, nothing) is nothing

    def forget(self) -> None:
        """Leave nothing, not even to those who are reading it."""
        deque(self._opened.setdefault(_CHANGES, iter(())), maxlen=0)

    @property
    def unread_from(self) -> int:
        """The number of changes that were put in before the first that no reader opened."""
        return self.end if self._opened else self.end - len(self.columns)


class ChangeQueue(ReaderQueue[ChangePart, Change]):
    """The changes that one reader has not read yet.

    Args:
        prefix: only keys that begin with it; None for all.
        limit: max changes that wait. A small share of them more may have been taken out for the
            reader, which gets them next.
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
        note: Note,
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
        self._part = max(1, min(PART, limit // _PARTS))
        self._end_of_last = 0

    def add(self, changes: Iterable[ChangeColumns]) -> None:
        """Add changes; called by the replica, on one thread."""
        prefix = self._prefix
        if prefix is not None:
            changes = [one.picked([key.startswith(prefix) for key in one.keys]) for one in changes]
        self.put(self._parts(changes))

    def _parts(self, changes: Iterable[ChangeColumns]) -> list[ChangePart]:
        """Return changes as parts that follow on the last one."""
        parts = []
        for columns in changes:
            size = len(columns.keys)
            if size <= self._part:
                divided = [columns] if size else []
            else:
                ends = range(self._part, size + self._part, self._part)
                divided = [columns.sliced(end - self._part, end) for end in ends]
            for part in divided:
                self._end_of_last += len(part.keys)
                parts.append(ChangePart(part, self._end_of_last, self._note))
        return parts

    def items(self) -> Iterator[Change] | None:
        """Return the changes of the oldest part; lists and maps in them are the reader's own.

        Those whose value cannot be read are left out.

        Raises:
            ChangesOverflowError, StopIteration: as all queues.
        """
        while True:
            has_ended = self._has_ended
            try:
                part = self._waiting[0]
            except IndexError:
                if has_ended:
                    raise self._end() from None
                return None
            changes = part.open()
            if length_hint(changes):
                return changes
            # It remains until all of it was read: of threads that share this queue none can find
            # the next part before that, so each gets what it gets in order. Another one may have
            # been faster.
            with suppress(ValueError):
                self._waiting.remove(part)

    def forget(self) -> None:
        """Leave nothing to read, not even of what was taken out for the reader."""
        for part in self._waiting:
            part.forget()
        super().forget()

    def _size(self) -> int:
        try:
            return self._end_of_last - self._waiting[0].unread_from
        except IndexError:
            return 0

    def _drained(self) -> Iterable[ChangePart]:
        # At once: a reader that took one from the middle would get those before it later.
        taken, self._waiting = self._waiting, deque()
        return taken

    def _shrink(self, waiting: deque[ChangePart]) -> None:
        opened: list[ChangePart] = []
        left: list[ChangeColumns] = []
        for part in waiting:
            if part.withdraw():
                left.append(part.columns)
            else:
                opened.append(part)
        size = sum(map(len, left))
        if self._overflow == "conflate":
            left = _newest(left)
            kept = sum(map(len, left))
            self.conflated += size - kept
            size = kept
        if size > self._limit:
            left = _first(left, self._limit)
            self._overflowed = True
        waiting.clear()
        for part in opened:
            part.end = self._end_of_last
        waiting.extend(opened)
        waiting.extend(self._parts(left))

    def _end(self) -> Exception:
        if not self._overflowed:
            return super()._end()
        return ChangesOverflowError(
            f"this reader of changes fell more than {self._limit} changes behind; read "
            "faster, raise limit=, or read the replica and call changes() again"
        )


def _newest(changes: list[ChangeColumns]) -> list[ChangeColumns]:
    """Return the newest change of each key only."""
    keys = [key for one in changes for key in one.keys]
    newest, numbers = {key: n for n, key in enumerate(keys)}, count()
    kept = [one.picked([newest[key] == next(numbers) for key in one.keys]) for one in changes]
    return [one for one in kept if len(one)]


def _first(changes: list[ChangeColumns], limit: int) -> list[ChangeColumns]:
    """Return the first changes, as many as the limit."""
    first: list[ChangeColumns] = []
    for one in changes:
        first.append(one.sliced(0, limit))
        limit -= len(first[-1])
    return [one for one in first if len(one)]
