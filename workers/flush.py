"""The flush worker: publishes what is due, and a heartbeat where nothing was.

Stateless: everything it knows is in Redis, every step is one atomic command, so any number may run
at once and a killed one is simply gone. What a kill between two steps costs is told at each step.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial

from redis.exceptions import RedisError

from broker.backend.replies import Drained, DrainLimits, LogFull, NotDue, Undeclared
from broker.backend.session import Session
from broker.backend.topology import Client
from broker.errors import BackendError
from broker.protocol.constants import BATCH_ID_BYTES, EPOCH_BYTES
from broker.runtime.tasks import cancel_and_wait
from broker.stats import FlushShardStats, FlushWorkerStats
from workers.canary import Canary
from workers.health import GREEN, FlushHealth
from workers.loop import run_loop, tell_health

log = logging.getLogger(__name__)

MAX_KNOWN_NODES = 2000
NAMESPACE = -1  # among the shards of which health is told: the namespace itself
LOG_FULL_RETRY = 0.25
# Seconds before its time that a shard is looked at: the server tells whole milliseconds, and timers
# round up to the next one. Asked too early the server says so, and is asked again.
EARLY = 0.001
SIGN_OFF = 0.3  # seconds
WAKE_WAIT = 5  # seconds a blocking pop lasts; only bounds how long a dead link goes unnoticed


@dataclass(slots=True)
class _Counts:
    """What was published of one shard; `FlushShardStats` documents each."""

    batches: int = 0
    deltas: int = 0
    bytes: int = 0
    by_count: int = 0
    by_age: int = 0


@dataclass(slots=True)
class _Shard:
    """When one shard has to be looked at again, and whose lists its last batches came from."""

    number: int
    drain_at: float | None = 0.0
    is_woken: bool = False
    is_full: bool = False
    beat_at: float = 0.0
    counts: _Counts = field(default_factory=_Counts)
    nodes: dict[str, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class FlushWorker:
    """Drains every shard of a namespace when it is due; sleeps while nothing is.

    Args:
        session: connected, namespace made or joined.
        name: of this worker, for status and log.
        heartbeat_interval: seconds of quiet after which a shard's head is told.
        max_age: seconds; sets the namespace's `local_delta_max_age`, None leaves it.
        max_count: sets the namespace's `local_delta_max_count`, None leaves it.
        limits: of batches and log.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        heartbeat_interval: float,
        max_age: float | None = None,
        max_count: int | None = None,
        limits: DrainLimits | None = None,
    ) -> None:
        self.name = name
        self._session = session
        self._interval = heartbeat_interval
        self._max_age_ms = None if max_age is None else round(max_age * 1000)
        self._max_count = max_count
        self._limits = limits or DrainLimits()
        self._shards = [_Shard(number) for number in range(len(session.keys))]
        self.health = FlushHealth(len(session.keys), heartbeat_interval, time.monotonic())
        self.reason = GREEN

    def stats(self) -> FlushWorkerStats:
        """Return what this worker published since it started; docs/statistics.md explains it."""
        shards = tuple(
            FlushShardStats(shard=one.number, **asdict(one.counts)) for one in self._shards
        )
        return FlushWorkerStats(
            worker=self.name,
            reason=self.reason,
            batches=sum(one.batches for one in shards),
            deltas=sum(one.deltas for one in shards),
            bytes=sum(one.bytes for one in shards),
            by_count=sum(one.by_count for one in shards),
            by_age=sum(one.by_age for one in shards),
            shards=shards,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until stopped; a batch under way is finished."""
        wakers = self._wakers()
        pops = self._session.connections.blocking(len(wakers) + 1)
        beside = [
            *(asyncio.create_task(self._listen(pops, one), name="wake-ups") for one in wakers),
            asyncio.create_task(Canary(self._session, self.health).run(), name="canary"),
            asyncio.create_task(self._watch(), name="health"),
        ]
        # A loop a shard: where one server is away the shards of the others go on.
        loops = [
            asyncio.create_task(
                run_loop(self.name, partial(self._poll_shard, shard), shard.wake, stop),
                name=f"flush-{shard.number}",
            )
            for shard in self._shards
        ]
        loops.append(
            asyncio.create_task(
                run_loop(self.name, self._keep_namespace, asyncio.Event(), stop), name="namespace"
            )
        )
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
            for task in loops:
                if task.done():
                    task.result()
        finally:
            await cancel_and_wait([*loops, *beside])
            with suppress(TimeoutError, BackendError):
                async with asyncio.timeout(SIGN_OFF):
                    for keys in self._session.keys:
                        await self._session.commands.remove_worker(keys, self.name)

    def _wakers(self) -> list[list[_Shard]]:
        """Return the shards whose wake-ups can be waited for together."""
        if self._session.connections.directory.is_sharded:
            return [[shard] for shard in self._shards]
        return [self._shards]

    async def _watch(self) -> None:
        """Judge this worker's health for ever; the next heartbeats tell it."""
        while True:
            await asyncio.sleep(self.health.tick)
            self.reason = tell_health(self.name, self.reason, self.health.judge(time.monotonic()))

    async def poll(self) -> None:
        """Do all that is due now, in every shard.

        Raises:
            BackendError: Redis failed; ask again.
        """
        for shard in self._shards:
            await self._poll_shard(shard)

    async def _poll_shard(self, shard: _Shard) -> float:
        """Do what is due in one shard now; return seconds until something is.

        Raises:
            BackendError: Redis failed; ask again.
        """
        began = time.monotonic()
        try:
            if shard.beat_at <= began:
                await self._beat(shard)
            is_due = shard.drain_at is not None and shard.drain_at <= time.monotonic()
            # While the log is full producers go on waking us, and it would be no use.
            if (shard.is_woken and not shard.is_full) or is_due:
                await self._drain(shard)
        except BackendError as error:
            self.health.failed(began, str(error), shard.number)
            raise
        self.health.worked(shard.number)
        if shard.is_woken and not shard.is_full:
            return 0.0
        next_at = shard.beat_at if shard.drain_at is None else min(shard.beat_at, shard.drain_at)
        return max(0.0, next_at - time.monotonic())

    async def _keep_namespace(self) -> float:
        """Make the namespace again if it is gone: after a flush of everything nobody could join."""
        began = time.monotonic()
        try:
            await self._session.create_or_join()
        except BackendError as error:
            self.health.failed(began, str(error), NAMESPACE)
            raise
        self.health.worked(NAMESPACE)
        return self._interval

    async def _beat(self, shard: _Shard) -> None:
        """Heartbeat if nobody else published.

        It also asks when something is due: that is how work is found whose wake-up was taken by a
        worker that died.
        """
        beat_ms, due_ms = await self._session.commands.heartbeat(
            self._session.keys[shard.number],
            shard.number,
            round(self._interval * 1000),
            os.urandom(EPOCH_BYTES),
            self.name,
            max_age_ms=self._max_age_ms,
            max_count=self._max_count,
            reason=self.reason,
        )
        now = time.monotonic()
        self.health.answered(now)
        shard.beat_at = now + beat_ms / 1000
        if due_ms >= 0:
            due = now + due_ms / 1000
            shard.drain_at = due if shard.drain_at is None else min(due, shard.drain_at)
            self.health.due(shard.number, shard.drain_at)

    async def _drain(self, shard: _Shard) -> None:
        """Publish one batch, if it is due. Killed before: nothing happened. After: all of it."""
        # A wake-up from now on may tell of something that this drain does not see.
        shard.is_woken = False
        keys = self._session.keys[shard.number]
        batch_id = os.urandom(BATCH_ID_BYTES)
        asked = time.monotonic()
        reply = await self._session.commands.drain(
            keys, shard.number, batch_id, list(shard.nodes), self._limits
        )
        if isinstance(reply, Undeclared):
            shard.nodes |= dict.fromkeys(reply.nodes)
            # Between the two calls others may have appended; these nodes are enough for a prefix.
            reply = await self._session.commands.drain(
                keys, shard.number, batch_id, list(shard.nodes), self._limits
            )
            self._forget_nodes(shard)
        now = time.monotonic()
        self.health.answered(now)
        if isinstance(reply, Drained):
            self._count(shard, reply)
            self.health.published(shard.number, reply.offset, now)
        if isinstance(reply, Drained | NotDue):
            shard.is_full = False
            shard.drain_at = None if reply.next_ms < 0 else asked + reply.next_ms / 1000 - EARLY
            self.health.drained(shard.number, shard.drain_at)
        elif isinstance(reply, LogFull):
            self.health.refused(shard.number)
            if not shard.is_full:
                log.error(
                    "log_full shard=%d log_bytes=%d fix=is a scheduler running?",
                    *(shard.number, reply.log_bytes),
                )
            shard.is_full = True
            shard.drain_at = now + LOG_FULL_RETRY

    def _forget_nodes(self, shard: _Shard) -> None:
        """Keep the nodes seen last, so that a fleet's comings and goings do not pile up."""
        for node in list(shard.nodes)[:-MAX_KNOWN_NODES]:
            del shard.nodes[node]

    def _count(self, shard: _Shard, batch: Drained) -> None:
        counts, is_by_count = shard.counts, batch.trigger == 1
        counts.batches += 1
        counts.deltas += batch.deltas
        counts.bytes += batch.size
        counts.by_count += is_by_count
        counts.by_age += not is_by_count
        log.debug(
            "batch_published shard=%d offset=%d deltas=%d chunks=%d bytes=%d trigger=%d age_ms=%d",
            *(shard.number, batch.offset, batch.deltas, batch.chunks, batch.size),
            *(batch.trigger, batch.oldest_ms),
        )
        if batch.missing:
            log.error(
                "chunks_not_found shard=%d offset=%d chunks=%d fix=who else writes to these keys?",
                *(shard.number, batch.offset, batch.missing),
            )

    async def _listen(self, client: Client, shards: list[_Shard]) -> None:
        """Block on the wake-ups; the pop that returns says which shard to look at now."""
        keys = self._session.keys
        by_key: dict[bytes | str, _Shard] = {
            keys[shard.number].ready.encode(): shard for shard in shards
        }
        while True:
            try:
                woken = await client.blpop(list(by_key), timeout=WAKE_WAIT)
            except (RedisError, OSError):
                # The poll meets the same fault, logs it and backs off; then look at everything.
                await asyncio.sleep(LOG_FULL_RETRY)
                continue
            if woken is not None:
                by_key[woken[0]].is_woken = True
                by_key[woken[0]].wake.set()
