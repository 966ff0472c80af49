"""Ours, a table with u64 keys: records of 24 bytes, passed on as they are."""

from __future__ import annotations

import numpy as np

from broker import Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.contenders.statebroker_table import TABLE, numbers
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.workload import key_of

SIZE = 10_000
RECORD = [("key", "<u8"), ("value", "<f8"), ("timestamp", "<i8")]


def write(config: RoleConfig, link: Link) -> None:
    """Write slices of one array; done when Redis has accepted all."""
    keys, values = numbers(config)
    records = np.zeros(config.updates, dtype=RECORD)
    records["key"], records["value"], records["timestamp"] = keys, values, np.arange(values.size)
    with Producer(config.redis, namespace=NAMESPACE) as producer:
        table = producer.table(TABLE, keys=int)
        link.ready()
        began = link.wait_for_go()
        for first in range(0, config.updates, SIZE):
            table.set_records(records[first : first + SIZE])
        token = producer.flush()
        link.wrote(began, str(token))


def read(config: RoleConfig, link: Link) -> None:
    """Be live before the first update, and wait for the writer's token."""
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        link.ready()
        replica.wait_for(link.note(), TIMEOUT_S)
        received = replica.stats().bytes_received
        view = replica.table(TABLE, keys=int)
        link.read(
            lambda: {key_of(number): value for number, value in view.items()},
            bytes_per_update=received / config.updates,
        )
