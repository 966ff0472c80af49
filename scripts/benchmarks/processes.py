"""Processes of a benchmark: start, messages, logs and end."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from broker.testing import process
from scripts.benchmarks.model import BenchmarkError

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 5.0


class Process(process.Process):
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
        self._reports: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        super().__init__(
            command,
            folder / f"{name}.log",
            on_report=self._reports.put if is_role else None,
            folder=ROOT,
            environment={**os.environ, **(environment or {})},
            # Control-C goes to the measuring process alone.
            is_leader=True,
        )

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

    def send(self, order: str, **details: object) -> None:
        """Send an order; if the process has ended, `receive` reports it."""
        self.order({"order": order, **details})

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
            raise self.failure(f"ended with status {self.wait(STOP_TIMEOUT_S)}")
        return report

    def failure(self, what: str) -> BenchmarkError:
        """Return an error with the end of the process's log."""
        return BenchmarkError("\n  | ".join([f"{self.name} {what}", *self.tail()]))

    def end(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """End it: SIGTERM, then SIGKILL after a timeout. Does nothing if it has ended."""
        super().end(timeout)


class ProcessesOfRun(ABC):
    """All processes of one run, and a folder for their files; leaving the context ends them all.

    Attributes:
        folder: of this run; removed at the end.
        stack: of what the run has started.
    """

    folder: Path

    def __init__(self) -> None:
        self.stack = ExitStack()

    @abstractmethod
    def start_all(self) -> None:
        """Start what the run needs, in `stack`.

        Raises:
            BenchmarkError: something did not start.
        """

    def __enter__(self) -> Self:
        """Start everything.

        Raises:
            BenchmarkError: something did not start.
        """
        try:
            folder = TemporaryDirectory(prefix="statebroker-bench-")
            self.folder = Path(self.stack.enter_context(folder))
            self.start_all()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything."""
        self.stack.close()
