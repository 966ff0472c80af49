"""A writer that keeps a rate, and what its reader makes of the times."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

TICK_S = 0.001
NS_PER_MS = 1e6


def paced(items: Iterator[T], per_s: float) -> Iterator[T]:
    """Yield items at a rate: those that are due, then a nap of a millisecond at most.

    A writer that fell behind catches up at once; it stamps each item when it writes it.
    """
    began = time.monotonic()
    done = 0
    while True:
        due = int((time.monotonic() - began) * per_s) + 1 - done
        group = list(islice(items, max(due, 0)))
        if due > 0 and not group:
            return
        yield from group
        done += len(group)
        time.sleep(max(0.0, min(TICK_S, began + done / per_s - time.monotonic())))


def paced_at(items: Iterable[tuple[float, T]]) -> Iterator[T]:
    """Yield items that come with the seconds after the first call at which they are due."""
    began = time.monotonic()
    for at, item in items:
        wait = began + at - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield item


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value that this part of all does not exceed.

    Args:
        values: at least one, in any order.
        part: above 0, up to 1.
    """
    return sorted(values)[math.ceil(part * len(values)) - 1]


def percentiles(latencies_ns: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and the most in milliseconds."""
    return {
        "p50_ms": quantile(latencies_ns, 0.5) / NS_PER_MS,
        "p99_ms": quantile(latencies_ns, 0.99) / NS_PER_MS,
        "max_ms": max(latencies_ns) / NS_PER_MS,
    }
