"""NATS JetStream key/value: put 200 at a time, watch on the other side."""

from __future__ import annotations

import asyncio
import struct
from itertools import islice

import nats
from nats.js.api import KeyValueConfig, StorageType

from scripts.benchmarks.link import Link, RoleConfig

AT_ONCE = 200
BUCKET = "state"
FLOAT = struct.Struct("<d")


async def write(config: RoleConfig, link: Link) -> None:
    """200 puts at a time, each acknowledged."""
    updates = zip(*config.workload(), strict=True)
    connection = await nats.connect(config.nats)
    bucket = await connection.jetstream().key_value(BUCKET)
    put, as_bytes = bucket.put, FLOAT.pack
    link.ready()
    began = link.wait_for_go()
    while group := list(islice(updates, AT_ONCE)):
        await asyncio.gather(*(put(key, as_bytes(value)) for key, value in group))
    link.wrote(began)
    await connection.close()


async def read(config: RoleConfig, link: Link) -> None:
    """Watch all keys from before the first update on; done when the last revision came.

    A watcher may skip revisions of a key that changes fast, so their number is not counted.
    """
    state: dict[str, float] = {}
    connection = await nats.connect(config.nats)
    bucket = await connection.jetstream().create_key_value(
        KeyValueConfig(bucket=BUCKET, storage=StorageType.MEMORY)
    )
    watcher = await bucket.watchall()
    link.ready()
    as_float = FLOAT.unpack
    async for entry in watcher:
        if entry is None:  # the end of what was there before
            continue
        state[entry.key] = as_float(entry.value)[0]
        if entry.revision == config.updates:
            break
    link.read(state)
    await connection.close()
