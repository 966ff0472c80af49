"""HSET and PUBLISH without batches: 1000 updates per second, each with its time."""

from __future__ import annotations

import struct
import time
from typing import Any

import msgpack

from scripts.benchmarks.contenders.hset_publish import client, subscribed
from scripts.benchmarks.contenders.statebroker_count import PER_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.pace import paced, percentiles


def write(config: RoleConfig, link: Link) -> None:
    """Write at the rate, each update in a round trip of its own."""
    updates = zip(*config.workload(), strict=True)
    pipeline = client(config).pipeline(transaction=False)
    pack, as_bytes = msgpack.Packer().pack, struct.Struct("<d").pack
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    for key, value in paced(updates, PER_S):
        now = time.monotonic_ns()
        pipeline.hset("state", key, as_bytes(value))
        pipeline.publish("updates", pack((key, value, now)))
        pipeline.execute()
    link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Put every message into a dict, and record when it arrives."""
    state: dict[str, Any] = {}
    messages = subscribed(config)
    link.ready()
    latencies = []
    for message in messages:
        key, value, at = msgpack.unpackb(message["data"])
        state[key] = value
        latencies.append(time.monotonic_ns() - at)
        if len(latencies) == config.updates:
            break
    link.read(state, **percentiles(latencies))
