"""Channels heard wherever they are served: one connection and one reading task per server.

Every confirmation may hide a gap, and so may every loss: both are told, channel by channel. A
channel whose slot moved is subscribed to at its new owner; the others notice nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from typing import Final, Protocol

from redis.asyncio.client import PubSub
from redis.exceptions import MovedError, RedisError

from broker.backend.connections import Connections, translated
from broker.backend.urls import Address
from broker.errors import BackendError
from broker.protocol.names import slot_of_key
from broker.runtime.backoff import Backoff
from broker.runtime.tasks import cancel_and_wait

log = logging.getLogger(__name__)

RETRY_FIRST: Final = 0.02
RETRY_MAX: Final = 2.0
RETRY_MAX_OF_MANY: Final = 0.5  # where another server may take over at any moment
MOVED_PAUSE: Final = 0.02


class Listener(Protocol):
    """What a subscription tells; nothing of it may block."""

    async def ready(self) -> None:
        """Return once a server may be subscribed to; what it raises, but BackendError, ends all."""

    def on_subscribed(self, channel: bytes) -> None:
        """A server confirmed a channel: from now on its packets come."""

    def on_message(self, channel: bytes, data: bytes) -> None:
        """A packet came."""

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:
        """These are not subscribed to any more, until they are confirmed again."""


class Subscription:
    """Keeps channels subscribed for ever, whatever breaks.

    Args:
        connections: to the deployment.
        channels: all of them.
        listener: told what happens.
        patience: seconds after which a server that sends nothing at all is tried on another
            connection; None for ever.
    """

    def __init__(
        self,
        connections: Connections,
        channels: Iterable[bytes],
        listener: Listener,
        patience: float | None = None,
    ) -> None:
        self.connections = connections
        self.listener = listener
        self.patience = patience
        self._channels = list(channels)
        self._lines: dict[Address | None, _Line] = {}

    async def run(self) -> None:
        """Listen until cancelled; raises what `Listener.ready` raises."""
        directory, retry = self.connections.directory, Backoff(RETRY_FIRST, RETRY_MAX)
        change: asyncio.Task[None] | None = None
        try:
            while True:
                version = directory.version
                try:
                    await self._assign(await directory.group(self._channels))
                    change = asyncio.create_task(directory.changed_since(version))
                    retry.reset()
                except (RedisError, OSError) as error:
                    # Who serves is not known: what is subscribed to stays.
                    log.warning("owners_unknown error=%s", error)
                    change = asyncio.create_task(asyncio.sleep(retry.next()))
                lines = {line.task for line in self._lines.values()}
                await asyncio.wait({change, *lines}, return_when=asyncio.FIRST_COMPLETED)
                await cancel_and_wait([change])
                for task in lines:
                    if task.done():
                        task.result()
        finally:
            await cancel_and_wait([change, *(line.task for line in self._lines.values())])

    def renew(self, channels: Collection[bytes]) -> None:
        """Try other connections for channels on which nothing comes."""
        for line in self._lines.values():
            if not line.channels.isdisjoint(channels):
                line.is_silent.set()

    async def _assign(self, groups: dict[Address | None, list[bytes]]) -> None:
        """Have each server's line hold what the server serves, and nothing else."""
        for address in [one for one in self._lines if one not in groups]:
            line = self._lines.pop(address)
            await cancel_and_wait([line.task])
            line.lose(line.channels, None)
        for address, channels in groups.items():
            if address in self._lines:
                self._lines[address].hold(set(channels))
        for address, channels in groups.items():
            if address not in self._lines:
                self._lines[address] = _Line(self, address, channels)


