"""A contender of scripts/bench with a fault that depends on the number of updates."""

from __future__ import annotations

import sys

from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.workload import final_state

GOOD, LOSES_A_KEY, CRASHES = 50, 51, 52


def write(config: RoleConfig, link: Link) -> None:
    """Write nothing."""
    link.ready()
    began = link.wait_for_go()
    if config.updates == CRASHES:
        sys.exit("the writer has had enough")
    link.wrote(began, "the note")


def read(config: RoleConfig, link: Link) -> None:
    """Return the expected state, or one with a fault."""
    state = final_state(config.updates, config.keys)
    link.ready()
    if link.note() != "the note":
        state.clear()
    if config.updates == LOSES_A_KEY:
        state.popitem()
    link.read(state)
