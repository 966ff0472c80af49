"""Following the log from a position: which batch comes next, and where to stop. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto

from broker.protocol.codec import decode_following
from broker.protocol.messages import Batch, LogEntry, Position


class Progress(Enum):
    """How far a replay is."""

    READ = auto()
    DONE = auto()
    MOVED = auto()


class LogReplay:
    """The one rule of reading the log: every batch names the one before it, up to a goal.

    Args:
        position: after which it begins.

    Attributes:
        position: of the last batch that was replayed.
    """

    def __init__(self, position: Position) -> None:
        self.position = position

    def take(self, entry: LogEntry) -> Batch:
        """Return the next batch, and move on to it.

        Raises:
            DecodeError: it is not the batch that comes right after the position.
        """
        batch = decode_following(entry, self.position)
        self.position = batch.position
        return batch

    def until(self, goal: Position | None, entries: Sequence[LogEntry]) -> Iterator[LogEntry]:
        """Yield the entries of a page that are still to be taken; each is, before the next one."""
        for entry in entries:
            if self.progress(goal) is not Progress.READ:
                return
            yield entry

    def progress(self, goal: Position | None, *, is_at_end: bool = False) -> Progress:
        """Return what to do next.

        Args:
            goal: where to stop; None: at the end of the log.
            is_at_end: the log has nothing after the position.

        Returns:
            READ: go on after `position`. DONE: this is the goal. MOVED: the goal cannot be reached
            from here: the log was cut, or belongs to another history.
        """
        if goal is None:
            return Progress.DONE if is_at_end else Progress.READ
        if self.position.offset < goal.offset:
            return Progress.MOVED if is_at_end else Progress.READ
        return Progress.DONE if self.position == goal else Progress.MOVED
