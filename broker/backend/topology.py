"""Which server owns a key now: the only server, the primary, or the node that owns the slot.

A directory may be out of date at any moment; its users report errors (`invalidate`, `redirected`),
and it refreshes. An outdated entry does no harm, because servers check too: a Cluster node refuses
keys of other nodes, and a primary behind Sentinels is asked for its role on every connection.
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

# The type of all Redis clients here; only `broker.backend.connections` creates them.
Client: TypeAlias = Redis

REFRESH_PAUSE_S: Final = 0.05  # between two refreshes: invalidations come in bursts
RECHECK_S: Final = 0.1  # how long a refresh that names a failed server counts


class WrongDeploymentError(RedisError):
    """What answers is not what the URL says; waiting does not help."""


OwnersCallback = Callable[[Collection[Address]], None]


class Directory(ABC):
    """Returns the server that owns a key; None is the only server of a deployment.

    Attributes:
        publish: the command that reaches a shard's subscribers.
        is_sharded: whether keys are on different servers.
        version: grows with every change of an owner.
        on_change: called with all owners after a change.
    """

    publish: ClassVar[str] = "PUBLISH"
    is_sharded: ClassVar[bool] = False

    def __init__(self) -> None:
        self.version = 0
        self.on_change: list[OwnersCallback] = []
        self._changed = asyncio.Event()

    @abstractmethod
    async def owner(self, key: str | bytes | None) -> Address | None:
        """Return the server that owns a key, or without a key any data server.

        Raises:
            RedisError, OSError: the owner cannot be found out.
        """

    @abstractmethod
    async def owners(self) -> list[Address | None]:
        """Return all servers that own keys; raises like `owner`."""

    def invalidate(self, address: Address | None) -> None:  # noqa: B027 - nothing to do, for most
        """Report that a server did not answer."""

    def answered(self, address: Address | None) -> None:  # noqa: B027 - likewise
        """Report that a server answered."""

    def redirected(self, address: Address | None, error: RedisError) -> bool:  # noqa: ARG002
        """Report that a server is not the owner; true if the error names the owner."""
        self.invalidate(address)
        return False

    async def group(self, keys: Iterable[bytes]) -> dict[Address | None, list[bytes]]:
        """Group keys by their owners; raises like `owner`."""
        groups: dict[Address | None, list[bytes]] = {}
        for key in keys:
            groups.setdefault(await self.owner(key), []).append(key)
        return groups

    async def changed_since(self, version: int) -> None:
        """Return once the version differs."""
        while self.version == version:
            await self._changed.wait()

    def _notify(self, owners: Collection[Address]) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()
        for callback in self.on_change:
            callback(owners)

    async def close(self) -> None:  # noqa: B027 - likewise
        """Stop all refreshes."""


class SingleServer(Directory):
    """A deployment of one server."""

    async def owner(self, key: str | bytes | None) -> Address | None:  # noqa: ARG002
        """Return None: the only server."""
        return None

    async def owners(self) -> list[Address | None]:
        """Return the only server."""
        return [None]


class RefreshedDirectory(Directory):
    """A directory that queries the servers, one refresh at a time, when it was invalidated."""

    def __init__(self) -> None:
        super().__init__()
        self._is_stale = True
        self._suspects: set[Address] = set()
        self._refreshed_at = 0.0
        self._is_closed = False
        self._refreshing: asyncio.Task[None] | None = None

    @abstractmethod
    async def refresh(self) -> None:
        """Query the owners.

        Raises:
            RedisError, OSError: no server answered.
        """

    def invalidate(self, address: Address | None) -> None:
        """Start a refresh; the next `owner` waits for it."""
        if address is not None:
            self._suspects.add(address)
        self._is_stale = True
        if not self._is_closed:
            self._start_refresh()

    def refresh_soon(self) -> None:
        """Start a refresh in the background; `owner` does not wait for it."""
        self._start_refresh()

    def answered(self, address: Address | None) -> None:
        """Use the server again."""
        if self._suspects and address is not None:
            self._suspects.discard(address)

    async def is_usable(self, address: Address | None) -> bool:
        """Whether this owner may be used; false after a refresh, which may have replaced it.

        A failover takes time: a server that failed before may have been replaced since.
        """
        if address not in self._suspects or time.monotonic() < self._refreshed_at + RECHECK_S:
            return True
        await asyncio.shield(self._start_refresh())
        return False

    async def ensure_fresh(self) -> None:
        """Wait for the refresh after the last invalidation; raises like `refresh`."""
        if self._is_closed:
            raise RedisConnectionError("the connections are closed")
        if self._is_stale:
            await asyncio.shield(self._start_refresh())

    def _start_refresh(self) -> asyncio.Task[None]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._run_refresh(), name="directory")
            # Waiting callers get its error; without any it must still be retrieved.
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refreshing

    async def _run_refresh(self) -> None:
        await asyncio.sleep(max(0.0, self._refreshed_at + REFRESH_PAUSE_S - time.monotonic()))
        self._refreshed_at = time.monotonic()
        # Before the query: an invalidation during it needs another refresh.
        self._is_stale = False
        try:
            await self.refresh()
        except BaseException:
            self._is_stale = True
            raise

    async def close(self) -> None:
        """Stop all refreshes."""
        self._is_closed = True
        await cancel_and_wait([self._refreshing])
