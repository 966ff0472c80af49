"""Log files of the processes that the keeper runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

TAIL_LINES = 4
TAIL_BYTES = 4096


def rotate(log: Path) -> None:
    """Rename the log of the last run to `<name>.1`, so that the logs of two runs are kept."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


def open_log(log: Path) -> BinaryIO:
    """Open a log to append to; only this user can read it, whatever the umask is."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "ab")


def tail(log: Path) -> str:
    """Return the last lines of a log as one line, for an error message."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-TAIL_LINES:]) or "its log is empty"
