"""Makes the tests independent of what their process inherited, and of what theirs inherit.

A background job of a shell without job control ignores SIGINT, and so would all that it starts;
variables of ours would configure what is tested; others change colours, widths and languages of
output; a long TMPDIR leaves no room for the path of a unix socket.
"""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
from typing import Final

# A unix socket's path may have about 100 bytes, of which folder and file take up to 60.
MAX_TMPDIR_BYTES: Final = 40
UMASK: Final = 0o022
OPEN_FILES: Final = 4096

OURS: Final = "STATEBROKER_"
REMOVED: Final = (
    *("CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("COLUMNS", "LINES", "LANG", "LANGUAGE"),
    *("PYTHONDEVMODE", "PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONWARNINGS"),
)
FIXED: Final = {"LC_ALL": "C.UTF-8", "TERM": "xterm", "TZ": "UTC"}
# What Python itself ignores, and gives back to the programs that it starts.
IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def reset() -> None:
    """Set everything to what the tests expect; the programs that they start inherit it."""
    reset_signals()
    reset_environment()
    os.umask(UMASK)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        enough = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def reset_signals() -> None:
    """Let every signal that is ignored or blocked do what it does by default."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - set(IGNORED_BY_PYTHON):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def reset_environment() -> None:
    """Remove and fix variables, and keep temporary files where paths are short."""
    for name in list(os.environ):
        if name in REMOVED or name.startswith(OURS):
            del os.environ[name]
    os.environ.update(FIXED)
    time.tzset()
    if len(os.fsencode(tempfile.gettempdir())) > MAX_TMPDIR_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"  # noqa: S108 - made unique by their makers
