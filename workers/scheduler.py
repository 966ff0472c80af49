"""The scheduler: writes the full state at an interval. The only module that uses APScheduler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from broker.backend.session import Session
from broker.engine.log_reader import LogMovedError
from broker.errors import BackendError, BrokerError, ConnectError, DecodeError
from broker.protocol.state_bounds import StateBounds
from broker.runtime import clock
from broker.runtime.outage_log import OutageLog
from broker.runtime.tasks import cancel_and_wait
from broker.stats.workers import SchedulerShardStats, SchedulerStats
from workers.conditions import ConditionsWatch
from workers.dictionaries import DictionaryKeeper
from workers.health import GREEN, ScheduleHealth
from workers.loop import log_health_change, run_loop
from workers.snapshot import SnapshotWorker

log = logging.getLogger(__name__)

LEASE_TTL_S: Final = 9.0
RENEW_INTERVAL_S: Final = 3.0
PRESSURE_CHECK_INTERVAL_S: Final = 0.5
LAST_WRITE_TIMEOUT_S: Final = 0.3
LAST_RELEASE_TIMEOUT_S: Final = 0.2
MAX_INTERVALS_BETWEEN_WRITES: Final = 2.0


@dataclass(slots=True)
class _Counts:
    """What was written of one shard's full state; `SchedulerShardStats` documents each."""

    snapshots: int = 0
    sets: int = 0
    deletes: int = 0
    errors: int = 0


