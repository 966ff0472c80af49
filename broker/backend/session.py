"""Joining a namespace: server checked, namespace checked, names of its shards known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from broker.backend import queries
from broker.backend.commands import Commands
from broker.backend.connections import Connections, attached
from broker.backend.preflight import check_servers, is_cluster, of_cluster
from broker.errors import NamespaceMismatchError
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.names import ShardKeys
from broker.runtime.forks import ForkGuard

if TYPE_CHECKING:
    from broker.embedded import Attachment


class Session:
    """One process' way into one namespace on one server.

    Args:
        url: any supported URL; None means `embedded://`.
        namespace: a checked name.
        shards: the shard count the caller insists on; None takes what the namespace has.
    """

    def __init__(self, url: str | None, namespace: str, shards: int | None) -> None:
        self.given_url = url
        self.namespace = namespace
        self.guard = ForkGuard(f"this producer or replica of {namespace!r}", self)
        self.wanted_shards = shards
        self.connections = Connections("")
        self.server: dict[str, Any] = {}
        self.keys: list[ShardKeys] = []
        self._attachment: Attachment | None = None

    async def connect(self, *, as_worker: bool = False) -> None:
        """Reach the server and check that it is fit; the namespace is not looked at.

        Args:
            as_worker: the caller serves the namespace itself.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, ConfigError: each with the fix.
        """
        url, self._attachment = await asyncio.to_thread(
            attached, self.given_url, serves=self.namespace if as_worker else None
        )
        self._use(Connections(url))
        self.server = await check_servers(self.connections, self.client)
        if is_cluster(self.server) and not self.connections.directory.is_sharded:
            await self.connections.close()
            self._use(Connections(of_cluster(url)))
            self.server = await check_servers(self.connections, self.client)

    def _use(self, connections: Connections) -> None:
        self.connections = connections
        self.client = connections.commands()
        self.commands = Commands(self.client, connections.directory.publish)

    async def ensure_workers(self) -> None:
        """Have an embedded server run workers for the namespace, if nobody serves it yet.

        Only now: a worker that comes before the producer would make the namespace its own way.

        Raises:
            EmbeddedError: they do not start.
        """
        before = self._attachment
        if before is not None:
            _, self._attachment = await asyncio.to_thread(
                attached, self.given_url, workers_for=self.namespace
            )
            await asyncio.to_thread(before.close)

    async def create_or_join(self) -> None:
        """Make the namespace if it is new, else check that it was made as we need it.

        Raises:
            NamespaceMismatchError: other shard count or protocol version; both are told.
        """
        found = await self.commands.join(self.namespace, PROTOCOL_VERSION, self.wanted_shards or 1)
        self._settle(*found)

    async def try_join(self) -> bool:
        """Check the namespace without making it; false if nobody made it yet.

        Raises:
            NamespaceMismatchError: as `create_or_join`.
        """
        found = await queries.config(self.client, self.namespace)
        if found is None:
            return False
        self._settle(*found)
        return True

    def _settle(self, protocol: int, shards: int) -> None:
        if protocol != PROTOCOL_VERSION:
            raise NamespaceMismatchError(
                f"namespace {self.namespace!r} speaks protocol version {protocol}, this is version "
                f"{PROTOCOL_VERSION}; use a release of the same protocol, or another namespace"
            )
        if self.wanted_shards not in (None, shards):
            raise NamespaceMismatchError(
                f"namespace {self.namespace!r} was made with {shards} shards, not "
                f"{self.wanted_shards}; leave shards out and start again to take what it has, or "
                "use another namespace"
            )
        # From now on another count means that somebody made the namespace again.
        self.wanted_shards = shards
        self.keys = [ShardKeys.of(self.namespace, shard, shards) for shard in range(shards)]

    async def close(self) -> None:
        """Close every connection, and let go of the embedded server."""
        await self.connections.close()
        if self._attachment is not None:
            await asyncio.to_thread(self._attachment.close)
            self._attachment = None
