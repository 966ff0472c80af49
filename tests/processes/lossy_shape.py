"""A contender of a grid of scripts/bench with a fault that depends on the number of updates."""

from __future__ import annotations

from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish
from scripts.benchmarks.shapes import Updates, final

GOOD, MISSES_AN_UPDATE, HOLDS_AN_OLD_VALUE, JOINS_WITHOUT_A_KEY = 50, 51, 52, 53


def write(config: RoleConfig, link: Link) -> None:
    """Write nothing."""
    updates = Updates.of(config)
    link.ready()
    began = link.wait_for_go()
    for _ in updates.pages(config):
        pass
    link.wrote(began, written=updates.written)


def read(config: RoleConfig, link: Link) -> None:
    """Return the expected state and numbers, or what one with a fault would."""
    state = final(config.details["shape"], config.keys, config.updates)
    late = dict(state)
    if config.updates == HOLDS_AN_OLD_VALUE:
        state[next(iter(state))] = None
    if config.updates == JOINS_WITHOUT_A_KEY:
        late.popitem()
    link.ready()
    link.note()
    received = config.updates - (config.updates == MISSES_AN_UPDATE)
    finish(link, state, lambda: late, received=received, wire_bytes=lambda: 7 * received)
