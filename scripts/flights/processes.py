"""The demo's child processes: start, messages, logs and stop."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import IO, Any, Self, cast

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 3.0
LAST_LINES = 12


class DemoError(Exception):
    """The demo cannot continue; the message says why."""


Report = tuple["Child", dict[str, Any]]


class Child:
    """One Python process; its JSON lines arrive in a queue shared by all."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        reports: SimpleQueue[Report],
    ) -> None:
        self.name = name
        self.log = log
        self.reports = reports
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # Control-C goes to the orchestrator, which stops its children.
                start_new_session=True,
            )
        self.orders = cast("IO[bytes]", self.process.stdin)
        self.output = cast("IO[bytes]", self.process.stdout)
        self.reader = Thread(target=self.listen, name=f"{name} reader", daemon=True)
        self.reader.start()

    def listen(self) -> None:
        """Put each report into the queue; other lines go to the log."""
        for line in self.output:
            try:
                self.reports.put((self, json.loads(line)))
            except ValueError:
                with self.log.open("ab") as log:
                    log.write(line)

    def send(self, order: Mapping[str, object]) -> None:
        """Send an order; `Children.check` notices a process that has ended."""
        with suppress(BrokenPipeError):
            self.orders.write(json.dumps(order).encode() + b"\n")
            self.orders.flush()

    def is_running(self) -> bool:
        """Tell whether the process has not ended."""
        return self.process.poll() is None

    def close(self) -> None:
        """Close the pipes of an ended process."""
        self.reader.join()
        self.output.close()
        with suppress(BrokenPipeError):
            self.orders.close()

    def log_tail(self) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  | {line}" for line in lines) or "  | (no output)"


class Children:
    """All child processes; leaving the context stops every one of them."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment}
        self.reports: SimpleQueue[Report] = SimpleQueue()
        self.all: list[Child] = []

    def __enter__(self) -> Self:
        """Return itself; no process runs yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop all."""
        self.stop()

    def start(self, name: str, *arguments: str) -> Child:
        """Start `python -m` with these arguments."""
        child = Child(
            name,
            arguments,
            log=self.folder / f"{name.replace(' ', '-')}.log",
            environment=self.environment,
            reports=self.reports,
        )
        self.all.append(child)
        return child

    def received(self, timeout_s: float) -> list[Report]:
        """Return all reports that arrived, waiting at most `timeout_s` for the first."""
        reports = []
        try:
            reports.append(self.reports.get(timeout=timeout_s))
            while True:
                reports.append(self.reports.get_nowait())
        except Empty:
            return reports

    def check(self) -> None:
        """Check that all processes run.

        Raises:
            DemoError: one has ended; with its exit status and the end of its log.
        """
        for child in self.all:
            if not child.is_running():
                raise DemoError(
                    f"{child.name} ended unexpectedly (status {child.process.returncode}):\n"
                    f"{child.log_tail()}"
                )

    def kill(self, child: Child) -> None:
        """SIGKILL a process, and stop checking it."""
        child.process.kill()
        child.process.wait()
        child.close()
        self.all.remove(child)

    def stop(self) -> None:
        """Ask all processes to end; kill those that do not."""
        for child in self.all:
            child.process.terminate()
        deadline = monotonic() + STOP_TIMEOUT_S
        for child in self.all:
            try:
                child.process.wait(max(0.0, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.close()
