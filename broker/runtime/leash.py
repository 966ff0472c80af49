"""Run a module as `python -m` does, and stop it with SIGTERM when the pipe on its stdin closes.

`python -m broker.runtime.leash MODULE ARGUMENTS`. A worker normally outlives other processes and
waits for its server to come back. The workers of a demo or a test must not: after a demo that was
killed, nothing would stop them.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from threading import Thread


def stop_with_parent() -> None:
    """Wait until the parent's end of the pipe closes, then ask this process to stop."""
    # Not through sys.stdin: a thread that reads it makes a clean end of the interpreter fail.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    Thread(target=stop_with_parent, name="leash", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
