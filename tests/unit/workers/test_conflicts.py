"""Workers name settings that break each other when they start."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from broker.config import SETTINGS, checked
from broker.engine.settings import checked_settings, warn_of_conflicts
from broker.errors import ConfigError
from workers.cli import statebroker


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


@pytest.mark.parametrize("command", ["serve", "flush"])
def test_settings_that_can_never_work_are_refused(command: str) -> None:
    """Given together; the value, the limit and the fix are named, and nothing is started."""
    options = ["--heartbeat-interval", "10s", "--staleness-bound", "3s"]
    shown = CliRunner().invoke(statebroker, [command, "--url", "redis://127.0.0.1:1", *options])
    assert shown.exit_code == 2
    assert "heartbeat_interval=10 and staleness_bound=3" in shown.output
    assert "set heartbeat_interval to at most 1.5, or raise staleness_bound" in shown.output


def test_a_default_that_clashes_with_a_given_value_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A buffer below the default size of a chunk; both given, it is an error."""
    names = ("buffer_bytes", "chunk_bytes")
    checked_settings(names, {"buffer_bytes": 1 << 20})
    assert not caplog.messages
    checked_settings(names, {"buffer_bytes": 100_000})
    (line,) = caplog.messages
    assert line.startswith("settings_conflict chunk_bytes=262144 and buffer_bytes=100000")
    with pytest.raises(ConfigError, match="chunk_bytes=262144 and buffer_bytes=100000"):
        checked_settings(names, {"buffer_bytes": 100_000, "chunk_bytes": 262_144})
