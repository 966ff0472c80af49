"""A process that has to run is restarted when it ends, until it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from broker.runtime import child
from broker.runtime.child import Child, StartError

SLEEPS = [sys.executable, "-c", "import signal; signal.pause()"]
TIMEOUT_S = 20.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart soon."""
    monkeypatch.setattr(child, "FIRST_PAUSE_S", 0.01)


def made(command: list[str], output: Path | None = None) -> Child:
    """Start a child with our environment."""
    return Child(
        "the child",
        command,
        environment=os.environ,
        orphan_signal=signal.SIGKILL,
        output=output,
    )


async def restarted(log: Path) -> None:
    """Kill the process of a child, and wait for the next one."""
    one = made(SLEEPS, log)
    await one.ready()
    assert one.process is not None
    first = one.process.pid
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(TIMEOUT_S):
        while one.process.pid == first:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
        await one.ready()
    second = one.process
    await one.stop(TIMEOUT_S)
    assert second.returncode == -signal.SIGTERM


def test_a_killed_process_is_restarted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the process and the signal; `stop` ends the new one with SIGTERM."""
    asyncio.run(restarted(tmp_path / "log"))

    (record,) = caplog.records
    assert "child_died name='the child' status=-9 restart_in=" in record.getMessage()


def test_a_command_that_does_not_exist_is_an_error_of_the_start() -> None:
    """`ready` raises the reason, and the next attempt follows."""

    async def attempts() -> list[str]:
        one = made(["/nonexistent/program"])
        reasons = []
        for _ in range(2):
            with pytest.raises(StartError) as raised:
                await one.ready()
            reasons.append(str(raised.value))
        await one.stop(0)
        return reasons

    assert all("/nonexistent/program" in reason for reason in asyncio.run(attempts()))
