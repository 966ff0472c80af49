"""The statistics of flush workers and schedulers, in their own process."""

from __future__ import annotations

from dataclasses import dataclass

from broker.stats.base import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushShardStats(Statistics):
    """Counters of one flush worker for one shard since it started.

    `batches = by_count + by_age`.

    Attributes:
        shard: number of the shard.
        batches: batches; counter, grows with each batch that this worker published.
        deltas: deltas; counter, grows by the deltas of each such batch.
        bytes: bytes; counter, grows by the size of each such batch.
        by_count: batches; counter, grows when a batch was due because enough deltas were pending.
        by_age: batches; counter, grows when a batch was due because a delta waited long enough.
    """

    shard: int
    batches: int
    deltas: int
    bytes: int
    by_count: int
    by_age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushWorkerStats(Statistics):
    """Counters of one flush worker since it started.

    Each counter is the sum over `shards`.

    Attributes:
        worker: name of the worker.
        reason: gauge, why the worker is not healthy; "" if it is.
        batches: batches; counter, as in each shard.
        deltas: deltas; counter, as in each shard.
        bytes: bytes; counter, as in each shard.
        by_count: batches; counter, as in each shard.
        by_age: batches; counter, as in each shard.
        keys_evicted: keys; counter, grows with each key that Redis evicted while this worker
            looked, of whatever namespace. None may be: see `reason`.
        shards: the same for each shard, in the order of the shards.
    """

    worker: str
    reason: str
    batches: int
    deltas: int
    bytes: int
    by_count: int
    by_age: int
    keys_evicted: int
    shards: tuple[FlushShardStats, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerShardStats(Statistics):
    """Counters of one scheduler for one shard's full state since it started.

    Attributes:
        shard: number of the shard.
        snapshots: full states; counter, grows with each one that this scheduler committed.
        sets: fields; counter, grows by the fields that each of them set.
        deletes: fields; counter, grows by the fields that each of them deleted.
        errors: attempts; counter, grows when writing the full state failed.
        unreadable: fields; gauge, of keys and tables that cannot be read, as far as this scheduler
            had to read them.
    """

    shard: int
    snapshots: int
    sets: int
    deletes: int
    errors: int
    unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStats(Statistics):
    """Counters of one scheduler since it started.

    `snapshots`, `sets` and `deletes` are the sums over `shards`; `errors` is that sum and
    `jobs_failed`.

    Attributes:
        worker: name of the scheduler.
        reason: gauge, why the scheduler is not healthy; "" if it is.
        snapshots: full states; counter, as in each shard.
        sets: fields; counter, as in each shard.
        deletes: fields; counter, as in each shard.
        errors: errors; counter, grows when writing a shard's full state or a job failed.
        jobs_failed: jobs; counter, grows when a job of the schedule raised. A part of `errors`.
        missed: jobs; counter, grows when a job of the schedule could not start in time.
        keys_evicted: keys; counter, grows with each key that Redis evicted while this worker
            looked, of whatever namespace. None may be: see `reason`.
        unreadable: fields; gauge, as in each shard.
        shards: the same for each shard, in the order of the shards.
    """

    worker: str
    reason: str
    snapshots: int
    sets: int
    deletes: int
    errors: int
    jobs_failed: int
    missed: int
    keys_evicted: int
    unreadable: int
    shards: tuple[SchedulerShardStats, ...]
