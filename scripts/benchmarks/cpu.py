"""The CPU time of other processes, to the nanosecond."""

from __future__ import annotations

import ctypes
import os
import time

_libc = ctypes.CDLL(None, use_errno=True)


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process so far: all threads, ended ones too; user and system.

    /proc/PID/stat has the same in hundredths of a second.

    Raises:
        OSError: no such process, or a system without such clocks.
    """
    clock = ctypes.c_int()
    status = _libc.clock_getcpuclockid(pid, ctypes.byref(clock))
    if status:
        raise OSError(status, os.strerror(status), f"process {pid}")
    return time.clock_gettime_ns(clock.value)
