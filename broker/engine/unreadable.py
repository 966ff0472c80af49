"""Values that readers of a replica met and could not read: counted, named, and logged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final

from broker.errors import DecodeError
from broker.protocol.refusal import shown
from broker.runtime import clock

log = logging.getLogger(__name__)

NAMED: Final = 5
LOG_INTERVAL_S: Final = 60.0


class UnreadableValues:
    """Counts reads of values that are not of our domain; any thread may call it.

    There is no lock, since a signal handler may read: each step is one step of the interpreter.

    Args:
        namespace: for the log.
        writer_of: returns the node that set a key last, if it is known.

    Attributes:
        total: how many reads met one.
    """

    def __init__(self, namespace: str, writer_of: Callable[[str], str | None]) -> None:
        self._namespace = namespace
        self._writer_of = writer_of
        self._numbers = count(1)
        self._last: deque[str] = deque(maxlen=NAMED)
        self._quiet_until = self._second_ends = 0.0
        self._in_second = 0
        self.total = 0

    @property
    def named(self) -> tuple[str, ...]:
        """The last ones: key, node if it is known, and fault."""
        return tuple(self._last.copy())

    def note(self, key: str, fault: DecodeError) -> None:
        """Count one of many; name the first ones of each second."""
        now = clock.now()
        if now >= self._second_ends:
            self._second_ends, self._in_second = now + 1.0, 0
        self._in_second += 1
        if self._in_second > NAMED:
            self.total = next(self._numbers)
        else:
            self.note_one(key, fault)

    def note_one(self, key: str, fault: DecodeError) -> str | None:
        """Count one; name it in the log, unless one was named within the last minute.

        Returns:
            The node that wrote it, if it is known: to look for it takes longer than to read.
        """
        self.total = next(self._numbers)
        node = self._writer_of(key)
        what = f"{shown(key)}{f' by {node}' if node else ''}: {fault}"
        if what not in self.named:
            self._last.append(what)
        if clock.now() >= self._quiet_until:
            self._quiet_until = clock.now() + LOG_INTERVAL_S
            log.warning(
                "value_unreadable namespace=%s total=%d last=%s fix=write the key again",
                *(self._namespace, self.total, ascii(what)),
            )
        return node
