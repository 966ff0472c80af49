"""Ours with default settings at 10,000 deltas per second: the delay beyond their maximum age."""

from __future__ import annotations

import gc
import time
from contextlib import closing
from typing import Any

from broker import Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.pace import NS_PER_MS, paced, percentiles, quantile

PER_S = 10_000
MAX_AGE_S = 0.05
MAX_AGE_NS = round(MAX_AGE_S * 1e9)


def write(config: RoleConfig, link: Link) -> None:
    """Set at the rate; the value carries the time."""
    updates = zip(*config.workload(), strict=True)
    with Producer(config.redis, namespace=NAMESPACE, local_delta_max_age=MAX_AGE_S) as producer:
        link.ready()
        began = link.wait_for_go()
        for key, value in paced(updates, config.details.get("per_s", PER_S)):
            producer.set(key, [value, time.monotonic_ns()])
        link.wrote(began, str(producer.flush()))


def read(config: RoleConfig, link: Link) -> None:
    """Receive every change; a batch arrives when the first of its changes does."""
    lateness: list[int] = []
    oldest: dict[int, int] = {}
    left, offset, now = config.updates, -1, 0
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        gc.freeze()
        with closing(replica.changes()) as changes:
            link.ready()
            for change in changes:
                if change.position.offset != offset:
                    offset, now = change.position.offset, time.monotonic_ns()
                stamped: Any = change.value
                beyond = now - stamped[1] - MAX_AGE_NS
                lateness.append(beyond)
                oldest[offset] = max(beyond, oldest.get(offset, beyond))
                left -= 1
                if not left:
                    break
        replica.wait_for(link.note(), TIMEOUT_S)
        state = {key: value for key, (value, _) in replica.items()}
        link.read(
            state,
            batches=len(oldest),
            all_p99_ms=quantile(lateness, 0.99) / NS_PER_MS,
            **percentiles(list(oldest.values())),
        )
