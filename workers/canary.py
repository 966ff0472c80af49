"""The canary: a worker's own subscription, by which it hears what subscribers hear.

A connection of its own, so that it breaks as theirs would, and nothing that the worker publishes
reaches it but by the channel.
"""

from __future__ import annotations

import asyncio
import random
import time

from redis.asyncio.client import PubSub

from broker.aio.session import Session
from broker.codec import decode_packet
from broker.connection import translated
from broker.errors import BackendError, DecodeError
from broker.model import Batch, Heartbeat
from workers.health import FlushHealth

RETRY_FIRST = 0.05
RETRY_MOST = 2.0
LEAST_PATIENCE = 1.0


class Canary:
    """Tells a flush worker's health what arrives on the channels of its shards.

    Args:
        session: connected, namespace made or joined.
        health: gets every batch and heartbeat that could be read, and why none come.
    """

    def __init__(self, session: Session, health: FlushHealth) -> None:
        self._session = session
        self._health = health
        self._by_channel = {keys.channel.encode(): n for n, keys in enumerate(session.keys)}

    async def run(self) -> None:
        """Listen for ever; a subscription that breaks, or falls silent, is made anew."""
        delay = 0.0
        while True:
            try:
                await self._listen()
                delay = 0.0
            except TimeoutError:
                # Half open, maybe: another connection may hear more.
                delay = 0.0
            except BackendError as error:
                self._health.deaf(str(error))
                delay = min(RETRY_MOST, max(RETRY_FIRST, delay * 2))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _listen(self) -> None:
        """Subscribe, and hear until it breaks.

        Raises:
            TimeoutError: nothing came for the health's bound, not even an answer.
            BackendError: the connection broke, or this user may not subscribe.
        """
        patience = max(LEAST_PATIENCE, self._health.bound)
        client = self._session.connections.blocking()
        pubsub = client.pubsub()
        try:
            async with asyncio.timeout(patience) as limit, translated("hearing"):
                await pubsub.subscribe(*self._by_channel)
                while True:
                    await self._hear(pubsub)
                    limit.reschedule(asyncio.get_running_loop().time() + patience)
        finally:
            await self._session.connections.discard(client, pubsub)

    async def _hear(self, pubsub: PubSub) -> None:
        message = await pubsub.get_message(timeout=None)
        if message is None or message["type"] != "message":
            return
        shard = self._by_channel[message["channel"]]
        try:
            packet = decode_packet(message["data"])
        except DecodeError:
            return
        # A notice says nothing of the head.
        if isinstance(packet, Batch | Heartbeat) and packet.shard == shard:
            self._health.heard(shard, packet.epoch, packet.offset, time.monotonic())
