"""A program started for a test, a benchmark or the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any, cast

from broker.runtime.processes import tied

TAIL_LINES = 12


class Process:
    """One program: its output is in files, or its stdout is a stream of JSON reports.

    Args:
        command: program and arguments; the first word is a path.
        log: file for stderr. It also gets stdout unless `out` or `on_report` is given, and lines of
            stdout that are no JSON.
        out: file for stdout.
        on_report: called with each report, a line of JSON on stdout, in a thread of its own; with
            None after the last one. The program then reads orders from stdin, also lines of JSON.
        folder: working directory; None: ours.
        environment: all variables; None: ours.
        is_leader: whether it leads a new session and process group, so that Ctrl-C in our terminal
            does not reach it.
        is_tied: whether the kernel kills it when the thread that started it ends (Linux only).
        is_leashed: whether it gets SIGTERM when this process ends, on any system;
            then `command` is module and arguments, and `is_tied` has no effect.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        out: Path | None = None,
        on_report: Callable[[Any], object] | None = None,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        is_leader: bool = False,
        is_tied: bool = True,
        is_leashed: bool = False,
    ) -> None:
        self.log = log
        self._out = out or log
        self._on_report = on_report
        self._out.write_bytes(b"")
        if is_leashed:
            command = [sys.executable, "-P", "-m", "broker.runtime.leash", *command]
        elif is_tied:
            command = tied(command)
        has_pipe = is_leashed or on_report is not None
        with log.open("wb") as errors, self._out.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE if has_pipe else subprocess.DEVNULL,
                stdout=subprocess.PIPE if on_report else output if out else errors,
                stderr=errors,
                start_new_session=is_leader,
            )
        self._listener = Thread(target=self._listen, name=f"{log.stem} listener", daemon=True)
        if on_report is not None:
            self._listener.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.status is None

    @property
    def status(self) -> int | None:
        """The exit status, or minus the signal that killed it; None while it runs."""
        return self._process.poll()

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self.log.read_text(errors="replace")

    def tail(self) -> list[str]:
        """Return the last lines of its log."""
        return self.err.splitlines()[-TAIL_LINES:]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; does nothing if it has ended."""
        self._process.send_signal(number)

    def send_signal_to_group(self, number: signal.Signals) -> None:
        """Send a signal to its process group, as a terminal does; only for a leader."""
        os.killpg(self.pid, number)

    def order(self, order: Mapping[str, object]) -> None:
        """Send an order; does nothing if the process has ended."""
        stdin = cast("IO[bytes]", self._process.stdin)
        with suppress(BrokenPipeError):
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()

    def wait(self, timeout: float | None) -> int:
        """Return the exit status once it has ended.

        Args:
            timeout: seconds; None waits without limit.

        Raises:
            AssertionError: it still runs after `timeout` seconds.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout:g} s; its log:\n{self.err}") from None

    def kill(self) -> None:
        """Send SIGKILL, and return once it has ended. Does nothing if it has."""
        self._process.kill()
        self._process.wait()
        self._close()

    def end(self, timeout: float) -> None:
        """Send SIGTERM, after `timeout` seconds SIGKILL. Does nothing if it has ended."""
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        """Wait for the last report, and close the pipes."""
        if self._on_report is not None:
            self._listener.join()
            cast("IO[bytes]", self._process.stdout).close()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def _listen(self) -> None:
        assert self._on_report is not None  # noqa: S101 - it listens for these
        for line in cast("IO[bytes]", self._process.stdout):
            try:
                report = json.loads(line)
            except ValueError:
                with self.log.open("ab") as log:
                    log.write(line)
            else:
                self._on_report(report)
        self._on_report(None)
