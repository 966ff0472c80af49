"""How much memory this process has, as Linux tells it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
_libc = ctypes.CDLL(None)


def resident() -> int:
    """Return the bytes in use, after garbage went and freed pages were given back."""
    gc.collect()
    _libc.malloc_trim(0)
    return _told("VmRSS")


def forget_peak() -> None:
    """Let the peak begin anew."""
    CLEAR.write_text(RESET_PEAK)


def peak() -> int:
    """Return the most bytes that were in use since `forget_peak`, freed ones included."""
    return _told("VmHWM")


def _told(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None  # noqa: S101 - Linux tells both
    return int(found[1]) * 1024
