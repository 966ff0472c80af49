"""The tasks that keep a replica's shards current; none of them runs user code.

One task per server reads the subscription and applies its packets. One checks the staleness bound.
One per shard reads log or full state while the shard needs it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import assert_never

from broker.backend.conditions import conditions, ensure_no_eviction
from broker.backend.session import Session
from broker.backend.subscription import Subscription
from broker.core.change_queue import ChangeQueue
from broker.core.changes import ChangeColumns
from broker.core.effects import (
    ChangesVisible,
    DeltasRefused,
    Effect,
    ForeignHistory,
    FullStateWritten,
    KeysRepaired,
    LoadAltered,
    LoadState,
    PhaseChanged,
    ReadLog,
    Reconnect,
    StopReading,
)
from broker.core.shard import ShardState
from broker.core.status import StatusQueue, StatusTracker
from broker.core.transitions import Event
from broker.engine.recovery import MEMORY_FIX, Recovery
from broker.engine.self_check import check_and_repair
from broker.errors import (
    BackendError,
    BrokerError,
    DecodeError,
    NamespaceMismatchError,
    ReplicaFailedError,
)
from broker.model import Status
from broker.runtime import clock
from broker.runtime.backoff import Backoff
from broker.runtime.outage_log import OutageLog
from broker.runtime.tasks import cancel_and_wait, is_set_within

log = logging.getLogger(__name__)

RETRY_FIRST = 0.02
RETRY_MAX = 2.0
NAMESPACE_RETRY_MAX = 0.5
WATCH_SLACK = 0.001
NOTICE_WAIT = 15.0
DOUBT_INTERVAL = 30.0  # between two comparisons of a copy that was not what schedulers wrote
CONDITIONS_INTERVAL = 5.0
SHOWN_KEYS = 5
REFUSED_INTERVAL = 60.0


class Follower:
    """Keeps every shard of a namespace current, through all failures, until it is closed.

    Args:
        session: connected; the namespace need not exist yet.
        staleness_bound: seconds without proof after which a shard is no longer live.
        self_check_interval: seconds between comparisons with Redis; 0: never.
    """

    def __init__(
        self, session: Session, staleness_bound: float, self_check_interval: float = 0.0
    ) -> None:
        self.namespace = session.namespace
        self.staleness_bound = staleness_bound
        self.self_check_interval = self_check_interval
        self.failure: BrokerError | None = None
        self.shards: list[ShardState] = []
        self.state_changed = asyncio.Event()
        self.reconnects = 0
        self.queues: list[ChangeQueue] = []
        self.tracker = StatusTracker(lambda: (clock.now(), time.time()))
        self._conflated = 0
        self._told_settings: set[str] = set()
        self._refused_quiet: dict[int, float] = {}
        self._session = session
        self._by_channel: dict[bytes, ShardState] = {}
        self._by_bulk_channel: dict[bytes, ShardState] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._recoveries: list[Recovery] = []
        self._full_state_written: list[asyncio.Event] = []
        self._subscription: Subscription | None = None
        self._watch_ends = 0.0
        self._watch_anew = asyncio.Event()
        self._loaded = asyncio.Event()
        self._is_checking = asyncio.Lock()
        place = f"namespace={self.namespace}"
        self._joining = OutageLog(log, "namespace_unknown", place)
        self._recovering = OutageLog(log, "recovery_failed", place)
        self._checking = OutageLog(log, "self_check_undecided", place)

    async def start(self) -> None:
        """Begin; returns before anything is loaded.

        Raises:
            BackendError: Redis failed.
            NamespaceMismatchError: other shard count or protocol version.
        """
        if await self._session.try_join():
            self._make_shards()
        self._tasks = [
            asyncio.create_task(self._follow(), name="subscription"),
            asyncio.create_task(self._watch(), name="silence"),
            asyncio.create_task(self._watch_servers(), name="server conditions"),
        ]
        self._tasks.append(asyncio.create_task(self._compare_loads(), name="loads"))
        if self.self_check_interval:
            self._tasks.append(asyncio.create_task(self._check(), name="self-check"))

    async def stop(self) -> None:
        """Stop every task; the content stays."""
        self.tracker.end(Status.CLOSED, Event.CLOSE)
        for shard in self.shards:
            self._perform(shard, shard.close())
        await cancel_and_wait(self._tasks)
        for recovery in self._recoveries:
            await recovery.stop()
        for queue in self.queues:
            queue.close()
        self.tracker.close_queues()
        self.state_changed.set()

    def _make_shards(self) -> None:
        for number, keys in enumerate(self._session.keys):
            shard = ShardState(number, self.staleness_bound, self._session.frames)
            self.tracker.add_shard(shard)
            self._recoveries.append(
                Recovery(self._session, shard, self._perform, self._is_watched, self._recovering)
            )
            self._full_state_written.append(asyncio.Event())
            self.shards.append(shard)
            self._by_channel[keys.channel.encode()] = shard
            self._by_bulk_channel[keys.bulk.encode()] = shard

    def add_queue(self, queue: ChangeQueue) -> None:
        """Begin to fill a queue of changes."""
        self.queues.append(queue)

    def remove_queue(self, queue: ChangeQueue) -> None:
        """Stop filling a queue of changes."""
        queue.close()
        if queue in self.queues:
            self.queues.remove(queue)
            self._conflated += queue.conflated

    def add_status_queue(self, queue: StatusQueue) -> None:
        """Begin to fill a queue of status changes, first with the status now."""
        now = clock.now()
        for shard in self.shards:
            self._perform(shard, shard.tick(now))
        self.tracker.add_queue(queue)

    def _is_watched(self) -> bool:
        return bool(self.queues)

    @property
    def conflated(self) -> int:
        """Changes that slow readers did not get one by one."""
        return self._conflated + sum(queue.conflated for queue in self.queues)

    # -- effects ----------------------------------------------------------------------------------

    def _perform(self, shard: ShardState, effects: Sequence[Effect]) -> None:
        """Carry out a shard's effects, and wake the callers that wait for a state."""
        for effect in effects:
            match effect:
                case ReadLog() | LoadState() | StopReading():
                    self._recoveries[shard.shard].request(effect)
                case Reconnect():
                    self._renew_subscription(shard)
                case PhaseChanged():
                    self._phase_changed(shard, effect)
                case ChangesVisible():
                    self._deliver(effect.changes)
                case FullStateWritten():
                    self._full_state_written[shard.shard].set()
                case KeysRepaired() | LoadAltered() | ForeignHistory() | DeltasRefused():
                    self._log_effect(shard, effect)
                case _:
                    assert_never(effect)
        # The deadline may be earlier now: a packet may prove less than an earlier read did.
        now = clock.now()
        if shard.phase is Status.LIVE and now - shard.overdue(now) < self._watch_ends:
            self._watch_anew.set()
        self.state_changed.set()

    def _log_effect(
        self,
        shard: ShardState,
        effect: KeysRepaired | LoadAltered | ForeignHistory | DeltasRefused,
    ) -> None:
        if isinstance(effect, DeltasRefused):
            self._tell_refused(shard, effect)
        else:
            _log_effect(self.namespace, shard, effect)

    def _tell_refused(self, shard: ShardState, effect: DeltasRefused) -> None:
        """Log increments that were refused, in a shard once in a while: nobody else says so."""
        now = clock.now()
        if now < self._refused_quiet.get(shard.shard, now):
            return
        self._refused_quiet[shard.shard] = now + REFUSED_INTERVAL
        log.warning(
            "increments_refused namespace=%s shard=%d total=%d last=%s fix=%s",
            *(self.namespace, shard.shard, shard.tally.refused, ", ".join(effect.named)),
            "these keys hold no number, or would leave the 64-bit range: set them first",
        )

    def _warn_of_settings(self, shard: ShardState) -> None:
        """Log settings of the workers that do not fit the staleness bound here, each once."""
        for fault in shard.doubts.settings_faults:
            if fault not in self._told_settings:
                self._told_settings.add(fault)
                log.warning("settings_conflict namespace=%s %s", self.namespace, fault)

    def _phase_changed(self, shard: ShardState, change: PhaseChanged) -> None:
        self.tracker.phase_changed(shard, change)
        self._warn_of_settings(shard)
        if shard.is_to_be_compared:
            self._loaded.set()
        if change.after is Status.FAILED and self.failure is None:
            self._fail(_never_fits(self.namespace, shard))

    # -- the subscription -------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Stay subscribed until closed; every new subscription counts as a gap."""
        retry = Backoff(RETRY_FIRST, RETRY_MAX)
        while True:
            try:
                await self._await_namespace()
                self._joining.ended()
                # Bulk chunks come before their batch, so they are subscribed to before.
                channels = [*self._by_bulk_channel, *self._by_channel]
                self._subscription = Subscription(self._session.connections, channels, self)
                await self._subscription.run()
            except NamespaceMismatchError as error:
                self._fail(error)
                return
            except BackendError as error:
                self.tracker.trouble = str(error)
                self._joining.failed(error)
            await asyncio.sleep(retry.next())

    async def ready(self) -> None:
        """Return when the namespace exists, before a server is subscribed to."""
        try:
            await self._await_namespace()
        except BackendError:
            # The namespace may be on another server than these channels.
            if not self._session.connections.directory.is_sharded:
                raise

    async def _await_namespace(self) -> None:
        """Wait until a writer has made the namespace (or made it again)."""
        retry = Backoff(RETRY_FIRST, NAMESPACE_RETRY_MAX)
        while True:
            if await self._session.try_join():
                if not self.shards:
                    self._make_shards()
                self.tracker.trouble = ""
                return
            # It may exist on the server that the name of this one leads to by now.
            self._session.connections.renew()
            await asyncio.sleep(retry.next())

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Apply a packet; keep a bulk chunk for the one that follows."""
        if channel in self._by_bulk_channel:
            self._by_bulk_channel[channel].bulk(data)
            return
        shard = self._by_channel[channel]
        try:
            effects = shard.packet(data, clock.now(), watched=bool(self.queues))
        except MemoryError:
            self._recovering.failed(
                MemoryError("memory_exhausted"), shard=shard.shard, fix=f" fix={MEMORY_FIX}"
            )
            effects = shard.out_of_memory()
        self._perform(shard, effects)

    def on_subscribed(self, channel: bytes) -> None:
        """Read what was missed before; a missed bulk chunk is read with its batch."""
        if channel in self._by_bulk_channel:
            return
        shard = self._by_channel[channel]
        self._perform(shard, shard.subscribed(clock.now()))

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:
        """Mark the shards as disconnected; the next `subscribed` reads what was missed."""
        for channel in channels:
            if channel in self._by_channel:
                shard = self._by_channel[channel]
                shard.trouble = "" if error is None else str(error)
                self._perform(shard, shard.disconnected())
        self.reconnects += 1

    def _deliver(self, changes: list[ChangeColumns]) -> None:
        """Hand changes to their readers; those that were dropped without `close()` go."""
        for queue in list(self.queues):
            if queue.is_closed:
                self.remove_queue(queue)
            else:
                queue.add(changes)

    def _renew_subscription(self, shard: ShardState) -> None:
        if self._subscription is not None:
            self._subscription.renew({self._session.keys[shard.shard].channel.encode()})

    async def _watch(self) -> None:
        """Make shards stale at the bound, and then open a new connection."""
        while True:
            now = clock.now()
            live = [shard for shard in self.shards if shard.phase is Status.LIVE]
            left = min((-shard.overdue(now) for shard in live), default=1.0)
            wait = min(self.staleness_bound / 4, max(0.0, left) + WATCH_SLACK)
            self._watch_ends = now + wait
            self._watch_anew.clear()
            await is_set_within(self._watch_anew, wait)
            now = clock.now()
            for shard in self.shards:
                self._perform(shard, shard.tick(now))

    async def _watch_servers(self) -> None:
        """Look again and again at what was right when the replica connected."""
        while True:
            # Many replicas may start at the same moment: spread their questions over time.
            await asyncio.sleep(CONDITIONS_INTERVAL * random.uniform(0.7, 1.3))
            for group in _by_server(self._session, self.shards):
                with suppress(BackendError):
                    keys = self._session.keys[group[0].shard]
                    fault = (await conditions(self._session.client, keys)).fault
                    for shard in group:
                        shard.doubts.server_fault = fault

    async def _check(self) -> None:
        """Compare every shard with Redis at intervals, and correct the keys that differ."""
        while True:
            # Many replicas may start at the same moment: spread their checks over time.
            await asyncio.sleep(self.self_check_interval * random.uniform(0.7, 1.3))
            for shard in self.shards:
                await self._await_full_state(shard)
                await self._check_shard(shard)

    async def _compare_loads(self) -> None:
        """Compare what was loaded and is live; what differs, again until it is mended."""
        compared_at = 0.0
        while True:
            self._loaded.clear()
            is_time = clock.now() - compared_at > DOUBT_INTERVAL
            for shard in self.shards:
                if shard.is_to_be_compared or (is_time and shard.content.is_doubted):
                    await self._check_shard(shard)
                    compared_at = clock.now()
            await is_set_within(self._loaded, DOUBT_INTERVAL)

    async def _check_shard(self, shard: ShardState) -> None:
        """Compare a shard with Redis, and correct the keys that differ."""
        async with self._is_checking:
            try:
                # Keys must not be corrected by a copy that the server may have dropped.
                await ensure_no_eviction(self._session.client, self._session.keys[shard.shard])
                await check_and_repair(self._session, shard, self._perform, self._is_watched)
            except (BackendError, DecodeError, MemoryError) as error:
                shard.self_check_undecided(str(error) or type(error).__name__)
                self._checking.failed(error, shard=shard.shard)
            else:
                self._checking.ended(shard.shard)

    async def _await_full_state(self, shard: ShardState) -> None:
        """Wait for the next full state: the log to read after it is shortest."""
        written = self._full_state_written[shard.shard]
        written.clear()
        await is_set_within(written, NOTICE_WAIT)

    def _fail(self, error: BrokerError) -> None:
        self.failure = error
        log.error("replica_failed namespace=%s error=%s", self.namespace, error)
        self.tracker.end(Status.FAILED, Event.GIVE_UP)
        for shard in self.shards:
            self._perform(shard, shard.give_up())
        self.state_changed.set()


def _by_server(session: Session, shards: list[ShardState]) -> list[list[ShardState]]:
    """Group shards that are on one server for certain."""
    if session.connections.directory.is_sharded:
        return [[shard] for shard in shards]
    return [shards] if shards else []


def _never_fits(namespace: str, shard: ShardState) -> ReplicaFailedError:
    return ReplicaFailedError(
        f"shard {shard.shard} of {namespace!r} was loaded {shard.loads_in_a_row} times in a row, "
        "and no published batch ever followed it; two histories seem to be mixed, as by a copy in "
        "another database of the server: run `statebroker doctor`, then `statebroker verify`"
    )


def _log_effect(
    namespace: str, shard: ShardState, effect: KeysRepaired | LoadAltered | ForeignHistory
) -> None:
    if isinstance(effect, KeysRepaired):
        log.error(
            "self_check_repaired shard=%d keys=%d first=%s",
            *(shard.shard, len(effect.keys), sorted(effect.keys)[:SHOWN_KEYS]),
        )
        return
    if isinstance(effect, LoadAltered):
        log.error(
            "loaded_state_altered namespace=%s shard=%d ranges=%s fix=statebroker verify shows the "
            "keys",
            *(namespace, shard.shard, ",".join(f"{at:02x}" for at in sorted(effect.ranges))),
        )
        return
    log.warning(
        "foreign_history namespace=%s shard=%d epoch=%s fix=%s",
        *(namespace, shard.shard, effect.epoch.hex()),
        "something else publishes on the channels of this namespace; find it and stop it",
    )
