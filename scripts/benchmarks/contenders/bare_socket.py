"""The same bytes from process to process with nothing in between: what the machine can copy."""

from __future__ import annotations

import socket

from scripts.benchmarks.contenders.bare import PASSES, counted, unpacked
from scripts.benchmarks.link import Link, Place
from scripts.benchmarks.wire import Wire


def write(place: Place, link: Link) -> None:
    """Send chunk after chunk."""
    chunks = [data for _, data in counted(place)]
    with Wire(f"unix://{place.folder}/bare.sock") as wire:
        link.ready()
        began = link.wait_for_go()
        for _ in range(PASSES):
            for data in chunks:
                wire.send(data)
        link.wrote(began)


def read(place: Place, link: Link) -> None:
    """Read as many bytes as will come, over and over into the same place."""
    chunks = [data for _, data in counted(place)]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{place.folder}/bare.sock")
        server.listen()
        link.ready()
        with Wire(server.accept()[0]) as wire:
            found = wire.swallow(sum(map(len, chunks)), PASSES)
        link.read(lambda: unpacked(chunks) if found == b"".join(chunks) else {}, passes=PASSES)
