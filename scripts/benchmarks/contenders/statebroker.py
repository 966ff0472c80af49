"""Ours: one `set` for each update; the other side is a live replica."""

from __future__ import annotations

from broker import Producer, Replica
from scripts.benchmarks.link import Link, RoleConfig

NAMESPACE = "bench"
TIMEOUT_S = 60.0


def write(config: RoleConfig, link: Link) -> None:
    """Set key by key; done when Redis has accepted all."""
    keys, values = config.workload()
    with Producer(config.redis, namespace=NAMESPACE) as producer:
        link.ready()
        began = link.wait_for_go()
        put = producer.set
        for key, value in zip(keys, values, strict=True):
            put(key, value)
        token = producer.flush()
        link.wrote(began, str(token))


def read(config: RoleConfig, link: Link) -> None:
    """Be live before the first update, and wait for the writer's token."""
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        link.ready()
        replica.wait_for(link.note(), TIMEOUT_S)
        link.read(replica)
