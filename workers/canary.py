"""The canary: a worker's own subscription, which shows whether subscribers get what it publishes.

It has a connection of its own, so that it fails as a subscriber's would. On a busy namespace it
pauses after a sample: to receive everything would cost the server as much as another subscriber. It
does not subscribe to bulk chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from broker.backend.session import Session
from broker.backend.subscription import Subscription
from broker.errors import BackendError, DecodeError
from broker.protocol.codec import decode_head
from broker.runtime import clock
from broker.runtime.tasks import cancel_and_wait
from workers.health import FlushHealth

MIN_PATIENCE_S: Final = 1.0
# After this sample it unsubscribes for the rest of the heartbeat interval.
ENOUGH_BYTES: Final = 1 << 20


class Canary:
    """Reports to the health of a flush worker what arrives on the channels of its shards.

    Args:
        session: connected, namespace created or joined.
        health: informed of received batches and heartbeats, and of subscription errors.
    """

    def __init__(self, session: Session, health: FlushHealth) -> None:
        self._session = session
        self._health = health
        self._by_channel = {keys.channel.encode(): n for n, keys in enumerate(session.keys)}
        self._bytes = 0
        self._received: set[int] = set()
        self._enough = asyncio.Event()

    async def run(self) -> None:
        """Listen for ever; replace a subscription that breaks or is silent."""
        # A silent connection may be half open.
        patience = max(MIN_PATIENCE_S, self._health.bound)
        while True:
            began = clock.now()
            self._bytes = 0
            self._received.clear()
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
            await asyncio.sleep(began + self._health.interval - clock.now())

    async def ready(self) -> None:
        """Return at once: the worker itself maintains the namespace."""

    def on_subscribed(self, channel: bytes) -> None:
        """Ignore it: a confirmation does not contain the head."""

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:  # noqa: ARG002
        """Record the error, if there is one; a moved slot or silence has none."""
        if error is not None:
            self._health.subscription_failed(str(error))

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Report the head that a packet contains."""
        shard = self._by_channel[channel]
        try:
            head = decode_head(data)
        except DecodeError:
            return
        if head is not None and head.shard == shard:
            self._health.received(shard, head.epoch, head.offset, clock.now())
            self._received.add(shard)
        self._bytes += len(data)
        if self._bytes > ENOUGH_BYTES and len(self._received) == len(self._by_channel):
            self._enough.set()
