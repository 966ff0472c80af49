"""The engine of both replica faces: it follows one namespace on one event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypedDict

from broker.backend.credentials import Credentials
from broker.backend.session import Session
from broker.config import checked_name, checked_of
from broker.core.change_queue import ChangeQueue
from broker.core.fold import Tally
from broker.core.queues import Bell, ReaderQueue
from broker.core.shard import ShardState
from broker.core.shard_counts import ShardCounts
from broker.core.status import StatusQueue
from broker.core.transitions import Event
from broker.engine.callbacks import call_for_each
from broker.engine.replication import Follower
from broker.engine.self_check import verified
from broker.errors import ClosedError, ConfigError, TokenError
from broker.model import Health, Status, StatusChange, Token, Verification
from broker.protocol.messages import Position, TableKey
from broker.protocol.names import shard_of
from broker.runtime import clock
from broker.stats import ReplicaStats

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

CHANGES_LIMIT = 100_000


class ReplicaSettings(TypedDict, total=False):
    """The arguments of replicas of both faces; `broker.aio.Replica` documents each."""

    shards: int | None
    staleness_bound: float | None
    self_check_interval: float | None
    credentials: Credentials | None


class ReplicaEngine:
    """A replica without a face.

    The coroutines, `add_queue` and `remove_queue` run on one event loop, the rest on any thread;
    reads of many keys show one moment only on the loop, between two steps of it.

    Args:
        url: as for the faces.
        namespace: likewise.
        on_status: likewise.
        settings: likewise.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None,
        namespace: str,
        on_status: Callable[[StatusChange], object] | None,
        settings: ReplicaSettings,
    ) -> None:
        values = checked_of(ReplicaSettings.__annotations__, settings)
        self.namespace = checked_name("namespace", namespace)
        if on_status is not None and (not callable(on_status) or iscoroutinefunction(on_status)):
            raise ConfigError(
                [f"on_status={on_status!r}; allowed: a plain function; async code reads statuses()"]
            )
        self._on_status = on_status
        self._session = Session(
            url, self.namespace, settings.get("shards"), settings.get("credentials")
        )
        self._follower = Follower(
            self._session, values["staleness_bound"], values["self_check_interval"]
        )
        self._closed = False

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and begin to load.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
        """
        try:
            await self._session.connect()
            await self._session.ensure_workers()
            if self._on_status is not None:
                bell = Bell()
                queue = StatusQueue(bell.ring)
                self._follower.tracker.add_queue(queue, begins=False)
                call_for_each(self._on_status, queue, bell, f"on_status of {self.namespace}")
            await self._follower.start()
        except BaseException:
            self._follower.tracker.close_queues()
            await self._session.close()
            raise

    async def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        if self._closed or self._session.guard.is_forked:
            return
        self._closed = True
        await self._follower.stop()
        await self._session.close()

    # -- reading ----------------------------------------------------------------------------------

    @property
    def shards(self) -> list[ShardState]:
        """The state of each shard; empty before the namespace exists."""
        return self._follower.shards

    def value(self, key: str) -> Any:
        """Return a key's value.

        Raises:
            KeyError: absent.
        """
        shards = self._follower.shards
        if not shards:
            raise KeyError(key)
        return shards[shard_of(key, len(shards))].content.values[key]

    def count(self) -> int:
        """Return how many keys there are."""
        return sum(len(shard.values) for shard in self.shards)

    def keys(self) -> list[str]:
        """Return the keys there are now."""
        return [key for shard in self.shards for key in list(shard.values)]

    def snapshot(self) -> tuple[dict[str, Any], tuple[Position, ...]]:
        """Return a copy of the whole content, and each shard's position for it."""
        content: dict[str, Any] = {}
        for shard in self.shards:
            content.update(shard.values)
        return content, self.positions

    def tables(self) -> list[ShardTables]:
        """Return the tables of each shard that has some."""
        return [shard.tables for shard in self.shards if shard.tables is not None]

    def table_keys(self) -> list[TableKey]:
        """Return which tables there are now, by name."""
        return sorted({key for tables in self.tables() for key in list(tables.tables)})

    @property
    def status(self) -> Status:
        """What the content is worth now."""
        if self._closed or self._session.guard.is_forked:
            return Status.CLOSED
        return self._follower.tracker.status

    @property
    def health(self) -> Health:
        """Whether the replica is live, and if not why."""
        status = self.status
        failure = self._follower.failure if status is Status.FAILED else None
        return self._follower.tracker.health(status, failure)

    @property
    def positions(self) -> tuple[Position, ...]:
        """Each shard's position."""
        return tuple(shard.position for shard in self.shards)

    @property
    def lag(self) -> float:
        """Seconds since the moment as of which it is proved to hold all that was accepted."""
        now = clock.now()
        return max((shard.lag(now) for shard in self.shards), default=float("inf"))

    def stats(self) -> ReplicaStats:
        """Return its state, and counters since it was opened."""
        shards, tracker = self.shards, self._follower.tracker
        counts, tally, events = ShardCounts(), Tally(), Counter[Event]()
        for shard in shards:
            counts.add(shard.counts)
            tally.add(shard.tally)
            events.update(shard.events)
        return ReplicaStats(
            status=self.status,
            health=self.health,
            status_changes=tracker.changes,
            keys=self.count(),
            lag_s=self.lag,
            offset=sum(shard.position.offset for shard in shards),
            batches_applied=counts.batches_applied,
            batches_duplicate=events[Event.DUPLICATE],
            deltas_applied=tally.applied,
            deltas_superseded=tally.superseded,
            deltas_refused=tally.refused,
            deltas_skipped=tally.skipped,
            chunks_skipped=counts.chunks_skipped,
            bytes_received=counts.bytes_received,
            packets=counts.packets,
            packets_unreadable=counts.packets_unreadable,
            gaps=events[Event.GAP],
            forks=events[Event.FORK],
            cuts=events[Event.CUT],
            silences=events[Event.SILENCE],
            catch_ups=events[Event.CAUGHT_UP] + events[Event.QUIET],
            loads=counts.loads,
            reconnects=self._follower.reconnects,
            changes_conflated=self._follower.conflated,
            self_checks=counts.self_checks,
            self_checks_failed=counts.self_checks_failed,
            self_checks_undecided=counts.self_checks_undecided,
            keys_repaired=counts.keys_repaired,
            full_state_altered=counts.full_state_altered,
            keys_damaged=sum(len(shard.damaged) for shard in shards),
            status_changes_conflated=tracker.conflated,
        )

    async def verify(self) -> Verification:
        """Prove that the content equals Redis' history, as `verify` of the faces documents."""
        self._session.guard.check()
        if self._closed:
            raise _closed_error()
        return await verified(self._session, self.shards)

    # -- waiting ----------------------------------------------------------------------------------

    async def wait_live(self, timeout: float | None) -> None:  # noqa: ASYNC109 - as the faces
        """Wait until the replica is live."""
        await self._until(lambda: self.status is Status.LIVE, timeout, "is not live")

    async def wait_for(self, token: Token | str, timeout: float | None) -> None:  # noqa: ASYNC109
        """Wait until the replica shows everything up to a token."""
        if not isinstance(token, (Token, str)):
            raise TokenError(
                f"token is a {type(token).__name__}; give what flush() returned, or its text"
            )
        marks = (Token.parse(token) if isinstance(token, str) else token).marks
        await self._until(lambda: self._shows(marks), timeout, "does not show the token")

    def _shows(self, marks: Mapping[int, tuple[bytes, int]]) -> bool:
        for number, (epoch, append) in marks.items():
            if not self.shards:
                return False
            if number >= len(self.shards):
                raise TokenError(
                    f"token names shard {number}; {self.namespace!r} has {len(self.shards)}"
                )
            shard = self.shards[number]
            # Another epoch may be an older one, or one that is not loaded yet: wait. During a load
            # the shard may show a history that Redis no longer has.
            is_complete = shard.phase in (Status.LIVE, Status.STALE)
            if not is_complete or shard.position.epoch != epoch or shard.covered < append:
                return False
        return True

    async def _until(
        self,
        done: Callable[[], bool],
        timeout: float | None,  # noqa: ASYNC109 - as the faces
        what: str,
    ) -> None:
        self._session.guard.check()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._follower.failure is not None:
                        raise self._follower.failure.with_traceback(None)
                    if self._closed:
                        raise _closed_error()
                    self._follower.state_changed.clear()
                    if done():
                        return
                    await self._follower.state_changed.wait()
        except TimeoutError:
            raise TimeoutError(
                f"replica of {self.namespace!r} {what} after {timeout:g} s: it is {self.status}"
                + ("" if self.shards else " and the namespace does not exist yet")
                + "; is a flush worker running? (statebroker status)"
            ) from None

    # -- queues of readers ------------------------------------------------------------------------

    def check_fork(self) -> None:
        """Return in the process that opened the replica.

        Raises:
            ForkedError: this is a forked child.
        """
        self._session.guard.check()

    def add_queue(self, queue: ReaderQueue[Any]) -> None:
        """Begin to fill a reader's queue (on the loop's thread)."""
        if self._session.guard.is_forked:
            # The reader raises it when it waits; locks may be held by threads of the parent.
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
            self._follower.tracker.remove_queue(queue)
        elif isinstance(queue, ChangeQueue):
            self._follower.remove_queue(queue)


def _closed_error() -> ClosedError:
    return ClosedError("this replica is closed; make a new one")
