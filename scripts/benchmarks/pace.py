"""Writing at a fixed rate, and percentiles of latencies."""

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
    """Yield items at a rate: those that are due, then sleep for a millisecond at most.

    If the caller falls behind, the items that are due follow without a pause.
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
    """Yield items, each at its time in seconds after the first call."""
    began = time.monotonic()
    for at, item in items:
        wait = began + at - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield item


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value that this share of all values does not exceed.

    Args:
        values: at least one, in any order.
        part: above 0, up to 1.
    """
    return sorted(values)[math.ceil(part * len(values)) - 1]


def percentiles(latencies_ns: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and maximum in milliseconds."""
    return {
        "p50_ms": quantile(latencies_ns, 0.5) / NS_PER_MS,
        "p99_ms": quantile(latencies_ns, 0.99) / NS_PER_MS,
        "max_ms": max(latencies_ns) / NS_PER_MS,
    }
