"""Detect forks: an object with a loop or a connection must not be used in a forked child."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

from broker.errors import ForkedError

_alive: weakref.WeakSet[ForkGuard] = weakref.WeakSet()


class ForkGuard:
    """Knows whether this process is a forked child of the one that created an object.

    Args:
        what: the object, for the error text.
        owner: kept alive in a child, because its connections belong to the parent: the garbage
            collector must neither close them nor warn about them.
    """

    def __init__(self, what: str, owner: object) -> None:
        self.what = what
        self._owner = weakref.ref(owner)
        self.is_forked = False
        self._in_child: Callable[[], object] | None = None
        _alive.add(self)

    def check(self) -> None:
        """Return if this process created the object.

        Raises:
            ForkedError: this is a forked child.
        """
        if self.is_forked:
            raise ForkedError(
                f"{self.what} was made before a fork and cannot be used in the child (pid "
                f"{os.getpid()}); make a new one there, or start processes with 'spawn'"
            )

    def call_in_child(self, function: Callable[[], object]) -> None:
        """Have a function called in every forked child, right after the fork."""
        self._in_child = function

    def mark(self) -> None:
        """Record that this is a forked child."""
        self.is_forked = True
        if self._in_child is not None:
            self._in_child()
        owner = self._owner()
        if owner is not None:
            _inherited.append(owner)


_inherited: list[object] = []


def _mark_forked() -> None:
    for guard in list(_alive):
        guard.mark()


os.register_at_fork(after_in_child=_mark_forked)
