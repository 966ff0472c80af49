"""The engine of both replica faces: it follows one namespace on one event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypedDict

from broker.backend.credentials import Credentials
from broker.backend.session import Session
from broker.config import checked_timeout, chosen_namespace
from broker.core.change_queue import ChangeQueue
from broker.core.fold import Tally
from broker.core.queues import ReaderQueue
from broker.core.shard import ShardState
from broker.core.shard_counts import ShardCounts
from broker.core.status import StatusQueue
from broker.core.transitions import Event
from broker.engine.callbacks import call_for_each
from broker.engine.replication import Follower
from broker.engine.self_check import verified
from broker.engine.settings import checked_settings
from broker.engine.unreadable import UnreadableValues
from broker.errors import ClosedError, ConfigError, ForkedError, NotLoadedError, TokenError
from broker.model import Health, Status, StatusChange, Token, Verification
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Cell, Position, TableKey
from broker.protocol.names import shard_of
from broker.runtime import clock
from broker.runtime.bell import Bell
from broker.stats.replica import ReplicaStats

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

CHANGES_LIMIT = 100_000
_IS_A_WORKER_RUNNING = "is a flush worker running? (statebroker status)"
LOAD_PATIENCE_S = 5.0


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

    Attributes:
        followed: the state of each shard, always the same list; empty before the namespace exists,
            and in a forked child.
        unreadable: values that readers met and could not read.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None,
        namespace: str | None,
        on_status: Callable[[StatusChange], object] | None,
        settings: ReplicaSettings,
    ) -> None:
        values = checked_settings(ReplicaSettings.__annotations__, settings)
        self.namespace = chosen_namespace(namespace)
        if on_status is not None and (not callable(on_status) or iscoroutinefunction(on_status)):
            raise ConfigError(
                [f"on_status={on_status!r}; allowed: a plain function; async code reads statuses()"]
            )
        self._on_status = on_status
        self.unreadable = UnreadableValues(self.namespace, self._writer_of)
        self._session = Session(
            url, self.namespace, settings.get("shards"), settings.get("credentials")
        )
        self._follower = Follower(
            self._session, values["staleness_bound"], values["self_check_interval"]
        )
        self.followed = self._follower.shards
        self._closed = False
        self._was_opened = False
        self._opened_at = 0.0
        self._shards_of_parent: list[ShardState] = []

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and begin to load.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
            ClosedError: it was closed before.
        """
        if self._closed:
            raise _closed_error()
        self._session.check()
        if self._was_opened:
            return
        self._session.guard.call_in_child(self._forget_content)
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
        self._opened_at = clock.now()
        self._was_opened = True

    async def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing.

        On another loop, only if the one that opened it has ended.
        """
        if self._closed or self._session.guard.is_forked:
            return
        if not self._session.home.has_ended:
            self._session.home.check()
        self._closed = True
        await self._follower.stop()
        await self._session.close()

    def _forget_content(self) -> None:
        """Hide the content in a forked child, where nothing updates it."""
        # Kept, because freeing it would copy the memory that the processes share.
        self._shards_of_parent = [*self.followed]
        self.followed.clear()

    # -- reading ----------------------------------------------------------------------------------

    @property
    def shards(self) -> list[ShardState]:
        """The state of each shard; empty before the namespace exists.

        Raises:
            ForkedError: this is a forked child.
        """
        self._session.guard.check()
        return self.followed

    def _loaded(self) -> list[ShardState]:
        """Return the shards, each with the state of some moment; none without the namespace.

        After `LOAD_PATIENCE_S` some are enough: others may be on a part of a Cluster that is away.

        Raises:
            ForkedError: this is a forked child.
            NotLoadedError: a shard was never loaded.
        """
        shards = self.shards
        if self._has_loaded() or (self._left() <= 0 and any(one.is_loaded for one in shards)):
            return shards
        raise self._not_loaded()

    def _left(self) -> float:
        """Return the seconds for which reads still wait for the first load."""
        return self._opened_at + LOAD_PATIENCE_S - clock.now()

    def _has_loaded(self) -> bool:
        # A namespace that does not exist yet holds nothing.
        return self._was_opened and all(shard.is_loaded for shard in self.followed)

    def _not_loaded(self) -> NotLoadedError:
        if not self._was_opened:
            return NotLoadedError(_NOT_OPEN)
        return NotLoadedError(
            f"the replica of {self.namespace!r} has not loaded the state yet (it is "
            f"{self.status}), so it cannot say that a key is absent; call wait_live() before"
        )

    async def wait_loaded(self) -> None:
        """Wait for the first load, at most until `LOAD_PATIENCE_S` after it was opened.

        Raises:
            ReplicaFailedError, ClosedError: it never will be.
        """
        with suppress(TimeoutError):
            await self._until(self._has_loaded, max(0.0, self._left()), "has not loaded the state")

    def cell(self, key: str) -> Cell:
        """Return the cell of a key's value.

        Raises:
            KeyError: absent.
            NotLoadedError: whether it is absent is not known yet.
            ForkedError: this is a forked child.
        """
        shards = self.followed
        if not shards:
            self._session.guard.check()
            if not self._was_opened:
                raise self._not_loaded()
            raise KeyError(key)
        try:
            content = shards[shard_of(key, len(shards)) if len(shards) > 1 else 0].content
            return content.values[key]
        except KeyError:
            if content.is_loaded:
                raise
        except (TypeError, AttributeError):
            # What is no key is absent.
            raise KeyError(key) from None
        raise self._not_loaded()

    def _writer_of(self, key: str) -> str | None:
        """Return the node that set a key last, if it is known."""
        shards = self.followed
        return shards[shard_of(key, len(shards))].writer_of(key) if shards else None

    def count(self) -> int:
        """Return how many keys there are."""
        return sum(len(shard.values) for shard in self._loaded())

    def keys(self) -> list[str]:
        """Return the keys there are now."""
        return [key for shard in self._loaded() for key in list(shard.values)]

    def snapshot(self) -> tuple[dict[str, Cell], tuple[Position, ...]]:
        """Return a copy of the whole content, and each shard's position for it."""
        content: dict[str, Cell] = {}
        for shard in self._loaded():
            content.update(shard.values)
        return content, self.positions

    def tables(self) -> list[ShardTables]:
        """Return the tables of each shard that has some."""
        return [shard.tables for shard in self._loaded() if shard.tables is not None]

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
        try:
            self._session.guard.check()
        except ForkedError as error:
            return Health(ok=False, reasons=(f"{Status.CLOSED}: {error}",))
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
        opened = self._session.frames or FrameReader()
        return ReplicaStats(
            status=self.status,
            health=self.health,
            status_changes=tracker.changes,
            keys=sum(len(shard.values) for shard in shards),
            lag_s=self.lag,
            offset=sum(shard.position.offset for shard in shards),
            batches_applied=counts.batches_applied,
            batches_duplicate=events[Event.DUPLICATE],
            deltas_applied=tally.applied,
            deltas_superseded=tally.superseded,
            deltas_refused=tally.refused,
            refused=tuple(one for shard in self.followed for one in tuple(shard.refused)),
            deltas_skipped=tally.skipped,
            chunks_skipped=counts.chunks_skipped,
            bytes_received=counts.bytes_received,
            chunks_compressed=opened.frames,
            bytes_compressed=opened.frame_bytes,
            bytes_uncompressed=opened.content_bytes,
            packets=counts.packets,
            packets_unreadable=counts.packets_unreadable,
            packets_foreign=counts.packets_foreign,
            gaps=events[Event.GAP],
            forks=events[Event.FORK],
            cuts=events[Event.CUT],
            silences=events[Event.SILENCE],
            catch_ups=events[Event.CAUGHT_UP] + events[Event.QUIET],
            loads=counts.loads,
            loads_altered=counts.loads_altered,
            reconnects=self._follower.reconnects,
            changes_conflated=self._follower.conflated,
            self_checks=counts.self_checks,
            self_checks_failed=counts.self_checks_failed,
            self_checks_undecided=counts.self_checks_undecided,
            keys_repaired=counts.keys_repaired,
            full_state_altered=counts.full_state_altered,
            shards_uncompared=sum(not shard.content.is_compared for shard in shards),
            keys_damaged=sum(len(shard.damaged) for shard in shards),
            tables_damaged=sum(len(shard.tables.damaged) for shard in shards if shard.tables),
            status_changes_conflated=tracker.conflated,
            values_unreadable=self.unreadable.total,
            unreadable=self.unreadable.named,
        )

    async def verify(self) -> Verification:
        """Prove that the content equals Redis' history, as `verify` of the faces documents."""
        self._check_open()
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
        timeout = checked_timeout(timeout)
        self._check_open()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._follower.failure is not None:
                        raise self._follower.failure.with_traceback(None)
                    self._check_open()
                    self._follower.state_changed.clear()
                    if done():
                        return
                    await self._follower.state_changed.wait()
        except TimeoutError:
            raise TimeoutError(
                f"replica of {self.namespace!r} {what} after {timeout:g} s: it is {self.status}"
                + ("" if self.shards else " and the namespace does not exist yet")
                + f"; {self._follower.tracker.obstacle or _IS_A_WORKER_RUNNING}"
            ) from None

    def _check_open(self) -> None:
        """Return while the replica can follow.

        Raises:
            ForkedError, WrongLoopError, ClosedError: it cannot.
        """
        self._session.check()
        if self._closed:
            raise _closed_error()
        if not self._was_opened:
            raise ClosedError(_NOT_OPEN)

    # -- queues of readers ------------------------------------------------------------------------

    def check_fork(self) -> None:
        """Return in the process that opened the replica.

        Raises:
            ForkedError: this is a forked child.
        """
        self._session.guard.check()

    def add_queue(self, queue: ReaderQueue[Any, Any]) -> None:
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

    def remove_queue(self, queue: ReaderQueue[Any, Any]) -> None:
        """Stop filling a reader's queue (on the loop's thread)."""
        if isinstance(queue, StatusQueue):
            self._follower.tracker.remove_queue(queue)
        elif isinstance(queue, ChangeQueue):
            self._follower.remove_queue(queue)


_NOT_OPEN = "this replica is not open; call open() or use `async with`"


def _closed_error() -> ClosedError:
    return ClosedError("this replica is closed; make a new one")
