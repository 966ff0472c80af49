"""The scheduler's writer of the full state, run on order; and the simplest possible one."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any

from broker.backend.session import Session
from broker.config import SETTINGS
from scripts.benchmarks.contenders.hset_publish import client
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from workers.snapshot import SnapshotWorker

OFFSET = struct.Struct(">Q")
WRITTEN_AT_ONCE = 1_000


async def fold(config: RoleConfig, link: Link) -> None:
    """Update the full state once for each order "go"."""
    session = Session(config.redis, NAMESPACE, None)
    await session.connect(as_worker=True)
    await session.create_or_join()
    writer = SnapshotWorker(
        session,
        0,
        "bench",
        lease_ttl=TIMEOUT_S,
        log_retention=0.0,
        log_limit=round(SETTINGS["log_bytes"].default or 0),
    )
    link.ready()
    while True:
        await asyncio.to_thread(link.expect, "go")
        began = time.monotonic()
        written = await writer.write_once()
        link.send(
            seconds=time.monotonic() - began,
            written=0 if written is None else written.sets + written.deletes,
        )


def write_plainly(config: RoleConfig, link: Link) -> None:
    """Write every field into a hash of its own, a thousand in one HSET; once for each "go"."""
    server = client(config)
    keys, values = config.workload()
    link.ready()
    while True:
        link.expect("go")
        began = time.monotonic()
        for first in range(0, len(keys), WRITTEN_AT_ONCE):
            page = slice(first, first + WRITTEN_AT_ONCE)
            fields: list[Any] = [
                part
                for key, value in zip(keys[page], values[page], strict=True)
                for part in (key, struct.pack(">d", value))
            ]
            server.hset("plain", items=fields)
        link.send(seconds=time.monotonic() - began, written=len(keys))
