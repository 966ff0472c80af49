"""The replica for ordinary, threaded code."""

from __future__ import annotations

import weakref
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from broker import aio
from broker.aio.replica import CHANGES_LIMIT, ReplicaSettings
from broker.core.change_queue import ChangeQueue, OverflowPolicy
from broker.core.status import StatusQueue
from broker.model import Change, Health, Status, StatusChange, Token, Verification
from broker.protocol.messages import Position
from broker.stats import ReplicaStats
from broker.sync.iterator import Reader
from broker.sync.loop_thread import LoopThread

if TYPE_CHECKING:
    from broker.core.tables.view import TableView

T = TypeVar("T")


class Replica(Mapping[str, Any]):
    """A live, read-only copy of one namespace in this process' memory.

    Reads of one key never wait and never touch the network. What reads many (`items`, `values`,
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
        namespace: str = "default",
        on_status: Callable[[StatusChange], object] | None = None,
        **settings: Unpack[ReplicaSettings],
    ) -> None:
        self._engine = aio.Replica(url, namespace=namespace, on_status=on_status, **settings)
        self._thread = LoopThread(f"Replica({namespace})")
        try:
            self._thread.call(self._engine.open())
        except BaseException:
            self._thread.stop()
            raise
        self._at_exit = weakref.finalize(self, _close, self._engine, self._thread)

    # -- reading ----------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        """Return a key's value.

        Raises:
            KeyError: absent (or not loaded yet: see `status`).
        """
        return self._engine[key]

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._engine)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys of one moment."""
        return iter(self.snapshot()[0])

    def items(self) -> ItemsView[str, Any]:
        """Return keys and values of one moment, as a copy."""
        return self.snapshot()[0].items()

    def values(self) -> ValuesView[Any]:
        """Return the values of one moment, as a copy."""
        return self.snapshot()[0].values()

    def snapshot(self) -> tuple[dict[str, Any], tuple[Position, ...]]:
        """Return a copy of the whole content at one moment, and each shard's position for it."""
        return self._between_batches(self._engine.snapshot)

    def table(
        self, name: str, *, keys: type[str | int] = str, values: type[float | int] = float
    ) -> TableView:
        """Return a live view of a table: keys to numbers, as a mapping and as arrays.

        Args:
            name: of the table.
            keys: `str`, or `int`, as its producers say.
            values: `float` or `int`, likewise.

        Raises:
            NumpyMissingError: it is an extra.
            ConfigError: the name or a type is not one.
        """
        return self._engine.table_read_by(self._between_batches, name, keys, values)

    def tables(self) -> tuple[TableView, ...]:
        """Return a view of each table that there is now, by name.

        Raises:
            NumpyMissingError: it is an extra.
        """
        return self._between_batches(lambda: self._engine.tables_read_by(self._between_batches))

    def _between_batches(self, read: Callable[[], T]) -> T:
        # Batches are applied on the loop's thread only: what runs there sees no half of one.
        if self._thread.is_closed:
            return read()
        return self._thread.run(read)

    @property
    def namespace(self) -> str:
        """The state it follows."""
        return self._engine.namespace

    @property
    def status(self) -> Status:
        """What the content is worth now; the worst shard decides.

        Exact whenever and on whichever thread it is read: with a `lag` above the staleness bound it
        never says `live`.
        """
        return self._engine.status

    @property
    def health(self) -> Health:
        """Whether all is well: it is as long as the replica is live, and again once it is.

        Else its reasons tell people the status, since when, why, and what to do.
        """
        return self._engine.health

    @property
    def position(self) -> Position:
        """The position of shard 0, which is all there is unless the namespace has more."""
        return self._engine.position

    @property
    def positions(self) -> tuple[Position, ...]:
        """Each shard's position, in the order of the shards."""
        return self._engine.positions

    @property
    def lag(self) -> float:
        """Seconds since the content was last proved to be the whole history; inf before that."""
        return self._engine.lag

    def stats(self) -> ReplicaStats:
        """Return what it is and did since it was opened; docs/statistics.md explains it all."""
        return self._between_batches(self._engine.stats)

    def verify(self) -> Verification:
        """Prove that the content is what Redis' history says, while writing goes on.

        Digests of 256 key ranges a shard are compared at one position; only ranges that differ are
        read. Changes nothing: a background check (`self_check_interval`) repairs.

        Raises:
            BackendError: Redis failed; or for half a minute the replica was not live, or full
                states followed each other too fast to be read in between.
            ClosedError, ForkedError: it is closed, or another process'.
        """
        return self._thread.call(self._engine.verify())

    # -- waiting ----------------------------------------------------------------------------------

    def wait_live(self, timeout: float | None = None) -> None:
        """Wait until the replica is live.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not live in time; says the status it has instead.
            ReplicaFailedError, ClosedError: it never will be.
        """
        self._thread.call(self._engine.wait_live(timeout))

    def wait_for(self, token: Token | str, timeout: float | None = None) -> None:
        """Wait until the replica shows everything that a producer's `flush()` returned this for.

        Args:
            token: from `flush()`, or its text.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not there in time.
            TokenError: the token cannot be read, or is of a namespace with more shards.
            ReplicaFailedError, ClosedError: it never will be.
        """
        self._thread.call(self._engine.wait_for(token, timeout))

    def changes(
        self,
        prefix: str | None = None,
        *,
        limit: int = CHANGES_LIMIT,
        overflow: OverflowPolicy = "conflate",
    ) -> Reader[Change]:
        """Follow what changes from now on; an iterator with `close()`.

        After a full load it yields what differs from before, marked `resync`.

        Args:
            prefix: only keys that begin with it.
            limit: most changes that wait for a slow reader.
            overflow: "conflate" or "raise", see `ChangeQueue`.
        """
        return Reader(
            self._engine,
            self._thread,
            lambda notify: ChangeQueue(prefix, limit, overflow, notify),
        )

    def statuses(self) -> Reader[StatusChange]:
        """Follow the status; an iterator with `close()`.

        The first that it yields tells the status now (`before` is `after`), the others each change
        with its reason, the last before the end is usually the one to `closed`. For a reader that
        is hundreds of changes behind the oldest become one; each `before` is always the `after`
        that was yielded last.
        """
        return Reader(self._engine, self._thread, StatusQueue)

    # -- life -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        if not self._thread.guard.is_forked and self._at_exit.alive:
            self._at_exit()

    def __enter__(self) -> Self:
        """Return itself; it is open already."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close it."""
        self.close()


def _close(engine: aio.Replica, thread: LoopThread) -> None:
    if not thread.guard.is_forked:
        thread.call(engine.close())
        thread.stop()
