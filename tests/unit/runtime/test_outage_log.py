"""An outage has few lines in the log, however often something is tried."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from broker.errors import ConnectError
from broker.runtime import clock
from broker.runtime.outage_log import MAX_BEGUN, OutageLog

ROOT = Path(__file__).parents[3]
# Each of them says that something happened, once; or it ends the loop.
EVENTS = {
    "append_task_failed",
    "callback_failed",  # a fault of the user's function: one line for each call
    "confirm_failed",  # for debugging only
    "sentinel_lost",  # for debugging only
}


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        """Return the time it was set to."""
        return self.at


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that outages are measured by."""
    found = Clock()
    monkeypatch.setattr(clock, "now", found.now)
    return found


def test_another_meaning_of_a_reply_is_logged_at_once(
    caplog: pytest.LogCaptureFixture, ticks: Clock
) -> None:
    """Of one class of errors too: a server that is away, and then one that is the wrong one."""
    outage = OutageLog(logging.getLogger("test"), "append_failed")
    replica = ConnectError("is a replica")
    replica.meaning = "is a replica"
    for error in (ConnectError("away"), replica, ConnectError("away"), replica):
        outage.failed(error)
        ticks.at += 0.1
    assert caplog.messages == ["append_failed error=away", "append_failed error=is a replica"]


def test_an_outage_has_a_line_at_its_begin_each_half_minute_and_at_its_end(
    caplog: pytest.LogCaptureFixture, ticks: Clock
) -> None:
    """The later lines count the failures; the next outage begins anew."""
    outage = OutageLog(logging.getLogger("test"), "poll_failed", "worker=w")
    for _ in range(2):
        caplog.clear()
        for _ in range(70):
            outage.failed("away")
            ticks.at += 1
        outage.ended()
        outage.ended()
        assert caplog.messages == [
            "poll_failed worker=w error=away",
            "poll_failed worker=w error=away failures=31 for=30",
            "poll_failed worker=w error=away failures=61 for=60",
            "poll_failed_ended worker=w failures=70 after=70.0",
        ]


def test_shards_have_one_outage_together(caplog: pytest.LogCaptureFixture, ticks: Clock) -> None:
    """It begins with the first shard and ends with the last; a shard that works changes nothing."""
    outage = OutageLog(logging.getLogger("test"), "append_failed", "node=n")
    for _ in range(31):
        for shard in range(3):
            outage.failed("away", shard=shard)
        outage.ended(7)
        ticks.at += 1
    for shard in range(3):
        outage.ended(shard)
    assert caplog.messages == [
        "append_failed node=n shard=0 error=away",
        "append_failed node=n shard=0 error=away failures=91 for=30 shards=3",
        "append_failed_ended node=n failures=93 after=31.0",
    ]


def test_another_kind_of_error_is_told_at_once(
    caplog: pytest.LogCaptureFixture, ticks: Clock
) -> None:
    """What is damaged in one shard is not hidden by the server of another one that is away."""
    outage = OutageLog(logging.getLogger("test"), "append_failed")
    for _ in range(5):
        outage.failed(ConnectionError("away"), shard=0)
        outage.failed(ValueError("damaged"), shard=1, fix="; repair it")
        ticks.at += 1
    assert caplog.messages == [
        "append_failed shard=0 error=away",
        "append_failed shard=1 error=damaged; repair it",
    ]


def test_what_fails_and_works_all_the_time_is_told_a_few_times(
    caplog: pytest.LogCaptureFixture, ticks: Clock
) -> None:
    """A connection that is cut off right after each success logs no line for each time."""
    outage = OutageLog(logging.getLogger("test"), "subscription_lost")
    for _ in range(100):
        outage.failed("cut off")
        outage.ended()
        ticks.at += 0.1
    assert caplog.messages == ["subscription_lost error=cut off"] * MAX_BEGUN
    ticks.at += 30
    outage.failed("cut off")
    assert len(caplog.messages) == MAX_BEGUN + 1


def test_a_single_long_failure_has_an_end(caplog: pytest.LogCaptureFixture, ticks: Clock) -> None:
    """A command that hung for seconds before it failed leaves a line that says it works again."""
    outage = OutageLog(logging.getLogger("test"), "lease_failed")
    outage.failed("timeout")
    ticks.at += 5
    outage.ended()
    assert caplog.messages[1:] == ["lease_failed_ended failures=1 after=5.0"]


def _lines_of_retries(path: Path) -> set[str]:
    """Return the first words of what is logged where a loop goes on after an error."""
    found = set()
    for loop in ast.walk(ast.parse(path.read_text())):
        if not isinstance(loop, ast.While | ast.AsyncFor | ast.For):
            continue
        handlers = [one for one in ast.walk(loop) if isinstance(one, ast.ExceptHandler)]
        for call in (one for handler in handlers for one in ast.walk(handler)):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id in {"log", "logger", "logging"}
                and isinstance(call.args[0], ast.Constant)
            ):
                found.add(str(call.args[0].value).split()[0])
    return found


def test_nothing_that_tries_again_logs_by_itself() -> None:
    """Errors after which a loop goes on are logged through the one home that counts them."""
    found = {
        line
        for folder in ("broker", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if "testing" not in path.parts
        for line in _lines_of_retries(path)
    }
    assert found <= EVENTS, f"log these through OutageLog: {found - EVENTS}"
    assert found & EVENTS, "the search finds nothing any more"
