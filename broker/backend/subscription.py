"""Keep channels subscribed on the servers that serve them: one connection and task per server.

Messages may be missing before a confirmation and after a loss, so both are reported per channel. A
channel whose slot moved is subscribed to on its new owner; the others are not interrupted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from typing import Any, Final, Protocol

from redis.asyncio.client import PubSub
from redis.exceptions import MovedError, RedisError

from broker.backend.connections import Connections, translated
from broker.backend.urls import Address
from broker.errors import BackendError
from broker.protocol.names import slot_of_key
from broker.runtime.backoff import Backoff
from broker.runtime.outage_log import OutageLog
from broker.runtime.tasks import cancel_and_wait

log = logging.getLogger(__name__)

RETRY_FIRST: Final = 0.02
RETRY_MAX: Final = 2.0
RETRY_MAX_OF_MANY: Final = 0.5  # where a failover may happen at any moment
MOVED_PAUSE_S: Final = 0.02

_MESSAGES: Final = frozenset((b"message", b"smessage"))


class Listener(Protocol):
    """Callbacks of a subscription; none may block."""

    async def ready(self) -> None:
        """Return once subscribing may begin; an error except BackendError ends the subscription."""

    def on_subscribed(self, channel: bytes) -> None:
        """A server confirmed a channel: its packets arrive from now on."""

    def on_message(self, channel: bytes, data: bytes) -> None:
        """A packet arrived."""

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:
        """These channels are not subscribed until they are confirmed again."""


class Subscription:
    """Keeps channels subscribed, and reconnects for ever.

    Args:
        connections: to the deployment.
        channels: all of them.
        listener: receives the events.
        patience: seconds without any message after which a connection is replaced; None: never.
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
        self._servers: dict[Address | None, _ServerSubscription] = {}

    async def run(self) -> None:
        """Listen until cancelled; raises what `Listener.ready` raises."""
        directory, retry = self.connections.directory, Backoff(RETRY_FIRST, RETRY_MAX)
        outage = OutageLog(log, "owners_unknown")
        change: asyncio.Task[None] | None = None
        try:
            while True:
                version, pause = directory.version, None
                try:
                    groups = await directory.group(self._channels)
                    await self._assign(groups)
                    outage.ended()
                    change = asyncio.create_task(directory.changed_since(version))
                    if sum(map(len, groups.values())) < len(self._channels):
                        # Slots without an owner: ask again.
                        pause = retry.next(RETRY_MAX_OF_MANY)
                    else:
                        retry.reset()
                except (RedisError, OSError) as error:
                    # The owners are unknown: keep the subscriptions there are.
                    outage.failed(error)
                    change = asyncio.create_task(asyncio.sleep(retry.next()))
                tasks = {server.task for server in self._servers.values()}
                await asyncio.wait(
                    {change, *tasks}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
                )
                await cancel_and_wait([change])
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            await cancel_and_wait([change, *(server.task for server in self._servers.values())])

    def renew(self, channels: Collection[bytes]) -> None:
        """Reconnect the servers of channels on which nothing arrives."""
        for server in self._servers.values():
            if not server.channels.isdisjoint(channels):
                server.is_silent.set()

    async def _assign(self, groups: dict[Address | None, list[bytes]]) -> None:
        """Subscribe on each server to exactly the channels that it serves."""
        for address in [one for one in self._servers if one not in groups]:
            server = self._servers.pop(address)
            await cancel_and_wait([server.task])
            server.drop(server.channels, None)
        for address, channels in groups.items():
            if address in self._servers:
                self._servers[address].assign(set(channels))
        for address, channels in groups.items():
            if address not in self._servers:
                self._servers[address] = _ServerSubscription(self, address, channels)


class _ServerSubscription:
    """The channels of one server, on one connection at a time."""

    def __init__(
        self, subscription: Subscription, address: Address | None, channels: Iterable[bytes]
    ) -> None:
        self.channels = set(channels)
        self.is_silent = asyncio.Event()
        self._subscription = subscription
        self._connections = subscription.connections
        self._listener = subscription.listener
        self._address = address
        self._requested: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._added = asyncio.Event()
        self._outage = OutageLog(log, "subscription_lost", f"at={address or 'server'}")
        self.task = asyncio.create_task(self._run(), name=f"subscription-{address or 'all'}")

    def assign(self, channels: set[bytes]) -> None:
        """Replace the set of channels."""
        self.drop(self.channels - channels, None)
        self._requested &= channels
        self.channels = channels
        self._added.set()

    def drop(self, channels: Collection[bytes], error: BackendError | None) -> None:
        """Report that channels are not subscribed any more."""
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
                self._outage.failed(caught)
            if self._confirmed:
                retry.reset()
            self.drop(set(self.channels), error)
            self._connections.directory.invalidate(self._address)
            # What is read must come from the server that is subscribed to next.
            self._connections.renew()
            await asyncio.sleep(retry.next())

    async def _listen(self) -> None:
        """Subscribe and read until the connection breaks or is silent for too long."""
        self.is_silent.clear()
        self._requested.clear()
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
        """Subscribe, read messages, and subscribe to channels that are added."""
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
            await self._added.wait()
            await self._subscribe(pubsub)

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to the channels that were not requested yet."""
        self._added.clear()
        missing = self.channels - self._requested
        self._requested |= missing
        if not self._connections.directory.is_sharded:
            if missing:
                await pubsub.subscribe(*missing)
            return
        for channel in missing:
            # One at a time: the channels of one command must be in one slot.
            await pubsub.ssubscribe(channel)

    async def _read(self, pubsub: PubSub) -> None:
        """Read until nothing arrives for the patience."""
        patience = self._subscription.patience
        while True:
            try:
                if patience is None:
                    reply = await _next_reply(pubsub)
                else:
                    async with asyncio.timeout(patience):
                        reply = await _next_reply(pubsub)
            except TimeoutError:
                return
            except MovedError as error:
                self._moved(error)
                continue
            kind, channel, data = reply
            if kind in _MESSAGES:
                if channel in self.channels:
                    self._listener.on_message(channel, data)
                continue
            message = await pubsub.handle_message(reply)  # type: ignore[no-untyped-call]
            if message is not None and channel in self.channels:
                await self._confirm(pubsub, message["type"], channel)

    async def _confirm(self, pubsub: PubSub, kind: str, channel: bytes) -> None:
        if kind in ("subscribe", "ssubscribe"):
            self._confirmed.add(channel)
            if self._confirmed >= self.channels:
                self._outage.ended()
            self._listener.on_subscribed(channel)
        elif kind == "sunsubscribe":
            # The slot moved; another request makes this server name the new owner.
            self.drop({channel}, None)
            await pubsub.ssubscribe(channel)

    def _moved(self, error: MovedError) -> None:
        """Pass a redirection on after a pause, since the new owner may not know of it yet."""
        self._requested -= {one for one in self._requested if slot_of_key(one) == error.slot_id}
        asyncio.get_running_loop().call_later(
            MOVED_PAUSE_S, self._connections.directory.redirected, self._address, error
        )


async def _next_reply(pubsub: PubSub) -> tuple[bytes, bytes, Any]:
    """Return kind, channel and data of what comes next; `get_message` would make a dict of it."""
    return await pubsub.parse_response(block=True)  # type: ignore[no-any-return]
