"""HSET and PUBLISH batched by hand: 200 numbers in one HSET and one message."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from struct import Struct
from typing import Any

import msgpack

from scripts.benchmarks.contenders.hset_publish import client, subscribed
from scripts.benchmarks.link import Link, RoleConfig

BATCHED = 200
IN_FLIGHT = 10
_pack = msgpack.Packer().pack


def write(config: RoleConfig, link: Link) -> None:
    """Two commands for 200 updates, ten such pairs in one pipeline; done when all are answered."""
    keys, values = config.workload()
    pipeline = client(config).pipeline(transaction=False)
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    for first in range(0, len(keys), BATCHED):
        page = slice(first, first + BATCHED)
        fields, message = packed(keys[page], values[page])
        pipeline.hset("state", items=fields)
        pipeline.publish("updates", message)
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
        keys, values = unpacked(message["data"])
        state.update(zip(keys, values, strict=True))
        left -= len(keys)
        if not left:
            break
    link.read(state)


def packed(keys: Sequence[str], values: Iterable[float]) -> tuple[list[Any], bytes]:
    """Return numbers as fields of a hash, and as a message: the keys, then one column."""
    column = array("d", values).tobytes()
    return fields_of(keys, _splitter(len(keys)).unpack(column)), _pack((keys, column))


def unpacked(message: bytes) -> tuple[list[str], Iterable[float]]:
    """Return the keys of a message, and their numbers."""
    keys, column = msgpack.unpackb(message)
    return keys, memoryview(column).cast("d")


def fields_of(keys: Sequence[str], values: Iterable[bytes]) -> list[Any]:
    """Return keys and packed values as HSET takes them."""
    fields: list[Any] = [None] * (2 * len(keys))
    fields[::2] = keys
    fields[1::2] = values
    return fields


@cache
def _splitter(count: int) -> Struct:
    """Return what splits a column into the bytes of each number."""
    return Struct("8s" * count)
