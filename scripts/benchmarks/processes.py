"""Processes of a benchmark: start, messages, logs and end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any, Self, cast

from scripts.benchmarks.model import BenchmarkError

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 5.0
LAST_LINES = 12
# A prefix of commands: the kernel kills the process when its parent ends. 1 is PR_SET_PDEATHSIG,
# 9 is SIGKILL. The process id stays the same.
PRCTL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
DIE_WITH_PARENT = (sys.executable, "-I", "-S", "-c", PRCTL)


class Process:
    """One process; leaving the context ends it.

    Args:
        name: of the process and of its log.
        command: the first word is a path.
        folder: where its log is written.
        environment: variables in addition to ours.
        is_role: it exchanges JSON lines on stdin and stdout.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        is_role: bool = False,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._reports: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_PARENT, *command],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE if is_role else subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_role else log,
                stderr=log,
                # Control-C goes to the measuring process alone.
                start_new_session=True,
            )
        self._listener = Thread(target=self._listen, name=f"{name} listener", daemon=True)
        if is_role:
            self._listener.start()

    def __enter__(self) -> Self:
        """Return itself; the process is running."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.end()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, order: str, **details: object) -> None:
        """Send an order; if the process has ended, `receive` reports it."""
        with suppress(BrokenPipeError):
            stdin = cast("IO[bytes]", self._process.stdin)
            stdin.write(json.dumps({"order": order, **details}).encode() + b"\n")
            stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return its next report.

        Raises:
            BenchmarkError: it ended, or sent nothing in time.
        """
        try:
            report = self._reports.get(timeout=timeout_s)
        except Empty:
            raise self.failure(f"sent no report within {timeout_s:g} s") from None
        if report is None:
            raise self.failure(f"ended with status {self._process.wait(STOP_TIMEOUT_S)}")
        return report

    def failure(self, what: str) -> BenchmarkError:
        """Return an error with the end of the process's log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return BenchmarkError("\n  | ".join([f"{self.name} {what}", *lines]))

    def end(self) -> None:
        """End it: SIGTERM, then SIGKILL after a timeout. Does nothing if it has ended."""
        if self.is_running:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._process.stdout is not None:
            self._listener.join()
            self._process.stdout.close()

    def _listen(self) -> None:
        for line in cast("IO[bytes]", self._process.stdout):
            self._reports.put(json.loads(line))
        self._reports.put(None)
