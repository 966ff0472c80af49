"""Bare ZeroMQ PUB/SUB, for any shape: a message for each update."""

from __future__ import annotations

from typing import Any

import msgpack
import zmq

from scripts.benchmarks.contenders.zeromq import address
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.shape_link import finish, mean_bytes
from scripts.benchmarks.shapes import Updates


def write(config: RoleConfig, link: Link) -> None:
    """One message for each update; done when the library has taken them all."""
    updates = Updates.of(config)
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        # No limits: a full queue would drop messages.
        socket.set_hwm(0)
        socket.bind(address(config))
        # Wait for the subscription: messages sent before it are lost.
        socket.recv()
        link.ready()
        began = link.wait_for_go()
        send, pack = socket.send, msgpack.Packer().pack
        for page in updates.pages(config):
            for update in page:
                send(pack(update))
        send(b"")
        link.wrote(began, written=updates.written)


def read(config: RoleConfig, link: Link) -> None:
    """Put every message into a dict; the empty one is the last."""
    state: dict[str, Any] = {}
    received = 0
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.set_hwm(0)
        socket.connect(address(config))
        socket.subscribe(b"")
        link.ready()
        receive, unpack = socket.recv, msgpack.unpackb
        while data := receive():
            key, value = unpack(data)
            state[key] = value
            received += 1
        finish(
            link,
            state,
            None,
            received=received,
            wire_bytes=lambda: received * mean_bytes(config, msgpack.packb),
        )
