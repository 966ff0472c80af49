"""What a command says on stderr beside its own errors: log lines of workers, or words to people."""

from __future__ import annotations

import logging

OURS = ("broker", "workers")
REPEAT_SECONDS = 30.0


def log_to_stderr(level: int) -> None:
    """Log named events of ours; of the libraries only what is wrong (redis shows arguments)."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def tell_people() -> None:
    """Print our own warnings in the manner of errors, and nothing of the libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("statebroker: %(message)s"))
    handler.addFilter(_SeldomRepeated())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _SeldomRepeated(logging.Filter):
    """Passes events of ours, each kind once in `REPEAT_SECONDS`: what is retried fails often."""

    def __init__(self) -> None:
        super().__init__()
        self._told_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is printed."""
        if record.name.partition(".")[0] not in OURS:
            return False
        last = self._told_at.get(record.msg)
        if last is not None and record.created - last < REPEAT_SECONDS:
            return False
        self._told_at[record.msg] = record.created
        return True
