"""The processes of a chaos run: start, kill, pause, restart and stop them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

from broker.testing.process import Process

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
        self._folder = folder
        self._process: Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.is_running

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it; it ends when this process does."""
        self.lives += 1
        arguments = [part.replace("{life}", str(self.lives)) for part in self._command]
        self._process = Process(
            arguments,
            self._folder / f"{self.name}-{self.lives}.log",
            folder=ROOT,
            environment={**os.environ, **self._env},
            is_leader=True,
            is_leashed=True,
        )
        self.is_expected, self.is_paused = True, False

    def kill(self) -> float:
        """SIGKILL it; return the time at which its end was noticed."""
        assert self._process is not None
        self.is_expected = False
        self._process.kill()
        self.ended_at = monotonic()
        return self.ended_at

    def pause(self, *, is_on: bool) -> None:
        """SIGSTOP or SIGCONT it."""
        if self._process is not None and self._process.is_running:
            self._process.send_signal(signal.SIGSTOP if is_on else signal.SIGCONT)
            self.is_paused = is_on

    def terminate(self) -> None:
        """Ask it to end."""
        self.is_expected = False
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> bool:
        """Wait for its end; false if it had to be killed."""
        if self._process is None:
            return True
        in_time = True
        try:
            self._process.wait(timeout)
        except AssertionError:
            in_time = False
        self._process.kill()
        self.ended_at = monotonic()
        return in_time

    def last_words(self) -> str:
        """Return the end of its log."""
        lines = self._process.tail() if self._process is not None else []
        return " | ".join(lines[-LAST_LINES:])
