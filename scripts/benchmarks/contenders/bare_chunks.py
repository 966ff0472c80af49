"""Our whole path through Redis without our producer and our replica: chunks in, batches out."""

from __future__ import annotations

from collections import deque

from broker.protocol.codec import decode_packet
from broker.protocol.messages import Batch
from scripts.benchmarks.contenders.bare import NODE, PASSES, counted, unpacked
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.wire import KEYS, Wire, append, open_nodes, token


def write(config: RoleConfig, link: Link) -> None:
    """Append chunk after chunk, as our producer does: each when the previous one was accepted."""
    chunks = counted(config)
    with Wire(config.redis) as wire:
        (incarnation,) = open_nodes(wire, [NODE])
        requests = [
            append(NODE, incarnation, number, deltas, data)
            for number, (deltas, data) in enumerate(chunks * PASSES, start=1)
        ]
        link.ready()
        began = link.wait_for_go()
        for request in requests:
            wire.send(request)
            reply = wire.answer()
            while reply[0] == b"BUSY":
                wire.send(request)
                reply = wire.answer()
        link.wrote(began, token(reply))


def read(config: RoleConfig, link: Link) -> None:
    """Receive all batches; their content is decoded after the clock has stopped."""
    last: deque[bytes] = deque(maxlen=len(counted(config)))
    left = config.updates * PASSES
    with Wire(config.redis) as wire:
        for channel in (KEYS.bulk, KEYS.channel):
            wire.ask("SUBSCRIBE", channel)
        link.ready()
        bulk: list[bytes] = []
        while left > 0:
            _, channel, data = wire.reply()
            if channel == KEYS.bulk.encode():
                bulk.append(data)
                continue
            packet = decode_packet(data, bulk)
            bulk.clear()
            if isinstance(packet, Batch):
                left -= packet.deltas
                last.extend(packet.chunks)
        link.read(lambda: unpacked(last), passes=PASSES)