class Scheduler:
    """Writes the full state of every shard at an interval, while it holds their leases.

    Any number may run; the lease of a shard lets one of them write. A standby takes over when the
    lease expires (within about 9 s), or at once when the holder shuts down.

    Args:
        session: connected, namespace created or joined.
        name: of this scheduler, unique; stored in the lease.
        interval: seconds, `global_data_update_interval`.
        log_retention: seconds for which log entries are kept after a snapshot contains them.
        log_limit: bytes, the limit of the log of one shard.
        bounds: of the state of one shard.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        interval: float,
        log_retention: float,
        log_limit: int,
        bounds: StateBounds | None = None,
    ) -> None:
        self.name = name
        self._session = session
        self._interval = interval
        self._shards = [
            SnapshotWorker(
                session,
                shard,
                name,
                lease_ttl=LEASE_TTL_S,
                log_retention=log_retention,
                log_limit=log_limit,
                bounds=bounds,
            )
            for shard in range(len(session.keys))
        ]
        self._counts = [_Counts() for _ in self._shards]
        self._jobs_failed = 0
        self._jobs_missed = 0
        self.health = ScheduleHealth(interval, RENEW_INTERVAL_S, clock.now())
        self.conditions = ConditionsWatch(session, name)
        self.dictionaries = DictionaryKeeper(session, name, lambda at: self._shards[at].fence)
        self.reason = GREEN
        self._writing = OutageLog(log, "snapshot_failed")
        self._leasing = OutageLog(log, "lease_failed")
        self._wake = asyncio.Event()
        self._is_writing = False
        self._write_due = False
        self._write_deadline = math.inf
        self._renew_due = False
        self._pressure_check_due = False

    def stats(self) -> SchedulerStats:
        """Return what this scheduler did since it started; docs/statistics.md explains it."""
        shards = tuple(
            SchedulerShardStats(
                shard=one.shard,
                snapshots=counts.snapshots,
                sets=counts.sets,
                deletes=counts.deletes,
                errors=counts.errors,
                unreadable=len(one.unreadable_fields),
            )
            for one, counts in zip(self._shards, self._counts, strict=True)
        )
        return SchedulerStats(
            worker=self.name,
            reason=self.reason,
            snapshots=sum(one.snapshots for one in shards),
            sets=sum(one.sets for one in shards),
            deletes=sum(one.deletes for one in shards),
            errors=sum(one.errors for one in shards) + self._jobs_failed,
            jobs_failed=self._jobs_failed,
            missed=self._jobs_missed,
            keys_evicted=self.conditions.evicted,
            unreadable=sum(one.unreadable for one in shards),
            shards=shards,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until stopped; finish the write in progress, then write all shards once more."""
        scheduler = AsyncIOScheduler(
            timezone=UTC,
            # Run a late job, run missed jobs once, and never two at a time.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        scheduler.add_listener(self._missed, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        scheduler.add_listener(self._failed, EVENT_JOB_ERROR)
        # Write at once: a scheduler that takes over must not wait for an interval.
        soon = datetime.now(UTC) + timedelta(seconds=0.05)
        # The jobs only set flags: APScheduler would cancel, and log, jobs that run at shutdown.
        scheduler.add_job(
            self._request_write,
            IntervalTrigger(seconds=self._interval),
            next_run_time=soon,
            id="snapshot",
        )
        scheduler.add_job(
            self._request_renew, IntervalTrigger(seconds=RENEW_INTERVAL_S), id="lease"
        )
        scheduler.add_job(
            self._request_pressure_check,
            IntervalTrigger(seconds=PRESSURE_CHECK_INTERVAL_S),
            id="pressure",
        )
        self._write_deadline = clock.now() + self._interval * MAX_INTERVALS_BETWEEN_WRITES
        scheduler.start()
        watching = asyncio.create_task(
            self.conditions.run(self._note_condition), name="server conditions"
        )
        training = asyncio.create_task(self.dictionaries.run(), name="dictionaries")
        try:
            await run_loop(self.name, self._poll, self._wake, stop)
        finally:
            scheduler.shutdown(wait=False)
            await cancel_and_wait([watching, training])
            # A write that was cancelled would not finish now either.
            if not self._is_writing:
                await self._within(LAST_WRITE_TIMEOUT_S, self.write_all)
            await self._within(LAST_RELEASE_TIMEOUT_S, self._release_all)

    @staticmethod
    async def _within(seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await work()

    async def _request_write(self) -> None:
        self._write_due = True
        self._wake.set()

    async def _request_renew(self) -> None:
        self._renew_due = True
        self._wake.set()
        # Also while a write blocks.
        self._update_health()

    def _note_condition(self, fault: str) -> None:
        if fault != self.health.condition:
            self.health.condition = fault
            self._update_health()
            # It publishes the verdict.
            self._renew_due = True
            self._wake.set()

    async def _request_pressure_check(self) -> None:
        self._pressure_check_due = True
        self._wake.set()

    async def _poll(self) -> float:
        """Do what is due; a job ends the sleep."""
        if self._write_due or clock.now() >= self._write_deadline:
            self._write_due = False
            # APScheduler uses the wall clock, which may be set back.
            self._write_deadline = clock.now() + self._interval * MAX_INTERVALS_BETWEEN_WRITES
            await self.write_all()
        elif self._renew_due:
            self._renew_due = False
            await self.renew_all()
        elif self._pressure_check_due:
            self._pressure_check_due = False
            # A log that is full before the interval ends would stop the writers.
            self._write_due |= await self._is_log_half_full()
        if self._write_due or self._renew_due:
            return 0.0
        return max(0.0, self._write_deadline - clock.now())

    async def write_all(self) -> None:
        """Update the full state of every shard whose lease this scheduler holds or can acquire."""
        self._is_writing = True
        for shard, counts in zip(self._shards, self._counts, strict=True):
            began = clock.now()
            try:
                written = await shard.write_once()
                await shard.compare_with_bounds()
            except (BrokerError, MemoryError) as error:
                counts.errors += 1
                text = str(error) or "out of memory: the worker holds all tables of its shards"
                if isinstance(error, DecodeError | LogMovedError):
                    text += "; if it stays, run `statebroker repair`"
                self._writing.failed(text, shard=shard.shard)
                self.health.failed(shard.shard, text)
                if isinstance(error, ConnectError):
                    self.health.not_renewed(shard.shard, began, text)
                continue
            self._writing.ended(shard.shard)
            self.health.wrote(shard.shard, clock.now(), is_held=bool(shard.fence))
            self.health.unreadable(shard.shard, shard.unreadable_fields.text())
            if written is not None:
                counts.snapshots += 1
                counts.sets += written.sets
                counts.deletes += written.deletes
        self._is_writing = False
        self._update_health()

    async def _is_log_half_full(self) -> bool:
        """Whether a log is more than half full, in a shard whose lease this scheduler holds."""
        for shard in self._shards:
            with contextlib.suppress(BackendError):
                if shard.fence and await shard.is_log_half_full():
                    return True
        return False

    async def renew_all(self) -> None:
        """Renew the leases, and acquire those that are free."""
        # At once: a server that is away must not delay the leases on others.
        await asyncio.gather(*map(self._renew, self._shards))
        self._update_health()

    async def _renew(self, shard: SnapshotWorker) -> None:
        began = clock.now()
        try:
            is_held = await shard.renew()
        except BrokerError as error:
            self._leasing.failed(error, shard=shard.shard)
            self.health.not_renewed(shard.shard, began, str(error))
        else:
            self._leasing.ended(shard.shard)
            self.health.renewed(shard.shard, clock.now(), is_held=is_held)

    def _update_health(self) -> None:
        """Update the health; the next renewals publish it."""
        for shard in self._shards:
            self.health.progressed(shard.shard, shard.committed_at)
        self.reason = log_health_change(self.name, self.reason, self.health.verdict(clock.now()))
        for shard in self._shards:
            shard.reason = self.reason

    async def _release_all(self) -> None:
        for shard in self._shards:
            with contextlib.suppress(BrokerError):
                await shard.release()

    def _missed(self, event: object) -> None:
        self._jobs_missed += 1
        log.warning("job_missed event=%s", event)

    def _failed(self, event: object) -> None:
        self._jobs_failed += 1
        log.error("job_failed error=%s", getattr(event, "exception", event))
