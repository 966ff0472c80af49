"""Logging to stderr: log lines for workers, short messages for the other commands."""

from __future__ import annotations

import logging

OURS = ("broker", "workers")
REPEAT_SECONDS = 30.0


def log_to_stderr(level: int) -> None:
    """Log our events from `level` on, but only warnings of libraries (redis logs arguments)."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def log_for_people() -> None:
    """Print our warnings in the format of error messages, and nothing of libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("statebroker: %(message)s"))
    handler.addFilter(_SeldomRepeated())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _SeldomRepeated(logging.Filter):
    """Passes our events, each kind once per `REPEAT_SECONDS`, since retries repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is printed."""
        if record.name.partition(".")[0] not in OURS:
            return False
        last = self._logged_at.get(record.msg)
        if last is not None and record.created - last < REPEAT_SECONDS:
            return False
        self._logged_at[record.msg] = record.created
        return True
