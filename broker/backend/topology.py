"""Who answers for a key now: the one server, the primary, or the node that owns the slot.

A directory may be wrong at any moment; it is told so (`invalidate`, `redirected`) and asks anew.
Nothing is believed for longer than its owner says itself: a Cluster node refuses keys of others, a
primary behind Sentinels is asked for its role on every connection.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import ClassVar, Final, TypeAlias

from redis.asyncio import Redis  # noqa: TID251 - its name only
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from broker.backend.urls import Address
from broker.runtime.tasks import cancel_and_wait

# What the rest of the project calls a Redis client; only `broker.backend.connections` makes one.
Client: TypeAlias = Redis

ASK_PAUSE: Final = 0.05  # seconds between two questions, at least: invalidations come in swarms
RECHECK: Final = 0.1  # seconds for which an answer counts that names somebody who had failed

Gone = Callable[[Collection[Address]], None]


class Directory(ABC):
    """Says which server answers for a key; None is the only one there is.

    Attributes:
        publish: the command that reaches a shard's subscribers.
        is_sharded: whether keys live on different servers.
        version: grows whenever an owner changed.
        on_change: called with all owners when one changed.
    """

    publish: ClassVar[str] = "PUBLISH"
    is_sharded: ClassVar[bool] = False

    def __init__(self) -> None:
        self.version = 0
        self.on_change: list[Gone] = []
        self._news = asyncio.Event()

    @abstractmethod
    async def owner(self, key: str | bytes | None) -> Address | None:
        """Return who answers for a key, or (no key) anybody who holds data.

        Raises:
            RedisError, OSError: nobody could say.
        """

    @abstractmethod
    async def owners(self) -> list[Address | None]:
        """Return everybody who holds data; raises as `owner`."""

    def invalidate(self, address: Address | None) -> None:  # noqa: B027 - nothing to do, for most
        """Somebody who was said to answer did not."""

    def answered(self, address: Address | None) -> None:  # noqa: B027 - likewise
        """Somebody did what was asked."""

    def redirected(self, address: Address | None, error: RedisError) -> bool:  # noqa: ARG002
        """Somebody said that it is not its turn; true if it is known now whose it is."""
        self.invalidate(address)
        return False

    async def group(self, keys: Iterable[bytes]) -> dict[Address | None, list[bytes]]:
        """Return who answers for which keys; raises as `owner`."""
        groups: dict[Address | None, list[bytes]] = {}
        for key in keys:
            groups.setdefault(await self.owner(key), []).append(key)
        return groups

    async def changed_since(self, version: int) -> None:
        """Return once the version is another one."""
        while self.version == version:
            await self._news.wait()

    def _tell(self, owners: Collection[Address]) -> None:
        self.version += 1
        self._news.set()
        self._news = asyncio.Event()
        for tell in self.on_change:
            tell(owners)

    async def close(self) -> None:  # noqa: B027 - likewise
        """Ask nobody any more."""


class Alone(Directory):
    """One server for everything."""

    async def owner(self, key: str | bytes | None) -> Address | None:  # noqa: ARG002
        """Return None: the only one there is."""
        return None

    async def owners(self) -> list[Address | None]:
        """Return the only one there is."""
        return [None]


class Asking(Directory):
    """A directory that asks others, one question at a time, whenever its answer was invalidated."""

    def __init__(self) -> None:
        super().__init__()
        self._is_doubted = True
        self._suspects: set[Address] = set()
        self._asked_at = 0.0
        self._is_closed = False
        self._asking: asyncio.Task[None] | None = None

    @abstractmethod
    async def ask(self) -> None:
        """Learn who owns what.

        Raises:
            RedisError, OSError: nobody could say.
        """

    def invalidate(self, address: Address | None) -> None:
        """Ask anew, now and in the background; the next `owner` waits for the answer."""
        if address is not None:
            self._suspects.add(address)
        self._is_doubted = True
        if not self._is_closed:
            self._begin()

    def check(self) -> None:
        """Ask anew in the background, while what is known still counts."""
        self._begin()

    def answered(self, address: Address | None) -> None:
        """Trust it again."""
        if self._suspects and address is not None:
            self._suspects.discard(address)

    async def trusted(self, address: Address | None) -> bool:
        """Tell whether what is known of an address may be used; false: it was asked for anew.

        A failover takes its time: one that failed before may have been replaced since.
        """
        if address not in self._suspects or time.monotonic() < self._asked_at + RECHECK:
            return True
        await asyncio.shield(self._begin())
        return False

    async def settled(self) -> None:
        """Wait for the answer to the last invalidation; raises as `ask`."""
        if self._is_closed:
            raise RedisConnectionError("the connections are closed")
        if self._is_doubted:
            await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="directory")
            # Those who wait for it see its error; often nobody does.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asking

    async def _ask(self) -> None:
        await asyncio.sleep(max(0.0, self._asked_at + ASK_PAUSE - time.monotonic()))
        self._asked_at = time.monotonic()
        # Before the question: an invalidation that comes meanwhile is another one.
        self._is_doubted = False
        try:
            await self.ask()
        except BaseException:
            self._is_doubted = True
            raise

    async def close(self) -> None:
        """Ask nobody any more."""
        self._is_closed = True
        await cancel_and_wait([self._asking])
