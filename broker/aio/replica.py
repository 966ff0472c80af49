"""The replica for asyncio code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar, Unpack
from weakref import finalize

from broker.aio.iterator import Reader
from broker.core.change_queue import ChangeQueue, OverflowPolicy
from broker.core.status import StatusQueue
from broker.engine.replica import CHANGES_LIMIT, ReplicaEngine, ReplicaSettings
from broker.engine.replica_reads import ReplicaReads
from broker.model import Change, StatusChange, Token, Verification
from broker.runtime.forgotten import close_when_forgotten

T = TypeVar("T")


class Replica(ReplicaReads):
    """A live, read-only copy of one namespace in this process' memory.

    Reads never touch the network and show the history up to `position`: whole batches, in the order
    in which Redis accepted them, the same on every replica. Only the status `live` means complete
    and proved current within the staleness bound. Between two `await`s of the caller nothing
    changes.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`. None: STATEBROKER_URL, else
            `embedded://`.
        namespace: the state's name. None: STATEBROKER_NAMESPACE, else `default`.
        shards: shard count that the namespace must have; None: any.
        staleness_bound: seconds without proof after which the replica is no longer `live`. The
            default is 3; use at least three times the workers' heartbeat interval.
        self_check_interval: seconds between comparisons of the content with Redis, see `verify`;
            differences are corrected and logged as an error. The default is 300; 0: never.
        credentials: called for each new connection to a server; returns the password, or (user,
            password), at once or as an awaitable. It may block. A `CredentialProvider` of
            redis-py is asked likewise. None: those of the URL.
        on_status: called with each `StatusChange`, one at a time and in order, on a thread of its
            own. It may block; changes are conflated meanwhile, as for `statuses()`. Errors that
            it raises are logged. Code of the event loop reads `statuses()` instead.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        on_status: Callable[[StatusChange], object] | None = None,
        **settings: Unpack[ReplicaSettings],
    ) -> None:
        super().__init__(ReplicaEngine(url, namespace, on_status, settings))
        self._finalizer: finalize[..., object] | None = None

    def _at_once(self, read: Callable[[], T]) -> T:
        # Batches are applied on this loop: between two awaits nothing changes.
        return read()

    def _loaded(self, read: Callable[[], T]) -> T:
        # A read cannot await the load.
        return read()

    async def verify(self) -> Verification:
        """Prove that the content equals Redis' history, while writing goes on.

        Digests of 256 key ranges a shard are compared at one position; only ranges that differ are
        read. Changes nothing: a background check (`self_check_interval`) repairs.

        Raises:
            BackendError: Redis failed; or for half a minute the replica was not live, or full
                states followed each other too fast to be read in between.
            ClosedError, ForkedError: it is closed, or was made before a fork.
        """
        return await self._engine.verify()

    # -- waiting ----------------------------------------------------------------------------------

    async def wait_live(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - same as sync
        """Wait until the replica is live.

        Args:
            timeout: seconds; None waits without a limit.

        Raises:
            TimeoutError: not live in time; the text has its status.
            ReplicaFailedError, ClosedError: it never will be.
        """
        await self._engine.wait_live(timeout)

    async def wait_for(self, token: Token | str, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the replica shows everything that a producer's `flush()` returned this for.

        Args:
            token: from `flush()`, or its text.
            timeout: seconds; None waits without a limit.

        Raises:
            TimeoutError: not there in time.
            TokenError: the token cannot be read, or is of a namespace with more shards.
            ReplicaFailedError, ClosedError: it never will be.
        """
        await self._engine.wait_for(token, timeout)

    def changes(
        self,
        prefix: str | None = None,
        *,
        limit: int = CHANGES_LIMIT,
        overflow: OverflowPolicy = "conflate",
    ) -> Reader[Change]:
        """Follow the changes from now on; an async iterator with `close()`.

        After a full load it yields the differences to the content before, marked `resync`. Changes
        to a value that cannot be read are left out, counted and named in `stats()`.

        Args:
            prefix: only keys that begin with it.
            limit: most changes that wait for a slow reader.
            overflow: "conflate" or "raise", see `ChangeQueue`.
        """
        return Reader(
            self,
            self._engine,
            lambda notify: ChangeQueue(
                prefix, limit, overflow, notify, self._engine.unreadable.note
            ),
        )

    def statuses(self) -> Reader[StatusChange]:
        """Follow the status; an async iterator with `close()`.

        It first yields the status now (`before` is `after`), then each change with its reason. The
        last before the end is usually the change to `closed`. If a reader is hundreds of changes
        behind, the oldest become one. Each `before` is the `after` that was yielded last.
        """
        return Reader(self, self._engine, StatusQueue)

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and begin to load; returns before the replica is live (see `wait_live`).

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
        """
        await self._engine.open()
        if self._finalizer is None:
            name = f"Replica({self.namespace})"
            self._finalizer = close_when_forgotten(self, name, self._engine.close)
        return self

    async def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        if self._finalizer is not None:
            self._finalizer.detach()
        await self._engine.close()

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        """Close it."""
        await self.close()
