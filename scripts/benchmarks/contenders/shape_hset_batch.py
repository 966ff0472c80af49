"""HSET and PUBLISH batched by hand, for any shape: 200 updates in one HSET and one message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Any

import msgpack

from scripts.benchmarks.contenders import hset_batch
from scripts.benchmarks.contenders.hset_batch import BATCHED, fields_of
from scripts.benchmarks.contenders.hset_publish import client, subscribed
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish, is_following
from scripts.benchmarks.shapes import FLOAT, PAGE, Updates

# A page of updates, which has five messages, goes into two pipelines.
IN_FLIGHT = 2 * PAGE // BATCHED
NUMBER = Struct("d")
_pack = msgpack.Packer().pack


def write(config: RoleConfig, link: Link) -> None:
    """Pack each value once; two commands for 200 updates, ten such pairs in one pipeline."""
    updates = Updates.of(config)
    pipeline = client(config).pipeline(transaction=False)
    pack = hset_batch.packed if is_numeric(config) else packed
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    for page in updates.pages(config):
        keys, values = zip(*page, strict=True)
        for first in range(0, len(keys), BATCHED):
            part = slice(first, first + BATCHED)
            fields, message = pack(keys[part], values[part])
            pipeline.hset("state", items=fields)
            pipeline.publish("updates", message)
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
    unpack = hset_batch.unpacked if is_numeric(config) else unpacked
    link.ready()
    is_each = is_following(config)
    for message in messages:
        data = message["data"]
        if not data:
            break
        wire_bytes += len(data)
        keys, values = unpack(data)
        if is_each:
            for key, value in zip(keys, values, strict=True):
                state[key] = value
                received += 1
        else:
            state.update(zip(keys, values, strict=True))
            received += len(keys)
    of_field = number if is_numeric(config) else msgpack.unpackb
    finish(
        link,
        state,
        lambda: joined(config, of_field),
        received=received,
        wire_bytes=lambda: wire_bytes,
    )


def is_numeric(config: RoleConfig) -> bool:
    """Whether all values are floats, which a careful user packs as a column."""
    return bool(config.details["shape"] == FLOAT)


def packed(keys: Sequence[str], values: Iterable[Any]) -> tuple[list[Any], bytes]:
    """Return values as fields of a hash, and as a message: the keys, then all values."""
    column = list(map(_pack, values))
    return fields_of(keys, column), _pack((keys, b"".join(column)))


def unpacked(message: bytes) -> tuple[list[str], Iterable[Any]]:
    """Return the keys of a message, and their values."""
    keys, column = msgpack.unpackb(message)
    values = msgpack.Unpacker()
    values.feed(column)
    return keys, values


def number(field: bytes) -> float:
    """Return the number of a field."""
    value: float = NUMBER.unpack(field)[0]
    return value


def joined(config: RoleConfig, unpack: Callable[[bytes], Any]) -> dict[str, Any]:
    """Return the whole hash, every field unpacked."""
    # redis-py's type covers both faces.
    fields: Any = client(config).hgetall("state")
    return {key.decode(): unpack(value) for key, value in fields.items()}
