"""Readers that load an existing state, and measure their time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from broker import Replica
from scripts.benchmarks.contenders.hscan import scanned
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.memory import peak, reset_peak, resident
from scripts.benchmarks.workload import key_of, value_of


def replica(config: RoleConfig, link: Link) -> None:
    """Join, until live."""
    with ExitStack() as stack:

        def join() -> Mapping[str, Any]:
            joined = stack.enter_context(Replica(config.redis, namespace=NAMESPACE))
            joined.wait_live(TIMEOUT_S)
            return joined

        _measure(link, join)


def scan(config: RoleConfig, link: Link) -> None:
    """Scan a hash into a dict."""
    _measure(link, lambda: scanned(config))


def fill(config: RoleConfig, link: Link) -> None:
    """Create a dict with the same content, without a server."""

    def made() -> dict[str, float]:
        return {key_of(number): value_of(number) for number in range(config.keys)}

    _measure(link, made)


def _measure(link: Link, join: Callable[[], Mapping[str, Any]]) -> None:
    link.ready()
    link.expect("go")
    before = resident()
    reset_peak()
    began = time.monotonic()
    state = join()
    seconds = time.monotonic() - began
    link.send(seconds=seconds, peak=peak() - before, held=resident() - before)
    link.show(state)
