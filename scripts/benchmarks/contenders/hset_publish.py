"""HSET for late joiners, PUBLISH for subscribers; redis-py with hiredis, pipelined."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgpack
import redis

from scripts.benchmarks.link import Link, RoleConfig

PIPELINED = 200


def client(config: RoleConfig) -> redis.Redis:
    """Return a client with RESP2, which redis-py parses faster."""
    return redis.Redis.from_url(config.redis, protocol=2)


def subscribed(config: RoleConfig) -> Iterator[dict[str, Any]]:
    """Subscribe, and return the messages from now on."""
    subscription = client(config).pubsub()  # type: ignore[no-untyped-call]
    subscription.subscribe("updates")
    messages: Iterator[dict[str, Any]] = subscription.listen()
    next(messages)  # the confirmation of the subscription
    return messages


def write(config: RoleConfig, link: Link) -> None:
    """Two commands for each update, 200 updates in one pipeline; done when all are answered."""
    updates = zip(*config.workload(), strict=True)
    pipeline = client(config).pipeline(transaction=False)
    pack, as_bytes = msgpack.Packer().pack, struct.Struct("<d").pack
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    while group := list(islice(updates, PIPELINED)):
        for key, value in group:
            pipeline.hset("state", key, as_bytes(value))
            pipeline.publish("updates", pack((key, value)))
        pipeline.execute()
    link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Put every message into a dict; done when the last one came."""
    state: dict[str, Any] = {}
    messages = subscribed(config)
    link.ready()
    left = config.updates
    unpack = msgpack.unpackb
    for message in messages:
        key, value = unpack(message["data"])
        state[key] = value
        left -= 1
        if not left:
            break
    link.read(state)
