"""The processes of a chaos run: start, kill, pause, restart and stop them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 40.0
LAST_LINES = 3


class Member:
    """One process of the fleet, which may be started several times.

    Attributes:
        kind: flusher, scheduler, producer or replica.
        lives: how often it was started.
        ended_at: when its last end was noticed (monotonic seconds).
    """

    def __init__(
        self, kind: str, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.kind = kind
        self.name = name
        self.lives = 0
        self.ended_at = 0.0
        self.is_expected = False
        self.is_paused = False
        self._command = command
        self._env = env
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it; it ends when this process does."""
        self.lives += 1
        arguments = [part.replace("{life}", str(self.lives)) for part in self._command]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "broker.runtime.leash", *arguments],
                cwd=ROOT,
                env={**os.environ, **self._env},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.is_expected, self.is_paused = True, False

    def kill(self) -> float:
        """SIGKILL it; return the time at which its end was noticed."""
        assert self._process is not None
        self.is_expected = False
        self._process.kill()
        self._reap(None)
        return self.ended_at

    def pause(self, *, is_on: bool) -> None:
        """SIGSTOP or SIGCONT it."""
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGSTOP if is_on else signal.SIGCONT)
            self.is_paused = is_on

    def terminate(self) -> None:
        """Ask it to end."""
        self.is_expected = False
        if self.is_running and self._process is not None:
            self._process.terminate()

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> bool:
        """Wait for its end; false if it had to be killed."""
        return self._reap(timeout)

    def _reap(self, timeout: float | None) -> bool:
        process = self._process
        if process is None:
            return True
        in_time = True
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            in_time = False
        self.ended_at = monotonic()
        if process.stdin is not None:
            process.stdin.close()
        return in_time

    def last_words(self) -> str:
        """Return the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return " | ".join(lines)
