"""The inspector for asyncio."""

from __future__ import annotations

from typing import Any, Self
from weakref import finalize

from broker.backend.credentials import Credentials
from broker.engine.inspector import InspectorEngine
from broker.protocol.messages import Position
from broker.runtime.forgotten import close_when_forgotten
from broker.stats.namespace import NamespaceStatus


class Inspector:
    """A reader of one namespace's data in Redis; it neither writes nor follows it.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`. None: STATEBROKER_URL, else
            `embedded://`.
        namespace: the state's name. None: STATEBROKER_NAMESPACE, else `default`.
        credentials: called for each new connection to a server; returns the password, or (user,
            password), at once or as an awaitable. It may block. A `CredentialProvider` of
            redis-py is asked likewise. None: those of the URL.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._engine = InspectorEngine(url, namespace=namespace, credentials=credentials)
        self._finalizer: finalize[..., object] | None = None

    @property
    def namespace(self) -> str:
        """Which state."""
        return self._engine.namespace

    async def open(self) -> Self:
        """Connect.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError: with the fix.
            NamespaceMismatchError: another protocol version.
            BrokerError: the namespace does not exist yet.
        """
        await self._engine.open()
        if self._finalizer is None:
            name = f"Inspector({self.namespace})"
            self._finalizer = close_when_forgotten(self, name, self._engine.close)
        return self

    async def status(self) -> NamespaceStatus:
        """Return what Redis holds of the namespace: server, shards, nodes and workers.

        docs/statistics.md explains each number. `statebroker status --json` prints its `as_dict()`.
        Each shard's numbers are of one moment, which is not the same for all shards.

        Raises:
            BackendError: Redis failed.
        """
        return await self._engine.status()

    async def get(self, key: str) -> tuple[bool, Any]:
        """Return (whether the key exists, its value) at the head; reads little more than it.

        Raises:
            UnreadableValueError: its writer packed what is no value of ours.
            BackendError: Redis failed, or history moved on faster than it could be read.
        """
        return await self._engine.get(key)

    async def state(self) -> dict[str, Any]:
        """Return the full-state hash as it is: the state at the last snapshot."""
        return await self._engine.state()

    async def folded(self) -> dict[str, Any]:
        """Return the state at the head: the full-state hash folded with the log.

        Raises:
            BackendError: as `get`.
        """
        return await self._engine.folded()

    async def folded_shard(
        self, shard: int, position: Position | None
    ) -> tuple[dict[str, Any], Position]:
        """Return one shard's state at a position of its log, or at the head, and that position.

        Args:
            shard: number of the shard.
            position: where to stop; None is the head.

        Raises:
            BackendError: the position is not part of the history that Redis holds (any more).
        """
        return await self._engine.folded_shard(shard, position)

    async def altered(self) -> dict[tuple[int, int], list[str]]:
        """Return where the full-state hash differs from what schedulers wrote, as after an edit.

        The server computes digests by key range; only ranges that differ are read.

        Returns:
            (shard, key range) -> the keys that the hash has there now.

        Raises:
            BackendError: Redis failed, or full states follow each other too fast.
        """
        return await self._engine.altered()

    async def damaged_tables(self) -> tuple[str, ...]:
        """Return which tables of the full state are damaged, and how, for people.

        New replicas do not show those that cannot be read; everything else goes on. Rows that are
        not what schedulers wrote are named too.

        Raises:
            BackendError: Redis failed, or full states follow each other too fast.
        """
        return await self._engine.damaged_tables()

    async def accept(self) -> tuple[str, ...]:
        """Accept the full-state hash as it is: the next full state computes its digest again.

        What cannot be read is removed: keys as well as tables that lack a part.

        Returns:
            What was removed, for people.
        """
        return await self._engine.accept()

    async def close(self) -> None:
        """Disconnect. Calling it again does nothing."""
        if self._finalizer is not None:
            self._finalizer.detach()
        await self._engine.close()

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        """Close it."""
        await self.close()
