"""A tied process ends with the one that started it, and is otherwise as any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker.runtime.processes import tied
from broker.testing.process import Process
from broker.testing.waiting import eventually

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]
# Starts a tied process, tells its id, and waits to be killed.
PARENT = """
import subprocess, signal, sys
from broker.runtime.processes import tied
child = subprocess.Popen(tied([sys.executable, "-c", "import signal; signal.pause()"]))
print(child.pid, flush=True)
signal.pause()
"""


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or nobody has waited for it yet."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals children of the dead")
def test_a_tied_process_ends_with_its_parent() -> None:
    """However the parent ends."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not has_ended(child)
        parent.kill()
        parent.wait()
        eventually(lambda: has_ended(child))


def test_a_tied_command_keeps_arguments_and_process_id() -> None:
    """The process that started it can signal it and read its output."""
    command = tied([sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1])", "a b"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        reported = process.communicate()[0]
    assert reported == f"{process.pid} a b\n"


def test_the_output_of_a_process_is_in_its_files(tmp_path: Path) -> None:
    """Both streams are kept apart, or both are in the log."""
    program = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
    apart = Process(program, tmp_path / "log", out=tmp_path / "out")
    together = Process(program, tmp_path / "both")
    assert (apart.wait(30), together.wait(30)) == (0, 0)
    assert (apart.out, apart.err) == ("out\n", "err\n")
    assert sorted(together.tail()) == ["err", "out"]


def test_orders_and_reports_are_lines_of_json(tmp_path: Path) -> None:
    """What is no JSON goes to the log; None is the last report."""
    echo = "import sys; print('hello', flush=True); print(sys.stdin.readline(), flush=True)"
    reports: list[object] = []
    process = Process([sys.executable, "-c", echo], tmp_path / "log", on_report=reports.append)
    process.order({"go": True})
    eventually(lambda: not process.is_running)
    process.end(1)
    assert reports == [{"go": True}, None]
    assert process.tail()[0] == "hello"


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """The end of a process is certain; to end it again does nothing."""
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
    process = Process(
        [sys.executable, "-c", f"{stubborn}; signal.pause(); signal.pause()"], tmp_path / "log"
    )
    eventually(lambda: process.err)
    with pytest.raises(AssertionError, match="runs after"):
        process.wait(0.01)
    process.end(0.05)
    process.end(0.05)
    assert process.status == -signal.SIGKILL


def test_a_leader_has_a_group_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C in our terminal does not reach it."""
    process = Process(SLEEPER, tmp_path / "log", is_leader=True)
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.send_signal_to_group(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
