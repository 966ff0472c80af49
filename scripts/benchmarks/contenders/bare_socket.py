"""The same bytes from process to process over a socket: what the machine can copy."""

from __future__ import annotations

import socket

from scripts.benchmarks.contenders.bare import PASSES, counted, unpacked
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.wire import Wire


def write(config: RoleConfig, link: Link) -> None:
    """Send chunk after chunk."""
    chunks = [data for _, data in counted(config)]
    with Wire(f"unix://{config.folder}/bare.sock") as wire:
        link.ready()
        began = link.wait_for_go()
        for _ in range(PASSES):
            for data in chunks:
                wire.send(data)
        link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Read the expected number of bytes, repeatedly into the same buffer."""
    chunks = [data for _, data in counted(config)]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{config.folder}/bare.sock")
        server.listen()
        link.ready()
        with Wire(server.accept()[0]) as wire:
            found = wire.read_repeatedly(sum(map(len, chunks)), PASSES)
        link.read(lambda: unpacked(chunks) if found == b"".join(chunks) else {}, passes=PASSES)
