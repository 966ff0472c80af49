"""Ours: a replica that joins after everything was written and folded into the full state."""

from __future__ import annotations

import time

from broker import Inspector, Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.model import BenchmarkError

POLL_S = 0.05


def write(config: RoleConfig, link: Link) -> None:
    """Write all, and wait until the scheduler has folded the last batch."""
    with (
        Producer(config.redis, namespace=NAMESPACE) as producer,
        Inspector(config.redis, namespace=NAMESPACE) as inspector,
    ):
        link.ready()
        began = link.wait_for_go()
        for key, value in zip(*config.workload(), strict=True):
            producer.set(key, value)
        producer.flush()
        wait_until_folded(inspector)
        link.wrote(began)


def wait_until_folded(inspector: Inspector) -> None:
    """Wait until the full state holds everything that was accepted.

    Raises:
        BenchmarkError: it took too long.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not is_folded(inspector):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"no full state within {TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def is_folded(inspector: Inspector) -> bool:
    """Whether the full state holds everything that was accepted."""
    return all(
        shard.pending_deltas == 0 and shard.snapshot_offset == shard.offset
        for shard in inspector.status().shards
    )


def read(config: RoleConfig, link: Link) -> None:
    """Join, until live."""
    link.ready()
    began = link.wait_for_go()
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        link.read(replica, began=began)
