"""The asyncio replica; the sync face runs this one on a thread of its own.

Three kinds of task, none of which runs user code: one reads the subscription and applies what it
brings, one watches for silence, and one per shard reads log or full state while the shard needs it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, ItemsView, Iterator, Mapping
from typing import Any, Self

from redis.asyncio.client import PubSub

from broker import reads
from broker.aio.session import Session
from broker.changes import ChangeQueue, OverflowPolicy
from broker.config import checked, checked_name
from broker.connection import translated
from broker.errors import (
    BackendError,
    BrokerError,
    ClosedError,
    DecodeError,
    NamespaceMismatchError,
    ReplicaFailedError,
    TokenError,
)
from broker.keys import shard_of
from broker.model import Change, Position, Status, Token
from broker.shardstate import Need, ShardState

log = logging.getLogger(__name__)

RETRY_FIRST = 0.02
RETRY_MOST = 2.0
LOG_PAGE_BATCHES = 32
CHANGES_LIMIT = 100_000

# The worst shard decides; this is the order.
_WORST_FIRST = (
    Status.FAILED,
    Status.CLOSED,
    Status.CONNECTING,
    Status.LOADING,
    Status.STALE,
    Status.CATCHING_UP,
    Status.LIVE,
)


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

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        shards: int | None = None,
        staleness_bound: float | None = None,
    ) -> None:
        settings = checked(shards=shards, staleness_bound=staleness_bound)
        self.namespace = checked_name("namespace", namespace)
        self.staleness_bound: float = settings["staleness_bound"]
        self.failure: BrokerError | None = None
        self._session = Session(url, self.namespace, shards)
        self._shards: list[ShardState] = []
        self._by_channel: dict[bytes, ShardState] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._recovering: dict[int, asyncio.Task[None]] = {}
        self._queues: list[ChangeQueue] = []
        self._news = asyncio.Event()
        self._reconnect = asyncio.Event()
        self._closed = False
        self._reconnects = 0

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and begin to load; returns before the replica is live (see `wait_live`).

        Raises:
            ConnectError, ServerUnfitError, EmbeddedError, NamespaceMismatchError: with the fix.
        """
        try:
            await self._session.connect()
            if await self._session.look():
                self._make_shards()
        except BaseException:
            await self._session.close()
            raise
        self._tasks = [
            asyncio.create_task(self._follow(), name="subscription"),
            asyncio.create_task(self._watch(), name="silence"),
        ]
        return self

    def _make_shards(self) -> None:
        for number, keys in enumerate(self._session.keys):
            shard = ShardState(number, self.staleness_bound)
            shard.on_changes = self._tell if self._queues else None
            self._shards.append(shard)
            self._by_channel[keys.channel.encode()] = shard

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        for shard in self._shards:
            shard.close()
        tasks = [*self._tasks, *self._recovering.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queue in self._queues:
            queue.close()
        self._news.set()
        await self._session.close()

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

    @property
    def status(self) -> Status:
        """What the content is worth now; the worst shard decides."""
        if self._closed:
            return Status.CLOSED
        if self.failure is not None:
            return Status.FAILED
        phases = {shard.phase for shard in self._shards} or {Status.CONNECTING}
        return next(status for status in _WORST_FIRST if status in phases)

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
        """Seconds since the content was last proved to be the whole history; inf before that.

        While live it stays below the heartbeat interval plus what a packet takes to arrive.
        """
        now = time.monotonic()
        return max((shard.lag(now) for shard in self._shards), default=float("inf"))

    def stats(self) -> dict[str, Any]:
        """Return counters over the life of this replica; see README for each one's meaning."""
        counts: dict[str, int] = {}
        for shard in self._shards:
            for name, count in shard.counts.items():
                counts[name] = counts.get(name, 0) + count
        return {
            "status": str(self.status),
            "keys": len(self),
            "lag_s": self.lag,
            "offset": sum(shard.position.offset for shard in self._shards),
            "batches_applied": counts.get("batches", 0),
            "batches_duplicate": counts.get("duplicate", 0),
            "deltas_applied": sum(shard.tally.applied for shard in self._shards),
            "deltas_superseded": sum(shard.tally.superseded for shard in self._shards),
            "deltas_refused": sum(shard.tally.refused for shard in self._shards),
            "deltas_skipped": sum(shard.tally.skipped for shard in self._shards),
            "chunks_skipped": counts.get("chunks_skipped", 0),
            "bytes_received": counts.get("bytes", 0),
            "packets": counts.get("packets", 0),
            "packets_unreadable": counts.get("packets_unreadable", 0),
            "gaps": counts.get("gap", 0),
            "forks": counts.get("fork", 0),
            "cuts": counts.get("cut", 0),
            "silences": counts.get("silence", 0),
            "catch_ups": counts.get("caught_up", 0) + counts.get("quiet", 0),
            "loads": counts.get("loads", 0),
            "reconnects": self._reconnects,
            "changes_conflated": sum(queue.conflated for queue in self._queues),
        }

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
            TokenError: the token belongs to a history that Redis no longer has.
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
            if shard.phase is Status.LIVE and shard.position.epoch != epoch:
                raise TokenError(
                    f"token belongs to epoch {epoch.hex()}, shard {number} is in "
                    f"{shard.position.epoch.hex()}: Redis was wiped since; write again"
                )
            if shard.position.epoch != epoch or shard.covered < append:
                return False
        return True

    async def _until(
        self,
        done: Callable[[], bool],
        timeout: float | None,  # noqa: ASYNC109 - same as sync
        what: str,
    ) -> None:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self.failure is not None:
                        raise self.failure
                    if self._closed:
                        raise ClosedError("this replica is closed; make a new one")
                    self._news.clear()
                    if done():
                        return
                    await self._news.wait()
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
    ) -> Changes:
        """Follow what changes from now on; an async iterator with `close()`.

        After a full load it yields what differs from before, marked `resync`.

        Args:
            prefix: only keys that begin with it.
            limit: most changes that wait for a slow reader.
            overflow: "conflate" or "raise", see `ChangeQueue`.
        """
        return Changes(self, prefix, limit, overflow)

    def add_queue(self, queue: ChangeQueue) -> None:
        """Begin to fill a queue of changes (on the loop's thread)."""
        self._queues.append(queue)
        for shard in self._shards:
            shard.on_changes = self._tell
        if self._closed:
            queue.close()

    def remove_queue(self, queue: ChangeQueue) -> None:
        """Stop filling a queue of changes (on the loop's thread)."""
        queue.close()
        if queue in self._queues:
            self._queues.remove(queue)
        for shard in self._shards:
            shard.on_changes = self._tell if self._queues else None

    def _tell(self, changes: list[Change]) -> None:
        for queue in self._queues:
            queue.put(changes)

    # -- the subscription -------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Stay subscribed for ever; every new subscription counts as a gap."""
        delay = 0.0
        while True:
            try:
                await self._await_namespace()
                delay = 0.0
                await self._read_subscription()
            except NamespaceMismatchError as error:
                self._fail(error)
                return
            except BackendError as error:
                log.warning("subscription_lost namespace=%s error=%s", self.namespace, error)
            for shard in self._shards:
                shard.lost()
            self._news.set()
            self._reconnects += 1
            delay = min(RETRY_MOST, max(RETRY_FIRST, delay * 2))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _await_namespace(self) -> None:
        """Wait until somebody who may write has made the namespace."""
        delay = RETRY_FIRST
        while not self._shards:
            if await self._session.look():
                self._make_shards()
                return
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.5)

    async def _read_subscription(self) -> None:
        """Subscribe to every channel and apply what comes, until it breaks or goes silent."""
        self._reconnect.clear()
        client = self._session.connections.blocking()
        pubsub = client.pubsub()
        try:
            async with translated("following"):
                await pubsub.subscribe(*self._by_channel)
            reader = asyncio.create_task(self._read_packets(pubsub))
            silence = asyncio.create_task(self._reconnect.wait())
            try:
                await asyncio.wait((reader, silence), return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    reader.result()
            finally:
                reader.cancel()
                silence.cancel()
                await asyncio.gather(reader, silence, return_exceptions=True)
        finally:
            await self._session.connections.discard(client, pubsub)

    async def _read_packets(self, pubsub: PubSub) -> None:
        async with translated("following"):
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is None:
                    continue
                shard = self._by_channel.get(message["channel"])
                if shard is None:
                    continue
                now = time.monotonic()
                if message["type"] == "message":
                    shard.packet(message["data"], now)
                elif message["type"] == "subscribe":
                    shard.subscribed(now)
                self._after(shard)

    def _after(self, shard: ShardState) -> None:
        """Start what the shard needs now, and tell those who wait."""
        if shard.need is not Need.NOTHING and shard.shard not in self._recovering:
            task = asyncio.create_task(self._recover(shard), name=f"recover-{shard.shard}")
            self._recovering[shard.shard] = task
            task.add_done_callback(lambda _: self._recovering.pop(shard.shard, None))
        if shard.phase is Status.FAILED and self.failure is None:
            self._fail(
                ReplicaFailedError(
                    f"shard {shard.shard} of {self.namespace!r} was loaded {shard.loads_in_a_row} "
                    "times in a row and never fitted what is published; two histories seem to be "
                    "mixed: see `statebroker verify`"
                )
            )
        self._news.set()

    async def _watch(self) -> None:
        """Notice silence within a quarter of the bound, and try another connection then."""
        while True:
            await asyncio.sleep(self.staleness_bound / 4)
            now = time.monotonic()
            silent = [shard for shard in self._shards if shard.tick(now)]
            if silent:
                self._news.set()
                self._reconnect.set()

    def _fail(self, error: BrokerError) -> None:
        self.failure = error
        log.error("replica_failed namespace=%s error=%s", self.namespace, error)
        for shard in self._shards:
            shard.give_up()
        self._news.set()

    # -- recovery ---------------------------------------------------------------------------------

    async def _recover(self, shard: ShardState) -> None:
        """Read what the shard needs until it needs nothing; errors are retried, with jitter."""
        delay = 0.0
        while shard.need is not Need.NOTHING:
            try:
                if shard.need is Need.LOG:
                    await self._read_log(shard)
                elif await self._load(shard):
                    delay = 0.0
                else:
                    delay = min(0.5, max(RETRY_FIRST, delay * 2))
            except (BackendError, DecodeError) as error:
                log.warning(
                    "recovery_failed namespace=%s shard=%d error=%s",
                    *(self.namespace, shard.shard, error),
                )
                delay = min(RETRY_MOST, max(RETRY_FIRST, delay * 2))
            self._after(shard)
            if delay:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = delay if shard.need is Need.FULL_STATE else 0.0

    async def _read_log(self, shard: ShardState) -> None:
        keys = self._session.keys[shard.shard]
        after = shard.reading_from.offset
        page = await reads.log_page(self._session.client, keys, after, LOG_PAGE_BATCHES)
        shard.log_page(page.head, page.entries, time.monotonic())

    async def _load(self, shard: ShardState) -> bool:
        """Read the full state once; false if the shard does not exist yet."""
        client, keys = self._session.client, self._session.keys[shard.shard]
        if shard.loads_in_a_row:
            # Many replicas may have lost their way at the same moment: do not load all at once.
            most = min(RETRY_MOST, RETRY_FIRST * 2**shard.loads_in_a_row)
            await asyncio.sleep(random.uniform(0, most))
        run = await reads.server_run(client)
        head = (await reads.log_page(client, keys, 0, 0)).head
        if head is None:
            return False
        shard.begin_load(head)
        async for names, fields in reads.state_pages(client, keys):
            if shard.need is not Need.FULL_STATE:
                return True
            shard.load_page(names, fields)
        # Another server, or another life of it, may have answered half of the pages.
        if await reads.server_run(client) != run:
            log.warning("load_repeated namespace=%s shard=%d", self.namespace, shard.shard)
            return True
        shard.end_load()
        return True


class Changes:
    """An async iterator over a replica's changes; `close()` ends it."""

    def __init__(
        self, replica: Replica, prefix: str | None, limit: int, overflow: OverflowPolicy
    ) -> None:
        self._replica = replica
        self._ready = asyncio.Event()
        self._queue = ChangeQueue(prefix, limit, overflow, self._ready.set)
        self._taken: list[Change] = []
        replica.add_queue(self._queue)

    def __aiter__(self) -> AsyncIterator[Change]:
        """Return itself."""
        return self

    async def __anext__(self) -> Change:
        """Wait for the next change.

        Raises:
            ChangesOverflowError: the reader was too slow, by its own policy.
            StopAsyncIteration: the replica or this iterator was closed.
        """
        while not self._taken:
            self._ready.clear()
            try:
                self._taken = self._queue.take()[::-1]
            except StopIteration:
                raise StopAsyncIteration from None
            if not self._taken:
                await self._ready.wait()
        return self._taken.pop()

    def close(self) -> None:
        """End the iteration; what was already told can still be read."""
        self._replica.remove_queue(self._queue)
