"""Programs of the project as real processes, and the kernel's data about them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.testing.process import Process
from broker.testing.waiting import POLL_SECONDS, eventually

ROOT = Path(__file__).resolve().parents[2]
PROC = Path("/proc")
WORKERS = (sys.executable, "-m", "workers")

START_SECONDS = 30.0
END_SECONDS = 30.0
# What every worker promises about SIGTERM and SIGINT.
STOP_SECONDS = 2.0

needs_proc = pytest.mark.skipif(
    not (PROC / "self" / "schedstat").exists(), reason="needs Linux' /proc to look at processes"
)


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which only these of our settings hold."""
    foreign = {n: text for n, text in os.environ.items() if not n.startswith("STATEBROKER_")}
    return {**foreign, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(settings or {})}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a command: exit status and output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which is one line of JSON."""
        assert self.code == 0, self
        (line,) = self.out.splitlines()
        return json.loads(line)


class Program(Process):
    """One process, with a directory to run in and its output in files there.

    Args:
        command: program and arguments.
        directory: an existing one; the working directory.
        name: of the output files.
        settings: environment variables on top of the tests' own.
        is_leader: it leads a session and group of its own, as under a terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        name: str,
        settings: Mapping[str, str] | None = None,
        *,
        is_leader: bool = False,
    ) -> None:
        super().__init__(
            command,
            directory / f"{name}.err",
            out=directory / f"{name}.out",
            folder=directory,
            environment=environment(settings),
            is_leader=is_leader,
        )

    def wait(self, timeout: float = END_SECONDS) -> int:
        """Return its exit status once it ended."""
        return super().wait(timeout)

    def result(self, timeout: float = END_SECONDS) -> Result:
        """Wait for its end and return how it ended."""
        return Result(self.wait(timeout), self.out, self.err)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, whole_group: bool = False) -> float:
        """Send a signal, see it end with status 0, and return the seconds that took.

        The time for which the process and its children were ready to run and had no CPU does not
        count: on a busy machine it is longer than all the rest.
        """
        watch = Delays([self.pid, *children(self.pid)])
        began = time.monotonic()
        (self.send_signal_to_group if whole_group else self.send_signal)(number)
        while not has_ended(self.pid):
            assert time.monotonic() < began + END_SECONDS, f"does not stop; stderr:\n{self.err}"
            watch.look()
            time.sleep(POLL_SECONDS)
        took = time.monotonic() - began
        watch.look()
        assert self.wait() == 0, self.err
        return took - watch.seconds

    def kill_all(self) -> None:
        """SIGKILL it and its children, so that a test that failed leaves nothing running."""
        family = children(self.pid) if self.is_running else []
        self.kill()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Delays:
    """The time that processes waited for a CPU since this was created."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._first = {pid: run_delay(pid) for pid in pids}
        self._last = dict(self._first)

    def look(self) -> None:
        """Read the numbers; those of an ended process stay."""
        for pid in self._last:
            self._last[pid] = max(self._last[pid], run_delay(pid))

    @property
    def seconds(self) -> float:
        """The sum over all, at the last look."""
        return sum(self._last.values()) - sum(self._first.values())


def run_delay(pid: int) -> float:
    """Return the seconds for which a process' main thread was ready to run and had to wait."""
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def has_ended(pid: int) -> bool:
    """Whether a child of this process has ended; it is not reaped."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, pid, how) is not None


def fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from the third field, the state, on; empty when there is no such."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that the threads of a process have used, to the nanosecond."""
    threads = (PROC / str(pid) / "task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


def children(pid: int) -> list[int]:
    """Return the processes whose parent this is."""
    pids = [int(folder.name) for folder in PROC.glob("[0-9]*")]
    return [one for one in pids if (found := fields(one)) and int(found[1]) == pid]


def lives(pid: int) -> bool:
    """Whether a process is alive; a zombie is not."""
    found = fields(pid)
    return bool(found) and found[0] != "Z"


def command_line(pid: int) -> str:
    """Return the command line of a process, which every user of the machine can see."""
    try:
        return (PROC / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def marked(marker: str) -> list[int]:
    """Return the living processes that have a text in their environment."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            inherited = (folder / "environ").read_bytes()
        except OSError:
            continue
        if marker.encode() in inherited and lives(int(folder.name)):
            found.append(int(folder.name))
    return found


def await_file(path: Path, program: Program) -> str:
    """Wait until a program has written a file, and return the text."""

    def text() -> str:
        assert program.is_running, f"ended with {program.wait()}; stderr:\n{program.err}"
        return path.read_text() if path.exists() else ""

    return eventually(text, START_SECONDS, lambda: f"{path.name} is there; stderr:\n{program.err}")
