"""The tasks that keep a replica's shards current; none of them runs user code.

One per server reads the subscription and applies what it brings, one watches for silence, and one
per shard reads log or full state for as long as the shard needs it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection
from contextlib import suppress

from broker.backend import queries
from broker.backend.session import Session
from broker.backend.subscription import Subscription
from broker.core.change_queue import ChangeQueue
from broker.core.shard import Need, ShardState
from broker.core.status import StatusTrack
from broker.core.transitions import Event
from broker.engine.self_check import check_and_repair
from broker.errors import (
    BackendError,
    BrokerError,
    DecodeError,
    NamespaceMismatchError,
    ReplicaFailedError,
)
from broker.model import Change, Status
from broker.runtime.tasks import cancel_and_wait

log = logging.getLogger(__name__)

RETRY_FIRST = 0.02
RETRY_MAX = 2.0
NAMESPACE_RETRY_MAX = 0.5
LOG_PAGE_BATCHES = 32
WATCH_SLACK = 0.001
NOTICE_WAIT = 15.0


class Follower:
    """Keeps every shard of a namespace current, whatever breaks, until it is closed.

    Args:
        session: connected; the namespace need not exist yet.
        staleness_bound: seconds of silence after which a shard is no longer live.
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
        self.news = asyncio.Event()
        self.reconnects = 0
        self.queues: list[ChangeQueue] = []
        self.track = StatusTrack(lambda: (time.monotonic(), time.time()))
        self._conflated = 0
        self._session = session
        self._by_channel: dict[bytes, ShardState] = {}
        self._by_bulk_channel: dict[bytes, ShardState] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._recovering: dict[int, asyncio.Task[None]] = {}
        self._subscription: Subscription | None = None
        self._watch_ends = 0.0
        self._watch_anew = asyncio.Event()

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
        ]
        if self.self_check_interval:
            self._tasks.append(asyncio.create_task(self._check(), name="self-check"))

    async def stop(self) -> None:
        """End every task; what is held stays."""
        self.track.end(Status.CLOSED, Event.CLOSE)
        for shard in self.shards:
            shard.close()
        await cancel_and_wait([*self._tasks, *self._recovering.values()])
        # One that went on for a moment may have started another.
        await cancel_and_wait(list(self._recovering.values()))
        for queue in self.queues:
            queue.close()
        self.track.close_queues()
        self.news.set()

    def _make_shards(self) -> None:
        for number, keys in enumerate(self._session.keys):
            shard = ShardState(number, self.staleness_bound)
            shard.on_changes = self._tell if self.queues else None
            shard.on_moved = self._moved
            self.track.add_shard(shard)
            self.shards.append(shard)
            self._by_channel[keys.channel.encode()] = shard
            self._by_bulk_channel[keys.bulk.encode()] = shard

    def add_queue(self, queue: ChangeQueue) -> None:
        """Begin to fill a queue of changes."""
        self.queues.append(queue)
        for shard in self.shards:
            shard.on_changes = self._tell

    def remove_queue(self, queue: ChangeQueue) -> None:
        """Stop filling a queue of changes."""
        queue.close()
        if queue in self.queues:
            self.queues.remove(queue)
            self._conflated += queue.conflated
        for shard in self.shards:
            shard.on_changes = self._tell if self.queues else None

    @property
    def conflated(self) -> int:
        """Changes that slow readers did not get one by one."""
        return self._conflated + sum(queue.conflated for queue in self.queues)

    def _tell(self, changes: list[Change]) -> None:
        for queue in self.queues:
            queue.put(changes)

    def _moved(self, shard: ShardState, before: Status) -> None:
        self.track.moved(shard, before)
        self.news.set()

    # -- the subscription -------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Stay subscribed for ever; every new subscription counts as a gap."""
        delay = 0.0
        while True:
            try:
                await self._await_namespace()
                # Bulk chunks come before their batch, so they are subscribed to before.
                channels = [*self._by_bulk_channel, *self._by_channel]
                self._subscription = Subscription(self._session.connections, channels, self)
                await self._subscription.run()
            except NamespaceMismatchError as error:
                self._fail(error)
                return
            except BackendError as error:
                log.warning("namespace_unknown namespace=%s error=%s", self.namespace, error)
            delay = min(RETRY_MAX, max(RETRY_FIRST, delay * 2))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def ready(self) -> None:
        """Return once the namespace is there, before a server is subscribed to."""
        try:
            await self._await_namespace()
        except BackendError:
            # The namespace may be on another server than these channels.
            if not self._session.connections.directory.is_sharded:
                raise

    async def _await_namespace(self) -> None:
        """Wait until somebody who may write has made the namespace (or made it again)."""
        delay = RETRY_FIRST
        while True:
            if await self._session.try_join():
                if not self.shards:
                    self._make_shards()
                return
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, NAMESPACE_RETRY_MAX)

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Apply a packet; keep a bulk chunk for the one that follows."""
        if channel in self._by_bulk_channel:
            self._by_bulk_channel[channel].bulk(data)
            return
        shard = self._by_channel[channel]
        shard.packet(data, time.monotonic())
        self._after(shard)

    def on_subscribed(self, channel: bytes) -> None:
        """Look for what was missed before; a bulk chunk that was is missed with its batch."""
        if channel in self._by_bulk_channel:
            return
        shard = self._by_channel[channel]
        shard.subscribed(time.monotonic())
        self._after(shard)

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:  # noqa: ARG002
        """Say so; what is missed is read at the next `subscribed`."""
        for channel in channels:
            if channel in self._by_channel:
                self._by_channel[channel].lost()
        self.reconnects += 1
        self.news.set()

    def _after(self, shard: ShardState) -> None:
        """Start what the shard needs now, watch it to its own deadline, tell those who wait."""
        now = time.monotonic()
        if shard.phase is Status.LIVE and now - shard.overdue(now) < self._watch_ends:
            self._watch_anew.set()
        if shard.need is not Need.NOTHING and shard.shard not in self._recovering:
            task = asyncio.create_task(self._recover(shard), name=f"recover-{shard.shard}")
            self._recovering[shard.shard] = task
        if shard.phase is Status.FAILED and self.failure is None:
            self._fail(
                ReplicaFailedError(
                    f"shard {shard.shard} of {self.namespace!r} was loaded {shard.loads_in_a_row} "
                    "times in a row and never fitted what is published; two histories seem to be "
                    "mixed: see `statebroker verify`"
                )
            )
        self.news.set()

    async def _watch(self) -> None:
        """Notice silence at the bound, and try another connection then."""
        while True:
            now = time.monotonic()
            live = [shard for shard in self.shards if shard.phase is Status.LIVE]
            left = min((-shard.overdue(now) for shard in live), default=1.0)
            wait = min(self.staleness_bound / 4, max(0.0, left) + WATCH_SLACK)
            self._watch_ends = now + wait
            self._watch_anew.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._watch_anew.wait()
            now = time.monotonic()
            silent = [shard for shard in self.shards if shard.tick(now)]
            if silent:
                self.news.set()
            if silent and self._subscription is not None:
                keys = self._session.keys
                self._subscription.renew({keys[one.shard].channel.encode() for one in silent})

    async def _check(self) -> None:
        """Compare every shard with Redis now and then, and mend what differs."""
        while True:
            # Many replicas began at the same moment: do not all come at once.
            await asyncio.sleep(self.self_check_interval * random.uniform(0.7, 1.3))
            for shard in self.shards:
                await self._notice(shard)
                try:
                    await check_and_repair(self._session, shard)
                except (BackendError, DecodeError) as error:
                    shard.counts["self_checks_undecided"] += 1
                    log.warning("self_check_undecided shard=%d error=%s", shard.shard, error)

    async def _notice(self, shard: ShardState) -> None:
        """Wait for the next full state: right after it the least log has to be read."""
        before = shard.counts["notices"]
        with suppress(TimeoutError):
            async with asyncio.timeout(NOTICE_WAIT):
                while shard.counts["notices"] == before:
                    self.news.clear()
                    await self.news.wait()

    def _fail(self, error: BrokerError) -> None:
        self.failure = error
        log.error("replica_failed namespace=%s error=%s", self.namespace, error)
        self.track.end(Status.FAILED, Event.GIVE_UP)
        for shard in self.shards:
            shard.give_up()
        self.news.set()

    # -- recovery ---------------------------------------------------------------------------------

    async def _recover(self, shard: ShardState) -> None:
        """Read what the shard needs until it needs nothing."""
        try:
            await self._read_until_current(shard)
        finally:
            # In the same step as the last look at `need`: what comes next starts another task.
            del self._recovering[shard.shard]

    async def _read_until_current(self, shard: ShardState) -> None:
        """Read log or full state as needed; errors are retried, with jitter."""
        delay = 0.0
        while shard.need is not Need.NOTHING:
            try:
                if shard.need is Need.LOG:
                    await self._read_log(shard)
                elif await self._load(shard):
                    delay = 0.0
                else:
                    delay = min(NAMESPACE_RETRY_MAX, max(RETRY_FIRST, delay * 2))
            except (BackendError, DecodeError) as error:
                log.warning(
                    "recovery_failed namespace=%s shard=%d error=%s",
                    *(self.namespace, shard.shard, error),
                )
                delay = min(RETRY_MAX, max(RETRY_FIRST, delay * 2))
            self._after(shard)
            if delay:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = delay if shard.need is Need.FULL_STATE else 0.0

    async def _read_log(self, shard: ShardState) -> None:
        keys = self._session.keys[shard.shard]
        after = shard.reading_from.offset
        asked_at = time.monotonic()
        page = await queries.log_page(self._session.client, keys, after, LOG_PAGE_BATCHES)
        shard.log_page(page.head, page.entries, asked_at)

    async def _load(self, shard: ShardState) -> bool:
        """Read the full state once; false if the shard does not exist yet."""
        client, keys = self._session.client, self._session.keys[shard.shard]
        if shard.loads_in_a_row:
            # Many replicas may have lost their way at the same moment: do not load all at once.
            most = min(RETRY_MAX, RETRY_FIRST * 2**shard.loads_in_a_row)
            await asyncio.sleep(random.uniform(0, most))
        # Before the head: another server's head may be ahead of this one's pages.
        run = await queries.server_identity(client, keys)
        head = (await queries.log_page(client, keys, 0, 0)).head
        if head is None:
            return False
        shard.begin_load(head)
        async for names, fields in queries.state_pages(client, keys, run):
            if shard.need is not Need.FULL_STATE:
                return True
            shard.load_page(names, fields)
        if shard.tables is not None:
            shard.load_tables(await queries.table_fields(client, keys, run))
        shard.end_load()
        return True
