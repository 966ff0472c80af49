"""One stream entry for each update, pipelined; the reader takes 1000 at a time."""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any

import redis

from scripts.benchmarks.link import Link, RoleConfig

PIPELINED = 200
READ_AT_ONCE = 1_000
BLOCK_MS = 1_000
# MAXLEN, approximate; more than a run writes, since a slow reader would lose trimmed entries.
KEPT = 1_000_000
FLOAT = struct.Struct("<d")


def client(config: RoleConfig) -> redis.Redis:
    """Return a client with RESP2, which redis-py parses faster."""
    return redis.Redis.from_url(config.redis, protocol=2)


def write(config: RoleConfig, link: Link) -> None:
    """200 entries in one pipeline; done when all are answered."""
    updates = zip(*config.workload(), strict=True)
    pipeline = client(config).pipeline(transaction=False)
    as_bytes = FLOAT.pack
    pipeline.ping()
    pipeline.execute()
    link.ready()
    began = link.wait_for_go()
    while group := list(islice(updates, PIPELINED)):
        for key, value in group:
            pipeline.xadd("log", {key: as_bytes(value)}, maxlen=KEPT, approximate=True)
        pipeline.execute()
    link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Put every entry into a dict; done when the last one came."""
    state: dict[str, float] = {}
    server = client(config)
    server.ping()
    link.ready()
    left = config.updates
    last: bytes | str = "0"
    as_float = FLOAT.unpack
    while left:
        # redis-py's type covers both protocols and both faces.
        answer: Any = server.xread({"log": last}, count=READ_AT_ONCE, block=BLOCK_MS)
        for _, entries in answer:
            for _, fields in entries:
                for key, value in fields.items():
                    state[key.decode()] = as_float(value)[0]
            left -= len(entries)
            last = entries[-1][0]
    link.read(state)
