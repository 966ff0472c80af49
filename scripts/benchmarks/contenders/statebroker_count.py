"""Ours, every delta published immediately: 1000 per second, each with the time of its `set`."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from broker import Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.pace import paced, percentiles

PER_S = 1_000


def write(config: RoleConfig, link: Link) -> None:
    """Set at the rate; the value carries the time."""
    updates = zip(*config.workload(), strict=True)
    with Producer(config.redis, namespace=NAMESPACE, local_delta_max_count=1, linger=0) as producer:
        link.ready()
        began = link.wait_for_go()
        for key, value in paced(updates, config.details.get("per_s", PER_S)):
            producer.set(key, [value, time.monotonic_ns()])
        link.wrote(began, str(producer.flush()))


def read(config: RoleConfig, link: Link) -> None:
    """Receive every change, and record when it arrives."""
    latencies = []
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        with closing(replica.changes()) as changes:
            link.ready()
            for change in changes:
                stamped: Any = change.value
                latencies.append(time.monotonic_ns() - stamped[1])
                if len(latencies) == config.updates:
                    break
        replica.wait_for(link.note(), TIMEOUT_S)
        state = {key: value for key, (value, _) in replica.items()}
        link.read(state, **percentiles(latencies))
