"""The log of an outage: a line when it begins, one every half minute, and one when it ends."""

from __future__ import annotations

import logging
from typing import Final

from broker.runtime import clock

INTERVAL_S: Final = 30.0


class OutageLog:
    """Logs failures of one task that tries again, however often it does.

    Args:
        log: of the module.
        event: first word of each line.
        place: the words after it, such as "shard=0".
    """

    def __init__(self, log: logging.Logger, event: str, place: str) -> None:
        self._log = log
        self._event = event
        self._place = place
        self._failures = 0
        self._began_at = self._told_at = 0.0

    def failed(self, error: object) -> None:
        """Count a failure; log the first one, and then one every half minute."""
        now = clock.now()
        self._failures += 1
        if self._failures == 1:
            self._began_at = self._told_at = now
            self._log.warning("%s %s error=%s", self._event, self._place, error)
        elif now - self._told_at >= INTERVAL_S:
            self._told_at = now
            self._log.warning(
                "%s %s error=%s failures=%d for=%.0f",
                *(self._event, self._place, error, self._failures, now - self._began_at),
            )

    def ended(self) -> None:
        """Log the end of an outage of more than one failure."""
        if self._failures > 1:
            self._log.warning(
                "%s_ended %s failures=%d after=%.1f",
                *(self._event, self._place, self._failures, clock.now() - self._began_at),
            )
        self._failures = 0
