"""Progress of a benchmark on stderr: one line for each run, with the time that it took so far."""

from __future__ import annotations

import time

from rich.console import Console


class Progress:
    """Counts runs and prints a line for each.

    Args:
        total: number of runs that are planned.
        console: where lines go; None prints nothing.
    """

    def __init__(self, total: int = 0, console: Console | None = None) -> None:
        self.lines: list[str] = []
        self._total = total
        self._console = console
        self._done = 0
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Print a line that is no run."""
        self.lines.append(text)
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def done(self, text: str) -> None:
        """Count one run and print its result."""
        self._done += 1
        seconds = time.monotonic() - self._began
        self.note(f"[{self._done}/{self._total}, {seconds:.0f} s] {text}")
