"""HSET and PUBLISH batched by hand, for any shape: 200 updates in one HSET and one message."""

from __future__ import annotations

from typing import Any

import msgpack

from scripts.benchmarks.contenders.hset_publish import client, subscribed
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish, is_following
from scripts.benchmarks.shapes import PAGE, Updates

BATCHED = 200
# A page of updates, which has five messages, goes into two pipelines.
IN_FLIGHT = 2 * PAGE // BATCHED


def write(config: RoleConfig, link: Link) -> None:
    """Pack each value once; two commands for 200 updates, ten such pairs in one pipeline."""
    updates = Updates.of(config)
    pipeline = client(config).pipeline(transaction=False)
    pack = msgpack.Packer().pack
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    for page in updates.pages(config):
        parts = [part for key, value in page for part in (key, pack(value))]
        for first in range(0, len(parts), 2 * BATCHED):
            fields = parts[first : first + 2 * BATCHED]
            pipeline.hset("state", items=fields)
            pipeline.publish("updates", pack(fields))
        if len(pipeline) >= 2 * IN_FLIGHT:
            pipeline.execute()
    pipeline.publish("updates", b"")
    pipeline.execute()
    link.wrote(began, written=updates.written)


def read(config: RoleConfig, link: Link) -> None:
    """Unpack every value of every message into a dict; the empty message is the last."""
    state: dict[str, Any] = {}
    received = wire_bytes = 0
    messages = subscribed(config)
    link.ready()
    unpack, is_each = msgpack.unpackb, is_following(config)
    for message in messages:
        data = message["data"]
        if not data:
            break
        fields = unpack(data)
        if is_each:
            for key, packed in zip(fields[::2], fields[1::2], strict=True):
                state[key] = unpack(packed)
                received += 1
        else:
            state.update(zip(fields[::2], map(unpack, fields[1::2]), strict=True))
            received += len(fields) // 2
        wire_bytes += len(data)
    finish(link, state, lambda: joined(config), received=received, wire_bytes=lambda: wire_bytes)


def joined(config: RoleConfig) -> dict[str, Any]:
    """Return the whole hash, unpacked."""
    # redis-py's type covers both faces.
    fields: Any = client(config).hgetall("state")
    return {key.decode(): msgpack.unpackb(packed) for key, packed in fields.items()}
