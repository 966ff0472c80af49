"""Logging to stderr: log lines for workers, short messages for the other commands."""

from __future__ import annotations

import logging

from broker.runtime.log_thread import LogThread
from workers.cli.terminal import safe

OURS = ("broker", "workers")
REPEAT_SECONDS = 30.0


def log_to_stderr(level: int) -> None:
    """Log our events from `level` on, but only warnings of libraries (redis logs arguments)."""
    handler = LogThread(_Safe("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def log_for_people() -> None:
    """Print our warnings in the format of error messages, and nothing of libraries."""
    handler = LogThread(_Safe("statebroker: %(message)s"))
    handler.addFilter(_SeldomRepeated())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _Safe(logging.Formatter):
    """Escapes what a message quotes of others: it cannot forge a line, or control a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name there
        """Return the first line."""
        return safe(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802
        """Return the lines of a traceback."""
        lines = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(safe(line) for line in lines.split("\n"))


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
