"""An outage has few lines in the log, however often something is tried."""

from __future__ import annotations

import logging

import pytest

from broker.runtime import clock
from broker.runtime.outage_log import OutageLog


def test_an_outage_has_a_line_at_its_begin_each_half_minute_and_at_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later lines count the failures; the next outage begins anew."""
    now = 100.0
    monkeypatch.setattr(clock, "now", lambda: now)
    outage = OutageLog(logging.getLogger("test"), "poll_failed", "worker=w")
    for _ in range(2):
        caplog.clear()
        for _ in range(70):
            outage.failed("away")
            now += 1
        outage.ended()
        outage.ended()
        assert caplog.messages == [
            "poll_failed worker=w error=away",
            "poll_failed worker=w error=away failures=31 for=30",
            "poll_failed worker=w error=away failures=61 for=60",
            "poll_failed_ended worker=w failures=70 after=70.0",
        ]
