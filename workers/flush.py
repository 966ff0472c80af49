"""The flush worker: publishes due chunks, and heartbeats for quiet shards.

It is stateless: all state is in Redis and every step is one atomic command. So any number of
workers may run at once, and any may be killed at any time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from broker.backend.replies import Drained, DrainLimits, LogFull, NotDue
from broker.backend.session import Session
from broker.backend.topology import Client
from broker.errors import BackendError, DamagedError, NamespaceMismatchError
from broker.protocol.constants import BATCH_ID_BYTES, EPOCH_BYTES, TRIGGER_COUNT
from broker.runtime import clock
from broker.runtime.tasks import cancel_and_wait
from broker.stats.workers import FlushShardStats, FlushWorkerStats
from workers.canary import Canary
from workers.conditions import ConditionsWatch
from workers.health import GREEN, FlushHealth
from workers.loop import log_health_change, poll_outage, run_loop

log = logging.getLogger(__name__)

# Pseudo shard numbers under which the health of the namespace and of the wake-ups is reported.
NAMESPACE = -1
WAKE_UPS = -2
# Something may be pending of which no deadline tells, if others deleted it.
LOOK_INTERVAL_S = 10.0
LOG_FULL_RETRY_S = 0.25
# A drain starts this much before its due time: the server reports whole milliseconds, and timers
# round up. If it is too early, the server says so and the drain is repeated.
EARLY_S = 0.001
NOTE_INTERVAL_S = 3.0
SIGN_OFF_TIMEOUT_S = 0.3
WAKE_RETRY_S = 1.0
WAKE_TIMEOUT_S = 5  # of a blocking pop; bounds how long a dead connection goes unnoticed


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
    """When one shard must be drained again."""

    number: int
    drain_at: float | None = 0.0
    is_woken: bool = False
    is_full: bool = False
    heartbeat_at: float = 0.0
    look_at: float = 0.0
    counts: _Counts = field(default_factory=_Counts)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class FlushWorker:
    """Drains every shard of a namespace when it is due, and sleeps otherwise.

    Args:
        session: connected, namespace created or joined.
        name: of this worker, for status and log.
        heartbeat_interval: seconds of quiet after which the head of a shard is published.
        max_age: seconds; sets `local_delta_max_age` of the namespace, None leaves it unchanged.
        max_count: sets `local_delta_max_count` of the namespace, None leaves it unchanged.
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
        self.health = FlushHealth(len(session.keys), heartbeat_interval, clock.now())
        self.conditions = ConditionsWatch(session, name)
        self.reason = GREEN

    def stats(self) -> FlushWorkerStats:
        """Return what this worker published since it started; docs/statistics.md explains it."""
        shards = tuple(
            FlushShardStats(
                shard=one.number,
                batches=one.counts.batches,
                deltas=one.counts.deltas,
                bytes=one.counts.bytes,
                by_count=one.counts.by_count,
                by_age=one.counts.by_age,
            )
            for one in self._shards
        )
        return FlushWorkerStats(
            worker=self.name,
            reason=self.reason,
            batches=sum(one.batches for one in shards),
            deltas=sum(one.deltas for one in shards),
            bytes=sum(one.bytes for one in shards),
            by_count=sum(one.by_count for one in shards),
            by_age=sum(one.by_age for one in shards),
            keys_evicted=self.conditions.evicted,
            shards=shards,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until stopped; a batch in progress is finished."""
        groups = self._wake_groups()
        client = self._session.connections.blocking(len(groups) + 1)
        background = [
            *(
                asyncio.create_task(self._wait_for_wakeups(client, one), name="wake-ups")
                for one in groups
            ),
            asyncio.create_task(Canary(self._session, self.health).run(), name="canary"),
            asyncio.create_task(self._watch_health(), name="health"),
            asyncio.create_task(
                self.conditions.run(partial(setattr, self.health, "condition")),
                name="server conditions",
            ),
        ]
        outage = poll_outage(self.name)
        # One loop per shard: if one server is unreachable, the shards of the others continue.
        loops = [
            asyncio.create_task(
                run_loop(
                    *(self.name, partial(self._poll_shard, shard), shard.wake, stop),
                    shard=shard.number,
                    outage=outage,
                ),
                name=f"flush-{shard.number}",
            )
            for shard in self._shards
        ]
        loops.append(
            asyncio.create_task(
                run_loop(self.name, self._keep_namespace, asyncio.Event(), stop, outage=outage),
                name="namespace",
            )
        )
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
            for task in loops:
                if task.done():
                    task.result()
        finally:
            await cancel_and_wait([*loops, *background])
            with suppress(TimeoutError):
                async with asyncio.timeout(SIGN_OFF_TIMEOUT_S):
                    await asyncio.gather(
                        *(
                            self._session.commands.remove_worker(keys, self.name)
                            for keys in self._session.keys
                        ),
                        return_exceptions=True,
                    )

    def _wake_groups(self) -> list[list[_Shard]]:
        """Group the shards whose wake-up lists one command can wait for."""
        if self._session.connections.directory.is_sharded:
            return [[shard] for shard in self._shards]
        return [self._shards]

    async def _watch_health(self) -> None:
        """Update the health for ever; the next heartbeats publish it."""
        while True:
            await asyncio.sleep(self.health.tick)
            self.reason = log_health_change(
                self.name, self.reason, self.health.verdict(clock.now())
            )

    async def poll(self) -> None:
        """Do everything that is due now, in every shard; one whose server is away stops no other.

        Raises:
            BackendError: Redis failed in every shard; call again.
        """
        away: list[tuple[int, BackendError]] = []
        errors = []
        polls = map(self._poll_shard, self._shards)
        for shard, result in zip(
            self._shards, await asyncio.gather(*polls, return_exceptions=True), strict=True
        ):
            if isinstance(result, BackendError):
                away.append((shard.number, result))
                # A damaged one waits for its repair, and is heard of by its own loop.
                if not isinstance(result, DamagedError):
                    errors.append(result)
            elif isinstance(result, BaseException):
                raise result
        if len(errors) == len(self._shards):
            raise errors[0]
        for number, error in away:
            log.warning("shard_away shard=%d error=%s", number, error)

    async def _poll_shard(self, shard: _Shard) -> float:
        """Do what is due in one shard; return the seconds until more is due.

        Raises:
            BackendError: Redis failed; call again.
        """
        began = clock.now()
        try:
            if shard.heartbeat_at <= began:
                await self._heartbeat(shard)
            now = clock.now()
            is_due = shard.look_at <= now if shard.drain_at is None else shard.drain_at <= now
            # While the log is full, wake-ups from producers are ignored: a drain would fail.
            if (shard.is_woken and not shard.is_full) or is_due:
                await self._drain(shard)
        except BackendError as error:
            self.health.failed(began, str(error), shard.number)
            raise
        self.health.succeeded(shard.number)
        if shard.is_woken and not shard.is_full:
            return 0.0
        next_at = (
            shard.heartbeat_at
            if shard.drain_at is None
            else min(shard.heartbeat_at, shard.drain_at)
        )
        return max(0.0, next_at - clock.now())

    async def _keep_namespace(self) -> float:
        """Create the namespace again if it is gone, as after FLUSHALL: nobody could join."""
        began = clock.now()
        try:
            await self._session.create_or_join()
        except BackendError as error:
            self.health.failed(began, str(error), NAMESPACE)
            raise
        except NamespaceMismatchError as error:
            # Others overwrote how it was made, or made it again: what is here is served meanwhile.
            self.health.failed(began, str(error), NAMESPACE)
            return self._interval
        self.health.succeeded(NAMESPACE)
        return self._interval

    async def _heartbeat(self, shard: _Shard) -> None:
        """Publish a heartbeat if the shard was quiet.

        The reply has the time at which something is due: it shows work whose wake-up was consumed
        by a worker that died.
        """
        heartbeat_ms, due_ms = await self._session.commands.heartbeat(
            self._session.keys[shard.number],
            shard.number,
            round(self._interval * 1000),
            os.urandom(EPOCH_BYTES),
            self.name,
            max_age_ms=self._max_age_ms,
            max_count=self._max_count,
            reason=self.reason,
        )
        now = clock.now()
        self.health.answered(now)
        # Also where heartbeats are rarer: who was not seen for 10 s is shown as gone.
        shard.heartbeat_at = now + min(heartbeat_ms / 1000, NOTE_INTERVAL_S)
        if due_ms >= 0:
            due = now + due_ms / 1000
            shard.drain_at = due if shard.drain_at is None else min(due, shard.drain_at)
            self.health.due(shard.number, shard.drain_at)

    async def _drain(self, shard: _Shard) -> None:
        """Publish one batch if it is due, atomically."""
        # A wake-up from now on may be for chunks that this drain does not see.
        shard.is_woken = False
        keys = self._session.keys[shard.number]
        batch_id = os.urandom(BATCH_ID_BYTES)
        asked = clock.now()
        reply = await self._session.commands.drain(keys, shard.number, batch_id, self._limits)
        now = clock.now()
        self.health.answered(now)
        if isinstance(reply, Drained):
            self._count(shard, reply)
            self.health.published(shard.number, reply.offset, now)
        shard.look_at = now + LOOK_INTERVAL_S
        if isinstance(reply, Drained | NotDue):
            shard.is_full = False
            shard.drain_at = None if reply.next_ms < 0 else asked + reply.next_ms / 1000 - EARLY_S
            self.health.drained(shard.number, shard.drain_at)
        elif isinstance(reply, LogFull):
            self.health.log_full(shard.number)
            if not shard.is_full:
                log.error(
                    "log_full shard=%d log_bytes=%d fix=is a scheduler running?",
                    *(shard.number, reply.log_bytes),
                )
            shard.is_full = True
            shard.drain_at = now + LOG_FULL_RETRY_S

    def _count(self, shard: _Shard, batch: Drained) -> None:
        counts, is_by_count = shard.counts, batch.trigger == TRIGGER_COUNT
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

    async def _wait_for_wakeups(self, client: Client, shards: list[_Shard]) -> None:
        """Block on the wake-up lists; the list that was popped names the shard to drain."""
        keys = self._session.keys
        by_key: dict[bytes | str, _Shard] = {
            keys[shard.number].ready.encode(): shard for shard in shards
        }
        while True:
            began = clock.now()
            try:
                woken = await client.blpop(list(by_key), timeout=WAKE_TIMEOUT_S)
                self.health.wakes()
            except ResponseError as error:
                # Without it everything works, but late: that must be told.
                if isinstance(error, NoPermissionError) or "unknown command" in str(error):
                    self.health.wake_refused(str(error))
                if "WRONGTYPE" in str(error):
                    names = ", ".join(keys[shard.number].ready for shard in shards)
                    self.health.failed(began, str(DamagedError(names, "no list")), WAKE_UPS)
                await asyncio.sleep(WAKE_RETRY_S)
                continue
            except (RedisError, OSError):
                # The polls meet the same error, log it and back off.
                await asyncio.sleep(LOG_FULL_RETRY_S)
                continue
            self.health.succeeded(WAKE_UPS)
            if woken is not None:
                by_key[woken[0]].is_woken = True
                by_key[woken[0]].wake.set()
                # The drain goes to the server before the next pop.
                await asyncio.sleep(0)
