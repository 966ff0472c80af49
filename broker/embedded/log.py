"""Log files of the processes that the keeper runs."""

from __future__ import annotations

from pathlib import Path

TAIL_LINES = 4
TAIL_BYTES = 4096


def rotate(log: Path) -> None:
    """Rename the log of the last run to `<name>.1`, so that the logs of two runs are kept."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


def tail(log: Path) -> str:
    """Return the last lines of a log as one line, for an error message."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-TAIL_LINES:]) or "its log is empty"
