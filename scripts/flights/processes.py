"""The demo's child processes: start, messages, logs and stop."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Self

from broker.testing.process import Process

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 3.0


class DemoError(Exception):
    """The demo cannot continue; the message says why."""


Report = tuple["Child", dict[str, Any]]


class Child(Process):
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
        self.reports = reports
        super().__init__(
            [sys.executable, "-m", *arguments],
            log,
            on_report=self.receive,
            folder=ROOT,
            environment=environment,
            # Control-C goes to the orchestrator, which stops its children.
            is_leader=True,
            # Each child stops cleanly when its stdin ends; the kernel would kill it.
            is_tied=False,
        )

    def receive(self, report: dict[str, Any] | None) -> None:
        """Put a report into the queue."""
        if report is not None:
            self.reports.put((self, report))

    def log_tail(self) -> str:
        """Return the end of its log."""
        return "\n".join(f"  | {line}" for line in self.tail()) or "  | (no output)"


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
            if not child.is_running:
                raise DemoError(
                    f"{child.name} ended unexpectedly (status {child.status}):\n{child.log_tail()}"
                )

    def kill(self, child: Child) -> None:
        """SIGKILL a process, and stop checking it."""
        child.kill()
        self.all.remove(child)

    def stop(self) -> None:
        """Ask all processes to end; kill those that do not."""
        for child in self.all:
            child.send_signal(signal.SIGTERM)
        deadline = monotonic() + STOP_TIMEOUT_S
        for child in self.all:
            # Not `end`: a second SIGTERM ends a worker at once.
            with suppress(AssertionError):
                child.wait(max(0.0, deadline - monotonic()))
            child.kill()
