"""Subscribers that read what the server sends, and discard it."""

from __future__ import annotations

import selectors
import socket
from contextlib import ExitStack
from threading import Event, Thread

from broker.protocol.names import ShardKeys
from scripts.benchmarks import wire
from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.link import Link, RoleConfig

READ_BYTES = 1 << 18
POLL_S = 0.2


def take(config: RoleConfig, link: Link) -> None:
    """Subscribe to the channels of the only shard; on the order "stop", report the bytes received.

    Details:
        subscribers: how many, each with a connection of its own.
    """
    keys = ShardKeys.of(NAMESPACE, 0, 1)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(config.details["subscribers"]):
            one = stack.enter_context(wire.Wire(config.redis))
            for channel in (keys.bulk, keys.channel):
                one.ask("SUBSCRIBE", channel)
            selector.register(one.socket, selectors.EVENT_READ, one.socket)
        taken, is_over = [0], Event()
        thread = Thread(target=_take, args=(selector, taken, is_over))
        thread.start()
        link.ready()
        try:
            link.expect("stop")
        finally:
            is_over.set()
            thread.join()
        link.send(bytes=taken[0])
        link.expect("end")


def _take(selector: selectors.BaseSelector, taken: list[int], is_over: Event) -> None:
    """Read until `is_over` is set and nothing more arrives."""
    space = bytearray(READ_BYTES)
    while True:
        found = selector.select(POLL_S)
        if not found and is_over.is_set():
            return
        for key, _ in found:
            one: socket.socket = key.data
            got = one.recv_into(space)
            if not got:
                raise ConnectionError("the server has gone")
            taken[0] += got
