"""Ours, a table with text keys: columns of numbers for keys that are prepared once."""

from __future__ import annotations

from typing import Any

import numpy as np

from broker import Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.workload import STRIDE, key_of

TABLE = "positions"
COLUMN = 1_000


def column_of(config: RoleConfig) -> int:
    """Return how many updates each call writes."""
    return int(config.details.get("column", COLUMN))


def numbers(config: RoleConfig) -> tuple[Any, Any]:
    """Return the number of the key of each update, and its value."""
    order = np.arange(config.updates)
    return order * STRIDE % config.keys, order / 7


def write(config: RoleConfig, link: Link) -> None:
    """Set column by column; done when Redis has accepted all."""
    keys, values = numbers(config)
    size = column_of(config)
    columns = [slice(first, first + size) for first in range(0, config.updates, size)]
    period = config.keys // size
    with Producer(config.redis, namespace=NAMESPACE) as producer:
        table = producer.table(TABLE)
        # Keys repeat in the same order, so each column is one of these.
        looked_up = [
            table.keys([key_of(number) for number in keys[one].tolist()])
            for one in columns[:period]
        ]
        link.ready()
        began = link.wait_for_go()
        for number, one in enumerate(columns):
            table.set_many(looked_up[number % period], values[one])
        token = producer.flush()
        link.wrote(began, str(token))


def read(config: RoleConfig, link: Link) -> None:
    """Be live before the first update, and wait for the writer's token."""
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        link.ready()
        replica.wait_for(link.note(), TIMEOUT_S)
        received = replica.stats().bytes_received
        link.read(lambda: dict(replica.table(TABLE)), bytes_per_update=received / config.updates)
