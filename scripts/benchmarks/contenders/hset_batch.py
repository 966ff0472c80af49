"""HSET and PUBLISH batched by hand: 200 updates in one HSET and one message."""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any

import msgpack

from scripts.benchmarks.contenders.hset_publish import client, subscribed
from scripts.benchmarks.link import Link, RoleConfig

BATCHED = 200
IN_FLIGHT = 10


def write(config: RoleConfig, link: Link) -> None:
    """Two commands for 200 updates, ten such pairs in one pipeline; done when all are answered."""
    updates = zip(*config.workload(), strict=True)
    pipeline = client(config).pipeline(transaction=False)
    pack, as_bytes = msgpack.Packer().pack, struct.Struct("<d").pack
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    while group := list(islice(updates, BATCHED)):
        fields = [part for key, value in group for part in (key, as_bytes(value))]
        pipeline.hset("state", items=fields)
        pipeline.publish("updates", pack(group))
        if len(pipeline) >= 2 * IN_FLIGHT:
            pipeline.execute()
    pipeline.execute()
    link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Put every message into a dict; done when the last one came."""
    state: dict[str, Any] = {}
    messages = subscribed(config)
    link.ready()
    left = config.updates
    for message in messages:
        group = msgpack.unpackb(message["data"])
        state.update(group)
        left -= len(group)
        if not left:
            break
    link.read(state)
