"""Processes that must not outlive their parent.

Use `tie_to_parent` where the parent has one thread, `tied` where it may have several, and
`python -m broker.runtime.leash` where the child has to end cleanly, or the system is
not Linux.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
# Run by the new process before it becomes the command; the process id stays the same.
_TIE = (
    "import ctypes, os, sys; number, parent = map(int, sys.argv[1:3]); "
    "ctypes.CDLL(None).prctl(1, number); "
    # The parent may have died before the call.
    "os.getppid() == parent or os.kill(os.getpid(), 9); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def tie_to_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return a `preexec_fn`: the kernel then signals the child when its parent dies.

    Only for a parent with one thread, or whose other threads only wait for children or write the
    log: otherwise it is not safe to run Python between fork and exec. None on other systems than
    Linux.
    """
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))
        # The parent may have died before the call.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return tie


def tied(
    command: Sequence[str | Path], number: signal.Signals = signal.SIGKILL
) -> list[str | Path]:
    """Return a command whose process the kernel signals when the thread that started it ends.

    It costs the start of an interpreter. It has to be started by this process. On other systems
    than Linux it is the command itself.

    Args:
        command: the first word is a path.
        number: the signal.
    """
    if sys.platform != "linux":
        return [*command]
    return [sys.executable, "-I", "-S", "-c", _TIE, str(int(number)), str(os.getpid()), *command]
