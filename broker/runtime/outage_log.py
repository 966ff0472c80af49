"""The log of an outage: a line when it begins, one every half minute, and one when it ends."""

from __future__ import annotations

import logging
from typing import Final

from broker.errors import BackendError
from broker.runtime import clock

INTERVAL_S: Final = 30.0
MAX_BEGUN: Final = 3  # outages of one task within an interval whose beginning is logged
SHORT_S: Final = 1.0


class OutageLog:
    """Logs failures of one task that tries again, however often it does.

    The shards of a task share one: their outage begins with the first shard that fails, and ends
    when none fails any more. An error of another kind than those before is logged at once: of
    another class, or with another meaning of the server's reply.

    Args:
        log: of the module.
        event: first word of each line.
        place: the words after it, such as "node=n"; may be empty.
    """

    def __init__(self, log: logging.Logger, event: str, place: str = "") -> None:
        self._log = log
        self._event = event
        self._place = f" {place}" if place else ""
        self._failing: set[int | None] = set()
        self._kinds: set[tuple[type, str]] = set()
        self._failures = 0
        self._began_at = self._told_at = self._counts_from = 0.0
        self._begun = 0
        self._is_told = False

    def failed(self, error: object, *, shard: int | None = None, fix: str = "") -> None:
        """Count a failure; log the first one, and then one every half minute.

        Args:
            error: what happened.
            shard: number of the shard that failed; None for the task as a whole.
            fix: what to do about it, added to the error.
        """
        now = clock.now()
        if not self._failing:
            self._begin(now)
        kind = (type(error), error.meaning if isinstance(error, BackendError) else "")
        is_new = kind not in self._kinds
        self._failing.add(shard)
        self._kinds.add(kind)
        self._failures += 1
        where = self._place if shard is None else f"{self._place} shard={shard}"
        if self._failures == 1 or (is_new and self._is_told):
            if self._is_told:
                self._told_at = now
                self._log.warning("%s%s error=%s%s", self._event, where, error, fix)
        elif now - self._told_at >= INTERVAL_S:
            self._told_at, self._is_told = now, True
            shards = f" shards={len(self._failing)}" if len(self._failing) > 1 else ""
            self._log.warning(
                "%s%s error=%s%s failures=%d for=%.0f%s",
                *(self._event, where, error, fix, self._failures, now - self._began_at, shards),
            )

    def ended(self, shard: int | None = None) -> None:
        """Log the end of an outage of more than one failure, or of more than a second.

        Args:
            shard: number of the shard that works; None for the task as a whole.
        """
        if shard not in self._failing:
            return
        self._failing.discard(shard)
        if self._failing:
            return
        after = clock.now() - self._began_at
        if self._is_told and (self._failures > 1 or after > SHORT_S):
            self._log.warning(
                "%s_ended%s failures=%d after=%.1f",
                *(self._event, self._place, self._failures, after),
            )

    def _begin(self, now: float) -> None:
        """Begin to count; what fails and works again all the time is logged a few times only."""
        if now - self._counts_from >= INTERVAL_S:
            self._counts_from, self._begun = now, 0
        self._begun += 1
        self._is_told = self._begun <= MAX_BEGUN
        self._failures = 0
        self._began_at = now
        self._kinds.clear()
        if self._is_told:
            self._told_at = now
