"""The canary: a worker's own subscription, by which it hears what subscribers hear.

A connection of its own, so that it breaks as theirs would, and nothing that the worker publishes
reaches it but by the channel. Where much is published it hears enough in a moment, and rests: to
hear all of it would cost the server as much as another subscriber, and the worker more. Bulk chunks
it leaves alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

from broker.backend.session import Session
from broker.backend.subscription import Subscription
from broker.errors import BackendError, DecodeError
from broker.protocol.codec import decode_head
from broker.runtime.tasks import cancel_and_wait
from workers.health import FlushHealth

MIN_PATIENCE: Final = 1.0
# After so much it does not listen for the rest of a heartbeat interval.
ENOUGH_BYTES: Final = 1 << 20


class Canary:
    """Tells a flush worker's health what arrives on the channels of its shards.

    Args:
        session: connected, namespace made or joined.
        health: gets batches and heartbeats that could be read, and why none come.
    """

    def __init__(self, session: Session, health: FlushHealth) -> None:
        self._session = session
        self._health = health
        self._by_channel = {keys.channel.encode(): n for n, keys in enumerate(session.keys)}
        self._bytes = 0
        self._heard: set[int] = set()
        self._enough = asyncio.Event()

    async def run(self) -> None:
        """Listen for ever; a subscription that breaks, or falls silent, is made anew."""
        # Half open, maybe: another connection may hear more.
        patience = max(MIN_PATIENCE, self._health.bound)
        while True:
            began = time.monotonic()
            self._bytes = 0
            self._heard.clear()
            self._enough.clear()
            subscription = Subscription(self._session.connections, self._by_channel, self, patience)
            listening = asyncio.create_task(subscription.run(), name="listening")
            enough = asyncio.create_task(self._enough.wait())
            try:
                await asyncio.wait({listening, enough}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():
                    listening.result()
            finally:
                await cancel_and_wait([listening, enough])
            await asyncio.sleep(began + self._health.interval - time.monotonic())

    async def ready(self) -> None:
        """Subscribe at any time: the worker looks after the namespace."""

    def on_subscribed(self, channel: bytes) -> None:
        """Wait for more: a confirmation says nothing of the head."""

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:  # noqa: ARG002
        """Note why nothing will be heard; a slot that moved, or mere silence, is no reason."""
        if error is not None:
            self._health.deaf(str(error))

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Tell of a head."""
        shard = self._by_channel[channel]
        try:
            head = decode_head(data)
        except DecodeError:
            return
        if head is not None and head.shard == shard:
            self._health.heard(shard, head.epoch, head.offset, time.monotonic())
            self._heard.add(shard)
        self._bytes += len(data)
        if self._bytes > ENOUGH_BYTES and len(self._heard) == len(self._by_channel):
            self._enough.set()
