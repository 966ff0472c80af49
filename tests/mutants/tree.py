"""Copies of the project, to break and to run pytest in."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.speedups.build import compiled
from broker.testing.process import Process
from tests.mutants.mutation import Mutation

# Short output with complete reasons: the lines of the summary are parsed.
PYTEST = (*("-m", "pytest", "-q", "--no-header", "--tb=short"), *("-p", "no:cacheprovider"))


class TreeError(Exception):
    """The project cannot be copied."""


def files_of(root: Path) -> list[Path]:
    """Return the files of the project, committed or not, as paths from its root.

    Raises:
        TreeError: git is missing, or this is not a checkout.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", None) or error
        raise TreeError(f"{root} cannot be listed, which takes git and a checkout: {why}") from None
    paths = [Path(name) for name in done.stdout.split("\0") if name]
    # A deleted file is listed until the deletion is committed.
    return [path for path in paths if (root / path).is_file()]


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of pytest.

    Attributes:
        status: its exit status; None after a timeout.
        output: its output.
    """

    status: int | None
    output: str


class Tree:
    """A copy of the project, in which one mutation at a time is applied.

    Args:
        root: the project.
        files: its files.
        place: empty folder for the copy; the output of pytest is stored beside it.
    """

    def __init__(self, root: Path, files: Iterable[Path], place: Path) -> None:
        self._place = place
        self._log = place.with_suffix(".log")
        for path in files:
            copy = place / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, copy)

    async def run_broken(self, mutation: Mutation, timeout: float) -> Ran:  # noqa: ASYNC109
        """Run the test of a mutation with the break in the code, then undo it.

        Raises:
            TableError: the mutation does not fit the code.
        """
        file = self._place / mutation.file
        original = file.read_text()
        file.write_text(mutation.applied(original))
        # The copy holds no extension: breaks of its twins in Python are seen.
        made = compiled(self._place) if file.suffix == ".c" else None
        try:
            return await self.run(["-x", mutation.test], timeout)
        finally:
            file.write_text(original)
            if made is not None:
                made.unlink()

    async def run(self, arguments: Sequence[str], timeout: float | None) -> Ran:  # noqa: ASYNC109
        """Run pytest in this copy; after `timeout` seconds it and all its children are killed."""
        environment = os.environ | {
            "PYTHONPATH": str(self._place),
            # Stale bytecode would hide a break that changes neither size nor second of the file.
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "250",
        }
        process = Process(
            [sys.executable, *PYTEST, *arguments],
            self._log,
            folder=self._place,
            environment=environment,
            is_leader=True,
        )
        status = None
        try:
            with suppress(AssertionError):
                status = await asyncio.to_thread(process.wait, timeout)
        finally:
            if process.is_running:
                process.send_signal_to_group(signal.SIGKILL)
            process.kill()
        return Ran(status, process.err)
