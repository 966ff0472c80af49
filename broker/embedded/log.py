"""Log files of the processes that the keeper runs."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 4
TAIL_BYTES = 4096


def rotate(log: Path) -> None:
    """Put away the log of the last run as `<name>.1`, so that logs stay two runs long."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


def tail(log: Path) -> str:
    """Return the last words of a log, on one line, for an error message."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-TAIL_LINES:]) or "it left no log"
