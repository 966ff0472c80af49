"""A plain Redis subscriber on one shard's channel that records each packet and its time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Self

import redis.asyncio

from broker.protocol.codec import decode_packet
from broker.protocol.messages import Batch, Packet
from broker.protocol.names import ShardKeys
from broker.sync.loop_thread import LoopThread


@dataclass(frozen=True, slots=True)
class ReceivedPacket:
    """One packet: when it arrived (monotonic seconds), its bytes and what they say."""

    at: float
    data: bytes
    packet: Packet


class Channel:
    """Collects every packet of a channel from now on.

    Args:
        url: of the server.
        keys: of the shard.
    """

    def __init__(self, url: str, keys: ShardKeys) -> None:
        self.seen: list[ReceivedPacket] = []
        self._name = keys.channel
        self._client = redis.asyncio.Redis.from_url(url, protocol=2)
        self._pubsub = self._client.pubsub()
        self._thread = LoopThread(f"listens to {keys.channel}")
        self._task = self._thread.call(self._start())

    @property
    def batches(self) -> list[Batch]:
        """The batches among the packets."""
        return [seen.packet for seen in self.seen if isinstance(seen.packet, Batch)]

    async def _start(self) -> asyncio.Task[None]:
        await self._pubsub.subscribe(self._name)
        await self._next()  # the confirmation
        return asyncio.create_task(self._listen())

    async def _next(self) -> bytes | int:
        while (message := await self._pubsub.get_message(timeout=None)) is None:
            pass
        data: bytes | int = message["data"]
        return data

    async def _listen(self) -> None:
        while True:
            data = await self._next()
            assert isinstance(data, bytes)
            self.seen.append(ReceivedPacket(time.monotonic(), data, decode_packet(data)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._thread.call(self._end())
        self._thread.stop()

    async def _end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._client.aclose()
