"""Workers name settings that break each other when they start."""

from __future__ import annotations

import pytest

from broker.config import SETTINGS, checked
from workers.serve import warn_of_conflicts


def test_a_worker_warns_of_heartbeats_rarer_than_the_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line for each pair; none for the defaults."""
    settings = checked(**dict.fromkeys(SETTINGS))
    warn_of_conflicts(settings)
    assert not caplog.messages
    warn_of_conflicts(settings | {"heartbeat_interval": 10.0})
    (line,) = caplog.messages
    assert line.startswith("settings_conflict heartbeat_interval=10 and staleness_bound=3")
