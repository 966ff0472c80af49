"""The clock that judges ages: of proofs, leases, heartbeats and kept chunks.

The monotonic clock of Linux stands still while the machine is suspended: what was current before
would still look current afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

COUNTS_SUSPENSION: Final = hasattr(time, "CLOCK_BOOTTIME")
"""Whether `now` goes on while the machine is suspended. It does on Linux."""

# Call it as `clock.now()`, so that a test can replace it for every caller.
now: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if COUNTS_SUSPENSION else time.monotonic
)
"""Returns seconds since an arbitrary moment; it never goes back.

The clock of an event loop is another one: do not mix their times.
"""
