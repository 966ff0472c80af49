"""The asyncio replica; the sync face runs this one on a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, ItemsView, Iterator, Mapping
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from broker.aio.iterator import Reader
from broker.backend.session import Session
from broker.config import checked_name, checked_of
from broker.core.change_queue import ChangeQueue, OverflowPolicy
from broker.core.queues import Bell, ReaderQueue
from broker.core.shard import ShardState
from broker.core.status import StatusQueue
from broker.core.tables import need_numpy
from broker.core.tables.kinds import table_key
from broker.engine.callbacks import call_for_each
from broker.engine.replication import Follower
from broker.engine.self_check import verified
from broker.errors import ClosedError, ConfigError, TokenError
from broker.model import Change, Health, Status, StatusChange, Token, Verification
from broker.protocol.messages import Position, TableKey
from broker.protocol.names import shard_of
from broker.stats import ReplicaStats

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables
    from broker.core.tables.view import TableView

CHANGES_LIMIT = 100_000


class ReplicaSettings(TypedDict, total=False):
    """What replicas of both faces may be given; `Replica` says what each is."""

    shards: int | None
    staleness_bound: float | None
    self_check_interval: float | None


class Replica(Mapping[str, Any]):
    """A live, read-only copy of one namespace in this process' memory.

    Reads never touch the network and show the history up to `position`: whole batches, in the order
    in which Redis accepted them, the same on every replica. `status` says what that is worth:
    only `live` means complete and proved current within the staleness bound. Between two `await`s
    of the caller nothing changes.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`; None means `embedded://`.
        namespace: which state.
        shards: shard count that the namespace must have; None takes what it has.
        staleness_bound: seconds of silence after which the replica is no longer `live`; 3 by
            default, at least three times the workers' heartbeat interval is wise.
        self_check_interval: seconds between comparisons of the content with Redis, see `verify`;
            what differs is put right and logged as an error. 300 by default, 0 is never.
        on_status: called with each `StatusChange`, one at a time and in order, on a thread of its
            own: it may block as long as it likes, then changes are conflated as for `statuses()`.
            What it raises is logged. Code of the event loop reads `statuses()` instead.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        on_status: Callable[[StatusChange], object] | None = None,
        **settings: Unpack[ReplicaSettings],
    ) -> None:
        values = checked_of(ReplicaSettings.__annotations__, settings)
        self.namespace = checked_name("namespace", namespace)
        if on_status is not None and (not callable(on_status) or iscoroutinefunction(on_status)):
            raise ConfigError(
                [f"on_status={on_status!r}; allowed: a plain function; async code reads statuses()"]
            )
        self._on_status = on_status
        self.staleness_bound: float = values["staleness_bound"]
        self._session = Session(url, self.namespace, settings.get("shards"))
        self._follower = Follower(
            self._session, self.staleness_bound, values["self_check_interval"]
        )
        self._closed = False

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and begin to load; returns before the replica is live (see `wait_live`).

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
        """
        try:
            await self._session.connect()
            await self._session.ensure_workers()
            if self._on_status is not None:
                bell = Bell()
                queue = StatusQueue(bell.ring)
                self._follower.track.add_queue(queue, begins=False)
                call_for_each(self._on_status, queue, bell, f"on_status of {self.namespace}")
            await self._follower.start()
        except BaseException:
            self._follower.track.close_queues()
            await self._session.close()
            raise
        return self

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        if self._closed or self._session.guard.is_forked:
            return
        self._closed = True
        await self._follower.stop()
        await self._session.close()

    @property
    def _shards(self) -> list[ShardState]:
        return self._follower.shards

    # -- reading ----------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        """Return a key's value.

        Raises:
            KeyError: absent (or not loaded yet: see `status`).
        """
        shards = self._shards
        if not shards:
            raise KeyError(key)
        return shards[shard_of(key, len(shards))].values[key]

    def __len__(self) -> int:
        """How many keys there are."""
        return sum(len(shard.values) for shard in self._shards)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys there are now; later changes do not disturb it."""
        return iter([key for shard in self._shards for key in list(shard.values)])

    def items(self) -> ItemsView[str, Any]:
        """Return keys and values of one moment, as a copy."""
        return self.snapshot()[0].items()

    def snapshot(self) -> tuple[dict[str, Any], tuple[Position, ...]]:
        """Return a copy of the whole content, and each shard's position for it."""
        content: dict[str, Any] = {}
        for shard in self._shards:
            content.update(shard.values)
        return content, self.positions

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
        return self.table_read_by(lambda look: look(), name, keys, values)

    def table_read_by(
        self, read: Callable[[Callable[[], Any]], Any], name: str, keys: type, values: type
    ) -> TableView:
        """Return such a view, and let `read` run what shows one moment."""
        return self._view(table_key(name, keys, values), read)

    def tables(self) -> tuple[TableView, ...]:
        """Return a view of each table that there is now, by name.

        Raises:
            NumpyMissingError: it is an extra.
        """
        return self.tables_read_by(lambda look: look())

    def tables_read_by(self, read: Callable[[Callable[[], Any]], Any]) -> tuple[TableView, ...]:
        """Return such views, and let `read` run what shows one moment."""
        need_numpy()
        found = {key for tables in self._tables() for key in list(tables.tables)}
        return tuple(self._view(key, read) for key in sorted(found))

    def _view(self, key: TableKey, read: Callable[[Callable[[], Any]], Any]) -> TableView:
        from broker.core.tables.view import TableView  # noqa: PLC0415 - needs numpy

        return TableView(key, self._tables, read)

    def _tables(self) -> list[ShardTables]:
        return [shard.tables for shard in self._shards if shard.tables is not None]

    @property
    def status(self) -> Status:
        """What the content is worth now; the worst shard decides.

        Exact whenever it is read: with a `lag` above the staleness bound it never says `live`.
        """
        if self._closed or self._session.guard.is_forked:
            return Status.CLOSED
        return self._follower.track.status

    @property
    def health(self) -> Health:
        """Whether all is well: it is as long as the replica is live, and again once it is.

        Else its reasons tell people the status, since when, why, and what to do.
        """
        status = self.status
        failure = self._follower.failure if status is Status.FAILED else None
        return self._follower.track.health(status, failure)

    @property
    def positions(self) -> tuple[Position, ...]:
        """Each shard's position, in the order of the shards; empty before the namespace exists."""
        return tuple(shard.position for shard in self._shards)

    @property
    def position(self) -> Position:
        """The position of shard 0, which is all there is unless the namespace has more."""
        return self._shards[0].position if self._shards else Position()

    @property
    def lag(self) -> float:
        """Seconds since the moment for which the content is proved to be the whole history.

        inf before that. While live it is at most the staleness bound; in quiet times it swings
        between nothing and the heartbeat interval. Packets that waited somewhere count as old.
        """
        now = time.monotonic()
        return max((shard.lag(now) for shard in self._shards), default=float("inf"))

    def stats(self) -> ReplicaStats:
        """Return what it is and did since it was opened; docs/statistics.md explains it all."""
        shards, track = self._shards, self._follower.track
        counts: Counter[str] = Counter()
        for shard in shards:
            counts.update(shard.counts)
        return ReplicaStats(
            status=self.status,
            health=self.health,
            status_changes=track.changes,
            keys=len(self),
            lag_s=self.lag,
            offset=sum(shard.position.offset for shard in shards),
            batches_applied=counts["batches"],
            batches_duplicate=counts["duplicate"],
            deltas_applied=sum(shard.tally.applied for shard in shards),
            deltas_superseded=sum(shard.tally.superseded for shard in shards),
            deltas_refused=sum(shard.tally.refused for shard in shards),
            deltas_skipped=sum(shard.tally.skipped for shard in shards),
            chunks_skipped=counts["chunks_skipped"],
            bytes_received=counts["bytes"],
            packets=counts["packets"],
            packets_unreadable=counts["packets_unreadable"],
            gaps=counts["gap"],
            forks=counts["fork"],
            cuts=counts["cut"],
            silences=counts["silence"],
            catch_ups=counts["caught_up"] + counts["quiet"],
            loads=counts["loads"],
            reconnects=self._follower.reconnects,
            changes_conflated=self._follower.conflated,
            self_checks=counts["self_checks"],
            self_checks_failed=counts["self_checks_failed"],
            self_checks_undecided=counts["self_checks_undecided"],
            keys_repaired=counts["keys_repaired"],
            full_state_altered=counts["full_state_altered"],
            status_changes_conflated=track.conflated,
        )

    async def verify(self) -> Verification:
        """Prove that the content is what Redis' history says, while writing goes on.

        Digests of 256 key ranges a shard are compared at one position; only ranges that differ are
        read. Changes nothing: a background check (`self_check_interval`) repairs.

        Raises:
            BackendError: Redis failed; or for half a minute the replica was not live, or full
                states followed each other too fast to be read in between.
            ForkedError: this is a forked child.
        """
        self._session.guard.check()
        if self._closed:
            raise ClosedError("this replica is closed; make a new one")
        return await verified(self._session, self._shards)

    # -- waiting ----------------------------------------------------------------------------------

    async def wait_live(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - same as sync
        """Wait until the replica is live.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not live in time; says the status it has instead.
            ReplicaFailedError, ClosedError: it never will be.
        """
        await self._until(lambda: self.status is Status.LIVE, timeout, "is not live")

    async def wait_for(self, token: Token | str, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the replica shows everything that a producer's `flush()` returned this for.

        Args:
            token: from `flush()`, or its text.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not there in time.
            TokenError: the token cannot be read, or is of a namespace with more shards.
            ReplicaFailedError, ClosedError: it never will be.
        """
        marks = (Token.parse(token) if isinstance(token, str) else token).marks
        await self._until(lambda: self._shows(marks), timeout, "does not show the token")

    def _shows(self, marks: Mapping[int, tuple[bytes, int]]) -> bool:
        for number, (epoch, append) in marks.items():
            if not self._shards:
                return False
            if number >= len(self._shards):
                raise TokenError(
                    f"token names shard {number}; {self.namespace!r} has {len(self._shards)}"
                )
            shard = self._shards[number]
            # Another epoch may be an older one or one that we have not heard of yet: wait. While it
            # loads, what the shard shows may be of a history that Redis no longer has.
            settled = shard.phase in (Status.LIVE, Status.STALE)
            if not settled or shard.position.epoch != epoch or shard.covered < append:
                return False
        return True

    async def _until(
        self,
        done: Callable[[], bool],
        timeout: float | None,  # noqa: ASYNC109 - same as sync
        what: str,
    ) -> None:
        self._session.guard.check()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._follower.failure is not None:
                        raise self._follower.failure.with_traceback(None)
                    if self._closed:
                        raise ClosedError("this replica is closed; make a new one")
                    self._follower.news.clear()
                    if done():
                        return
                    await self._follower.news.wait()
        except TimeoutError:
            raise TimeoutError(
                f"replica of {self.namespace!r} {what} after {timeout:g} s: it is {self.status}"
                + ("" if self._shards else " and nobody made the namespace yet")
                + "; is a flush worker running? (statebroker status)"
            ) from None

    # -- changes ----------------------------------------------------------------------------------

    def changes(
        self,
        prefix: str | None = None,
        *,
        limit: int = CHANGES_LIMIT,
        overflow: OverflowPolicy = "conflate",
    ) -> Reader[Change]:
        """Follow what changes from now on; an async iterator with `close()`.

        After a full load it yields what differs from before, marked `resync`.

        Args:
            prefix: only keys that begin with it.
            limit: most changes that wait for a slow reader.
            overflow: "conflate" or "raise", see `ChangeQueue`.
        """
        return Reader(self, lambda notify: ChangeQueue(prefix, limit, overflow, notify))

    def statuses(self) -> Reader[StatusChange]:
        """Follow the status; an async iterator with `close()`.

        The first that it yields tells the status now (`before` is `after`), the others each change
        with its reason, the last before the end is usually the one to `closed`. For a reader that
        is hundreds of changes behind the oldest become one; each `before` is always the `after`
        that was yielded last.
        """
        return Reader(self, StatusQueue)

    def check_fork(self) -> None:
        """Return in the process that opened the replica.

        Raises:
            ForkedError: this is a forked child.
        """
        self._session.guard.check()

    def add_queue(self, queue: ReaderQueue[Any]) -> None:
        """Begin to fill a reader's queue (on the loop's thread)."""
        if self._session.guard.is_forked:
            # Its reader raises that when it waits; here locks may be held by threads left behind.
            return
        if isinstance(queue, StatusQueue):
            self._follower.add_status_queue(queue)
        elif isinstance(queue, ChangeQueue):
            self._follower.add_queue(queue)
        if self._closed:
            self.remove_queue(queue)

    def remove_queue(self, queue: ReaderQueue[Any]) -> None:
        """Stop filling a reader's queue (on the loop's thread)."""
        if isinstance(queue, StatusQueue):
            self._follower.track.remove_queue(queue)
        elif isinstance(queue, ChangeQueue):
            self._follower.remove_queue(queue)
