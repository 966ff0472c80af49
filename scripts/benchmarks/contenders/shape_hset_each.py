"""HSET and PUBLISH for each update, for any shape; 200 updates in one pipeline."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgpack

from scripts.benchmarks.contenders.hset_publish import PIPELINED, client, subscribed
from scripts.benchmarks.contenders.shape_hset_batch import joined
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish, mean_bytes
from scripts.benchmarks.shapes import Updates


def write(config: RoleConfig, link: Link) -> None:
    """Two commands for each update; done when all are answered."""
    updates = Updates.of(config)
    pipeline = client(config).pipeline(transaction=False)
    pack = msgpack.Packer().pack
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    for page in updates.pages(config):
        while group := list(islice(page, PIPELINED)):
            for key, value in group:
                pipeline.hset("state", key, pack(value))
                pipeline.publish("updates", pack((key, value)))
            pipeline.execute()
    pipeline.publish("updates", b"")
    pipeline.execute()
    link.wrote(began, written=updates.written)


def read(config: RoleConfig, link: Link) -> None:
    """Put every message into a dict; the empty one is the last."""
    state: dict[str, Any] = {}
    received = 0
    messages = subscribed(config)
    link.ready()
    unpack = msgpack.unpackb
    for message in messages:
        data = message["data"]
        if not data:
            break
        key, value = unpack(data)
        state[key] = value
        received += 1
    finish(
        link,
        state,
        lambda: joined(config, unpack),
        received=received,
        wire_bytes=lambda: received * mean_bytes(config, msgpack.packb),
    )