class _Line:
    """One server's channels, on one connection at a time."""

    def __init__(
        self, subscription: Subscription, address: Address | None, channels: Iterable[bytes]
    ) -> None:
        self.channels = set(channels)
        self.is_silent = asyncio.Event()
        self._subscription = subscription
        self._connections = subscription.connections
        self._listener = subscription.listener
        self._address = address
        self._asked: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._wanted = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"subscription-{address or 'all'}")

    def hold(self, channels: set[bytes]) -> None:
        """Take over channels, and let go of others."""
        self.lose(self.channels - channels, None)
        self._asked &= channels
        self.channels = channels
        self._wanted.set()

    def lose(self, channels: Collection[bytes], error: BackendError | None) -> None:
        """Tell that channels are not subscribed to any more."""
        self._confirmed.difference_update(channels)
        if channels:
            self._listener.on_disconnect(channels, error)

    async def _run(self) -> None:
        most = RETRY_MAX if self._address is None else RETRY_MAX_OF_MANY
        retry = Backoff(RETRY_FIRST, most)
        while True:
            error = None
            try:
                await self._listener.ready()
                await self._listen()
            except BackendError as caught:
                error = caught
                log.warning("subscription_lost at=%s error=%s", self._address or "server", caught)
            if self._confirmed:
                retry.reset()
            self.lose(set(self.channels), error)
            self._connections.directory.invalidate(self._address)
            await asyncio.sleep(retry.next())

    async def _listen(self) -> None:
        """Subscribe, and hear until it breaks or goes silent."""
        self.is_silent.clear()
        self._asked.clear()
        client = self._connections.subscriber(self._address)
        pubsub = client.pubsub()
        tasks = [
            asyncio.create_task(self._keep_subscribed(pubsub)),
            asyncio.create_task(self.is_silent.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_and_wait(tasks)
            await self._connections.discard(client, pubsub)

    async def _keep_subscribed(self, pubsub: PubSub) -> None:
        """Subscribe to what there is, read what comes, and subscribe to what is added."""
        async with translated("following"):
            try:
                async with asyncio.timeout(self._subscription.patience):
                    await self._subscribe(pubsub)
            except TimeoutError:
                return
            tasks = [
                asyncio.create_task(self._read(pubsub)),
                asyncio.create_task(self._subscribe_more(pubsub)),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                await cancel_and_wait(tasks)

    async def _subscribe_more(self, pubsub: PubSub) -> None:
        while True:
            await self._wanted.wait()
            await self._subscribe(pubsub)

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Ask for the channels that were not asked for yet."""
        self._wanted.clear()
        missing = self.channels - self._asked
        self._asked |= missing
        if not self._connections.directory.is_sharded:
            if missing:
                await pubsub.subscribe(*missing)
            return
        for channel in missing:
            # One at a time: one command names channels of one slot.
            await pubsub.ssubscribe(channel)

    async def _read(self, pubsub: PubSub) -> None:
        """Hear until nothing comes for the patience."""
        patience = self._subscription.patience
        while True:
            try:
                if patience is None:
                    message = await pubsub.get_message(timeout=None)
                else:
                    async with asyncio.timeout(patience):
                        message = await pubsub.get_message(timeout=None)
            except TimeoutError:
                return
            except MovedError as error:
                self._moved(error)
                continue
            if message is not None and message["channel"] in self.channels:
                await self._take(pubsub, message["type"], message["channel"], message["data"])

    async def _take(self, pubsub: PubSub, kind: str, channel: bytes, data: bytes) -> None:
        if kind in ("message", "smessage"):
            self._listener.on_message(channel, data)
        elif kind in ("subscribe", "ssubscribe"):
            self._confirmed.add(channel)
            self._listener.on_subscribed(channel)
        elif kind == "sunsubscribe":
            # The slot is somebody else's now; asked again, this server tells whose.
            self.lose({channel}, None)
            await pubsub.ssubscribe(channel)

    def _moved(self, error: MovedError) -> None:
        """Learn who serves a slot now; not at once, for the other may not know of it yet."""
        self._asked -= {one for one in self._asked if slot_of_key(one) == error.slot_id}
        asyncio.get_running_loop().call_later(
            MOVED_PAUSE, self._connections.directory.redirected, self._address, error
        )
