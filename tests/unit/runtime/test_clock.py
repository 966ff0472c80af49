"""Ages are measured by one clock, which does not stand still while the machine is suspended."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from broker.runtime import clock

ROOT = Path(__file__).parents[3]
# The age of what they hold decides what a user is told.
JUDGES = ("broker/core", "broker/engine", "workers")
# They only measure how long something took.
DURATIONS = {
    "workers/cli/content.py",
    "workers/cli/status.py",
    "workers/doctor/examine.py",
}


@pytest.mark.skipif(not clock.COUNTS_SUSPENSION, reason="this system has no such clock")
def test_the_clock_counts_the_time_of_a_suspended_machine() -> None:
    """The clock is the one that goes on in suspension, not the monotonic one."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = clock.now()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert getattr(clock.now, "args", None) == (time.CLOCK_BOOTTIME,)


def test_the_clock_never_goes_back() -> None:
    """Two readings of the clock are in order."""
    assert clock.now() <= clock.now()


@pytest.mark.parametrize("folder", JUDGES)
def test_nothing_that_judges_an_age_has_a_clock_of_its_own(folder: str) -> None:
    """No module that judges staleness, leases or heartbeats reads another clock."""
    read = re.compile(r"\btime\.(monotonic|perf_counter)|from time import .*\bmonotonic")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if read.search(path.read_text())
    }
    assert found <= DURATIONS
