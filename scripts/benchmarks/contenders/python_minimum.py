"""The minimum in Python: a call for each update, columns over a socket, a dict."""

from __future__ import annotations

import socket
from itertools import islice
from typing import Any

import msgpack

from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.wire import READ_BYTES, Wire

PACKED = 1_000


class Columns:
    """Takes updates one by one, and gives them back as two columns."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.values: list[Any] = []

    def set(self, key: str, value: Any) -> None:
        """Take one; nothing is checked, nothing is counted."""
        self.keys.append(key)
        self.values.append(value)


def write(config: RoleConfig, link: Link) -> None:
    """Call for each update; pack and send a thousand at a time."""
    updates = zip(*config.workload(), strict=True)
    pack = msgpack.Packer().pack
    columns = Columns()
    put = columns.set
    with Wire(f"unix://{config.folder}/bare.sock") as wire:
        link.ready()
        began = link.wait_for_go()
        for _ in range(0, config.updates, PACKED):
            for key, value in islice(updates, PACKED):
                put(key, value)
            wire.send(pack((columns.keys, columns.values)))
            columns.keys.clear()
            columns.values.clear()
        link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Unpack, and update a dict column by column."""
    state: dict[str, Any] = {}
    left = config.updates
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{config.folder}/bare.sock")
        server.listen()
        link.ready()
        unpacker = msgpack.Unpacker()
        with server.accept()[0] as connection:
            while left > 0:
                unpacker.feed(connection.recv(READ_BYTES))
                for keys, values in unpacker:
                    state.update(zip(keys, values, strict=True))
                    left -= len(keys)
        link.read(state)
