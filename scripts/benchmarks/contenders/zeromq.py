"""Bare ZeroMQ PUB/SUB: no server, no history, no state for late joiners."""

from __future__ import annotations

from typing import Any

import msgpack
import zmq

from scripts.benchmarks.link import Link, RoleConfig


def address(config: RoleConfig) -> str:
    """Return the unix socket."""
    return f"ipc://{config.folder}/zmq.sock"


def write(config: RoleConfig, link: Link) -> None:
    """One message for each update; done when the library has taken them all."""
    keys, values = config.workload()
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        # No limits: a full queue would drop messages.
        socket.set_hwm(0)
        socket.bind(address(config))
        # Wait for the subscription: messages sent before it are lost.
        socket.recv()
        link.ready()
        began = link.wait_for_go()
        send, pack = socket.send, msgpack.Packer().pack
        for key, value in zip(keys, values, strict=True):
            send(pack((key, value)))
        link.wrote(began)


def read(config: RoleConfig, link: Link) -> None:
    """Put every message into a dict; done when the last one came."""
    state: dict[str, Any] = {}
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.set_hwm(0)
        socket.connect(address(config))
        socket.subscribe(b"")
        link.ready()
        receive, unpack = socket.recv, msgpack.unpackb
        for _ in range(config.updates):
            key, value = unpack(receive())
            state[key] = value
        link.read(state)
