"""NATS JetStream key/value, for any shape: put 200 at a time, watch on the other side."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import msgpack
import nats
from nats.js.api import KeyValueConfig, StorageType
from nats.js.kv import KeyValue

from scripts.benchmarks.contenders.nats_kv import AT_ONCE, BUCKET
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish
from scripts.benchmarks.shapes import Updates

END = "end"


async def write(config: RoleConfig, link: Link) -> None:
    """200 puts at a time, each acknowledged."""
    updates = Updates.of(config)
    connection = await nats.connect(config.nats)
    bucket = await connection.jetstream().key_value(BUCKET)
    put, pack = bucket.put, msgpack.Packer().pack
    link.ready()
    began = link.wait_for_go()
    for page in updates.pages(config):
        while group := list(islice(page, AT_ONCE)):
            await asyncio.gather(*(put(key, pack(value)) for key, value in group))
    await put(END, b"")
    link.wrote(began, written=updates.written)
    await connection.close()


async def read(config: RoleConfig, link: Link) -> None:
    """Watch all keys from before the first update on; done when the last key came."""
    state: dict[str, Any] = {}
    connection = await nats.connect(config.nats)
    bucket = await connection.jetstream().create_key_value(
        KeyValueConfig(bucket=BUCKET, storage=StorageType.MEMORY)
    )
    watcher = await bucket.watchall()
    before = connection.stats["in_bytes"]
    link.ready()
    unpack, received = msgpack.unpackb, 0
    async for entry in watcher:
        if entry is None:  # the end of what was there before
            continue
        if entry.key == END:
            break
        state[entry.key] = unpack(entry.value)
        received += 1
    wire_bytes = connection.stats["in_bytes"] - before
    await watcher.stop()
    loop = asyncio.get_running_loop()

    def join() -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(_joined(bucket), loop).result()

    await asyncio.to_thread(
        finish, link, state, join, received=received, wire_bytes=lambda: wire_bytes
    )
    await connection.close()


async def _joined(bucket: KeyValue) -> dict[str, Any]:
    """Return what a new watcher gets first."""
    watcher = await bucket.watchall()
    state: dict[str, Any] = {}
    async for entry in watcher:
        if entry is None:
            break
        if entry.key != END:
            state[entry.key] = msgpack.unpackb(entry.value)
    await watcher.stop()
    return state
