"""The replica for ordinary, threaded code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar, Unpack

from broker.config import checked_timeout
from broker.core.change_queue import ChangeQueue, OverflowPolicy
from broker.core.status import StatusQueue
from broker.engine.replica import CHANGES_LIMIT, ReplicaEngine, ReplicaSettings
from broker.engine.replica_reads import ReplicaReads
from broker.errors import NotLoadedError
from broker.model import Change, StatusChange, Token, Verification
from broker.runtime.closing import END_TIMEOUT_S, Closing
from broker.sync.iterator import Reader
from broker.sync.loop_thread import LoopThread

T = TypeVar("T")


class Replica(ReplicaReads):
    """A live, read-only copy of one namespace in this process' memory.

    Reads of one key never wait and never touch the network, once the first load is over: right
    after the start they wait for it, at most 5 seconds. What reads many (`items`, `values`,
    iteration, `snapshot`) copies between two batches, so it shows one moment. May be used from many
    threads. Connects when made; takes the arguments of `broker.aio.Replica` and gives the same
    promises. Use it with `with`, or call `close()`.

    Raises:
        ConfigError: every fault of the arguments at once.
        ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with the fix.
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
        self._thread = LoopThread(f"Replica({self._engine.namespace})")
        try:
            self._thread.call(self._engine.open())
        except BaseException:
            self._thread.stop()
            raise
        self._closing = Closing(self, self._thread, self._engine.close)

    def _at_once(self, read: Callable[[], T]) -> T:
        # Batches are applied on the loop's thread only: what runs there sees no half of one.
        if self._thread.is_closed:
            return read()
        return self._thread.run(read)

    def _loaded(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except NotLoadedError:
            if self._thread.is_here or self._thread.is_closed:
                raise
        self._thread.call(self._engine.wait_loaded())
        return read()

    def verify(self) -> Verification:
        """Prove that the content equals Redis' history, while writing goes on.

        Digests of 256 key ranges a shard are compared at one position; only ranges that differ are
        read. Changes nothing: a background check (`self_check_interval`) repairs.

        Raises:
            BackendError: Redis failed; or for half a minute the replica was not live, or full
                states followed each other too fast to be read in between.
            ClosedError, ForkedError: it is closed, or was made before a fork.
        """
        return self._thread.call(self._engine.verify())

    # -- waiting ----------------------------------------------------------------------------------

    def wait_live(self, timeout: float | None = None) -> None:
        """Wait until the replica is live.

        Args:
            timeout: seconds; None waits without a limit.

        Raises:
            TimeoutError: not live in time; the text has its status.
            ReplicaFailedError, ClosedError: it never will be.
        """
        timeout = checked_timeout(timeout)
        self._thread.call(self._engine.wait_live(timeout), timeout)

    def wait_for(self, token: Token | str, timeout: float | None = None) -> None:
        """Wait until the replica shows everything that a producer's `flush()` returned this for.

        Args:
            token: from `flush()`, or its text.
            timeout: seconds; None waits without a limit.

        Raises:
            TimeoutError: not there in time.
            TokenError: the token cannot be read, or is of a namespace with more shards.
            ReplicaFailedError, ClosedError: it never will be.
        """
        timeout = checked_timeout(timeout)
        self._thread.call(self._engine.wait_for(token, timeout), timeout)

    def changes(
        self,
        prefix: str | None = None,
        *,
        limit: int = CHANGES_LIMIT,
        overflow: OverflowPolicy = "conflate",
    ) -> Reader[Change]:
        """Follow the changes from now on; an iterator with `close()`.

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
            self._thread,
            lambda notify: ChangeQueue(
                prefix, limit, overflow, notify, self._engine.unreadable.note
            ),
        )

    def statuses(self) -> Reader[StatusChange]:
        """Follow the status; an iterator with `close()`.

        It first yields the status now (`before` is `after`), then each change with its reason. The
        last before the end is usually the change to `closed`. If a reader is hundreds of changes
        behind, the oldest become one. Each `before` is the `after` that was yielded last.
        """
        return Reader(self, self._engine, self._thread, StatusQueue)

    # -- life -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        self._closing.close(self._engine.close, END_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return itself; it is open already."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close it."""
        self.close()
