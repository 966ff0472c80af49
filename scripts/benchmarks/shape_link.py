"""What the roles of the four shapes report, beyond what all roles do."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.model import Contender
from scripts.benchmarks.shapes import Updates

NS_PER_MS = 1e6


def is_following(owner: RoleConfig | Contender) -> bool:
    """Whether the reader of this run takes every change; else it reads the state at the end."""
    return bool(owner.details.get("changes"))


def finish(
    link: Link,
    state: dict[str, Any],
    join: Callable[[], dict[str, Any]] | None,
    *,
    received: int,
    wire_bytes: Callable[[], float],
) -> None:
    """Stop the clock, hand the state over, then join once more, as one who comes late.

    Args:
        link: of the reader.
        state: key -> value, all unpacked.
        join: returns the same, read by a new connection; None if nobody can come late.
        received: number of updates that came.
        wire_bytes: returns the size of the messages that brought them; called after the clock.
    """
    link.hand_over(state, received=received)
    link.expect("join")
    measures, fault = {"wire_bytes": wire_bytes()}, ""
    if join is not None:
        began = time.monotonic_ns()
        joined = join()
        measures["joining_ms"] = (time.monotonic_ns() - began) / NS_PER_MS
        if joined != state:
            fault = "a reader that joined late holds another state"
    link.send(measures=measures, fault=fault)
    link.expect("end")


def mean_bytes(config: RoleConfig, message: Callable[[tuple[str, Any]], bytes]) -> float:
    """Return the mean size of the messages of single updates."""
    return fmean(len(message(pair)) for pair in Updates.of(config).pairs)
