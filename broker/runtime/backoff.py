"""How long to wait before the next try."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from try to try, each shortened at random.

    Clients that failed at the same moment then do not all try again at the same moment. The caller
    sleeps, since some callers have to wake up earlier. That is why no library does this: stamina
    and tenacity own the call, its errors and the sleep.

    Args:
        first: seconds of the first pause, at most.
        longest: seconds of any pause, at most.
        least: smallest part of a pause that is left, 0 to 1.
    """

    def __init__(self, first: float, longest: float, *, least: float = 0.5) -> None:
        self.first = first
        self.longest = longest
        self.least = least
        self._last = 0.0

    def next(self, longest: float | None = None) -> float:
        """Return the seconds to wait now.

        Args:
            longest: for this failure and what follows from it; None: the one given at first.
        """
        most = self.longest if longest is None else longest
        self._last = min(most, max(self.first, self._last * 2))
        return self._last * random.uniform(self.least, 1.0)

    def reset(self) -> None:
        """Begin with the first pause again: a try succeeded."""
        self._last = 0.0
