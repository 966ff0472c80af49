"""A hash, and HSCAN into a dict: a state without updates, and not of one moment."""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any

from scripts.benchmarks.contenders.hset_publish import client
from scripts.benchmarks.link import Link, RoleConfig

WRITTEN_AT_ONCE = 1_000
READ_AT_ONCE = 10_000
FLOAT = struct.Struct("<d")


def write(config: RoleConfig, link: Link) -> None:
    """Fill the hash, 1000 fields in one HSET."""
    server = client(config)
    updates = zip(*config.workload(), strict=True)
    link.ready()
    began = link.wait_for_go()
    while group := list(islice(updates, WRITTEN_AT_ONCE)):
        fields = [part for key, value in group for part in (key, FLOAT.pack(value))]
        server.hset("state", items=fields)
    link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Scan it."""
    link.ready()
    began = link.wait_for_go()
    link.read(scanned(config), began=began)


def scanned(config: RoleConfig) -> dict[str, float]:
    """Return the content of the hash, read page by page."""
    state: dict[str, float] = {}
    server = client(config)
    cursor, as_float = 0, FLOAT.unpack
    while True:
        # redis-py's type covers both protocols and both faces.
        answer: Any = server.hscan("state", cursor, count=READ_AT_ONCE)
        cursor, page = answer
        for key, value in page.items():
            state[key.decode()] = as_float(value)[0]
        if not cursor:
            return state
