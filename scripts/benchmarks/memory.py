"""Memory of this process, as Linux counts it."""

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
    """Return the bytes in use, after a garbage collection and returning freed pages."""
    gc.collect()
    _libc.malloc_trim(0)
    return _status_bytes("VmRSS")


def reset_peak() -> None:
    """Reset the peak."""
    CLEAR.write_text(RESET_PEAK)


def peak() -> int:
    """Return the maximum of bytes in use since `reset_peak`, including those freed later."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None  # noqa: S101 - Linux has both
    return int(found[1]) * 1024
