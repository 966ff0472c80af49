"""Typed statistics of producers, replicas, workers, shards and nodes, as frozen values.

Counters grow over the life of the object that counts (or of the namespace, where Redis counts) and
never shrink. Gauges are values of the moment at which they were read. Each class's docstring
documents every field; docs/statistics.md holds the same tables.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any
from warnings import warn

from broker.model import Health, Status


class Statistics:
    """The base of all statistics: `as_dict()`, and until 1.0 the deprecated dict access."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that `json.dumps` takes, nested statistics as dicts too."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        """Return one field. Deprecated: read the attribute, or `as_dict()`."""
        return self._deprecated()[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a field. Deprecated: use `as_dict()`."""
        return name in self._deprecated()

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the fields. Deprecated: use `as_dict()`."""
        return iter(self._deprecated())

    def get(self, name: str, default: Any = None) -> Any:
        """Return one field, or the default. Deprecated: read the attribute, or `as_dict()`."""
        return self._deprecated().get(name, default)

    def items(self) -> ItemsView[str, Any]:
        """Return names and values of the fields. Deprecated: use `as_dict()`."""
        return self._deprecated().items()

    def _deprecated(self) -> dict[str, Any]:
        what = type(self).__name__
        warn(
            f"{what} is no dict any more; read its attributes, or {what}.as_dict(); dict access "
            "goes with version 1.0",
            DeprecationWarning,
            stacklevel=3,
        )
        return self.as_dict()


def _plain(value: Any) -> Any:
    """Return a field's value as `as_dict()` shows it."""
    if isinstance(value, Statistics):
        return value.as_dict()
    if isinstance(value, Health):
        return {"ok": value.ok, "reasons": value.reasons}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Enum) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerStats(Statistics):
    """Counters and gauges of one producer since it was opened; over all shards.

    `buffered = accepted + conflated + pending` holds in each value that `stats()` returns. Lost
    deltas count as accepted.

    Attributes:
        buffered: deltas; counter, grows when a call takes a delta into the local buffer.
        accepted: deltas; counter, grows when Redis accepts the chunk that holds them.
        conflated: deltas; counter, grows when a delta is left out of its chunk because a newer set
            or delete of its key overwrites it. 0 unless the producer conflates.
        pending: deltas; gauge, buffered but neither accepted nor conflated yet.
        lost: deltas; counter, grows when Redis lost accepted chunks that the producer no longer
            keeps. `DataLostError` reports them.
        resent: deltas; counter, grows when accepted chunks that Redis lost are sent again.
        buffer_bytes: bytes; gauge, what the local buffer holds, chunks kept for resending included.
        chunks: chunks; counter, grows with each one that Redis accepts, repeated ones included.
        bytes: bytes; counter, grows by the size of each chunk that `chunks` counts.
        duplicates: chunks; counter, grows when Redis answers that it has a chunk already, as after
            a reply was lost. A part of `chunks`.
        retries: attempts; counter, grows when appending fails with an error and is tried again.
        busy: replies; counter, grows when Redis refuses a chunk because a shard's pending bytes are
            at the limit. It is sent again later.
    """

    buffered: int
    accepted: int
    conflated: int
    pending: int
    lost: int
    resent: int
    buffer_bytes: int
    chunks: int
    bytes: int
    duplicates: int
    retries: int
    busy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats(Statistics):
    """Counters and gauges of one replica since it was opened; over all shards.

    The deltas of all batches in `batches_applied` are `deltas_applied + deltas_superseded +
    deltas_refused + deltas_skipped`.

    Attributes:
        status: gauge, the status now; the worst shard decides.
        health: gauge, whether the replica is live, and if not since when, why, and what to do.
        status_changes: changes; counter, grows with each change of the status.
        keys: keys; gauge, how many the replica holds, without those of tables.
        lag_s: seconds; gauge, since the moment as of which it holds all that was accepted; inf
            before that.
        offset: batches; gauge, the sum of the shards' offsets.
        batches_applied: batches; counter, grows with each batch that is applied, from the channel
            or from the log.
        batches_duplicate: batches; counter, grows when a batch arrives that is held already.
        deltas_applied: deltas; counter, grows with each delta that took effect.
        deltas_superseded: deltas; counter, grows with each delta that the loaded full state
            contained already.
        deltas_refused: deltas; counter, grows with each increment of a value that is not a number,
            or beyond the 64-bit range.
        refused: key and node of the last such increments, 5 a shard; also in the log
            (`increments_refused`, once a minute).
        deltas_skipped: deltas; counter, grows with each delta in a chunk that cannot be read.
        chunks_skipped: chunks; counter, grows with each chunk that, as a whole or in its part for
            tables, cannot be read.
        bytes_received: bytes; counter, grows by each packet and bulk chunk of the subscription, not
            by reads of log and full state.
        packets: packets; counter, grows with each packet of the subscription: batches, heartbeats
            and notices, but not bulk chunks.
        packets_unreadable: packets; counter, grows with each packet that cannot be read or is of
            another shard. A part of `packets`.
        packets_foreign: packets; counter, grows with each packet of the same namespace in another
            database, which is ignored. A part of `packets`.
        gaps: packets; counter, grows when a packet shows that one before it is missing.
        forks: packets; counter, grows when a packet contradicts the history that is held.
        cuts: reads; counter, grows when log or head show that the position held is not part of the
            history any more; the full state is loaded then.
        silences: times; counter, grows when nothing proved a shard current within the staleness
            bound.
        catch_ups: reads; counter, grows when a shard's log has been read up to its head.
        loads: loads; counter, grows when a load of a shard's full state begins, the first included.
        loads_altered: loads; counter, grows when what was loaded is not what schedulers wrote, in
            keys that can be read; `health` says so while it lasts. Loads of more than 5,000 keys of
            a shard are compared later, by a self-check.
        reconnects: connections; counter, grows when a connection of the subscription breaks.
        changes_conflated: changes; counter, grows when slow readers of changes do not get each one.
        self_checks: checks; counter, grows when a background check of a shard finishes comparing.
        self_checks_failed: checks; counter, grows when such a comparison finds a difference; one in
            keys and one in tables are two.
        self_checks_undecided: checks; counter, grows when a background check could not be finished.
        keys_repaired: keys; counter, grows with each key that a background check corrected.
        full_state_altered: checks; counter, grows when a background check finds that the full-state
            hash was changed, but not by a scheduler.
        shards_uncompared: shards; gauge, how many were loaded, and not yet compared with what
            schedulers wrote.
        keys_damaged: keys; gauge, how many the replica lacks because their field of the full state
            cannot be read. `health` names them.
        status_changes_conflated: changes; counter, grows when slow readers of status changes do not
            get each one.
    """

    status: Status
    health: Health
    status_changes: int
    keys: int
    lag_s: float
    offset: int
    batches_applied: int
    batches_duplicate: int
    deltas_applied: int
    deltas_superseded: int
    deltas_refused: int
    refused: tuple[str, ...]
    deltas_skipped: int
    chunks_skipped: int
    bytes_received: int
    packets: int
    packets_unreadable: int
    packets_foreign: int
    gaps: int
    forks: int
    cuts: int
    silences: int
    catch_ups: int
    loads: int
    loads_altered: int
    reconnects: int
    changes_conflated: int
    self_checks: int
    self_checks_failed: int
    self_checks_undecided: int
    keys_repaired: int
    full_state_altered: int
    shards_uncompared: int
    keys_damaged: int
    status_changes_conflated: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo(Statistics):
    """The server of a namespace.

    Attributes:
        name: "redis" or "valkey".
        version: of the server, as it reports it.
        deployment: "single", "sentinel" or "cluster".
    """

    name: str
    version: str
    deployment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStats(Statistics):
    """Redis' counters and gauges of one shard, read in one step except `slot` and `held_by`.

    `accepted = published + pending_deltas` and `batches = by_count + by_age`. The counters grow
    over the life of the shard's history; they are 0 again after Redis lost it.

    Attributes:
        shard: number of the shard.
        epoch: identifier of the shard's history, 16 hex digits; "" before there is one.
        offset: batches; counter, the number of the last batch that was published.
        batch_id: identifier of that batch, 16 hex digits; "" before there is one.
        appends: chunks; counter, grows with each chunk that Redis accepted.
        covered: chunks; counter, the append number up to which everything is published.
        accepted: deltas; counter, grows when a chunk that holds them is accepted.
        published: deltas; counter, grows when a batch that holds them is published.
        pending_deltas: deltas; gauge, accepted and not published yet.
        pending_chunks: chunks; gauge, accepted and not published yet.
        pending_bytes: bytes; gauge, of chunks that are not published yet.
        batches: batches; counter, grows with each batch that is published.
        by_count: batches; counter, grows when a batch was due because enough deltas were pending.
        by_age: batches; counter, grows when a batch was due because a delta waited long enough.
        missing: chunks; counter, grows when the order list names a chunk that the pending lists
            lack: another program writes to these keys.
        dead: chunks; counter, grows with each unreadable chunk that a full state found.
        bytes_published: bytes; counter, grows by the size of each batch that is published.
        log_bytes: bytes; gauge, of the batches in the log.
        log_entries: batches; gauge, in the log.
        state_keys: keys; gauge, in the full-state hash.
        snapshot_offset: batches; counter, the offset up to which the full-state hash is complete.
        snapshot_age_ms: milliseconds; gauge, since that full state was committed; None before.
        pending_ms: milliseconds; gauge, since the oldest pending chunk was accepted; None if
            nothing is pending.
        last_packet_ms: milliseconds; gauge, since the last batch or heartbeat; None before.
        heartbeat_ms: milliseconds; gauge, the heartbeat interval of the running flush workers, the
            shortest of them; None if it is not known.
        max_age_ms: milliseconds; gauge, the namespace's `local_delta_max_age`; None if no worker
            set it.
        lease: name of the scheduler that holds the shard's lease; None if there is none.
        fence: tokens; counter, the last fencing number that was given out with the lease.
        slot: slot of the shard's keys; None but on a Cluster.
        held_by: address of the server that holds the shard now; None for a single server.
        away: why the shard's server cannot be read; the numbers are 0 then. "" if it can.
    """

    shard: int
    epoch: str
    offset: int
    batch_id: str
    appends: int
    covered: int
    accepted: int
    published: int
    pending_deltas: int
    pending_chunks: int
    pending_bytes: int
    batches: int
    by_count: int
    by_age: int
    missing: int
    dead: int
    bytes_published: int
    log_bytes: int
    log_entries: int
    state_keys: int
    snapshot_offset: int
    snapshot_age_ms: int | None
    pending_ms: int | None
    last_packet_ms: int | None
    heartbeat_ms: int | None
    max_age_ms: int | None
    lease: str | None
    fence: int
    slot: int | None
    held_by: str | None
    away: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict; `snap_offset` is `snapshot_offset` by its old name."""
        # Without arguments super() does not find a class that dataclass made again for its slots.
        return Statistics.as_dict(self) | {"snap_offset": self.snapshot_offset}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStats(Statistics):
    """Redis' counters and gauges of one node, over all shards.

    A node is a name under which producers write. The counters are those of the node's last
    producer.

    Attributes:
        node: name of the node.
        chunks: chunks; counter, grows with each chunk that Redis accepted.
        deltas: deltas; counter, grows by the deltas of each such chunk.
        pending_deltas: deltas; gauge, accepted and not published yet.
        idle_ms: ms; gauge, since `statebroker repair --forget-idle` noted the node with nothing
            pending, in all of its shards; None if it has written since, or was never noted.
    """

    node: str
    chunks: int
    deltas: int
    pending_deltas: int
    idle_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus(Statistics):
    """The last report in Redis of one flush worker or scheduler.

    Attributes:
        worker: name of the worker.
        role: "flush" or "schedule".
        seen_ms: milliseconds; gauge, since the worker's last report.
        health: gauge, "green", "red" with a reason, or "gone": no report for 10 s.
        reason: gauge, why it is red; "" if it is not.
    """

    worker: str
    role: str
    seen_ms: int
    health: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceStatus(Statistics):
    """Redis' counters and gauges of one namespace, its nodes and its workers.

    Attributes:
        namespace: its name.
        protocol: version of the protocol.
        server: which server it is on.
        shards: those of each shard, in the order of the shards.
        nodes: those of each node, sorted by name.
        workers: the last report of each current or recent worker, sorted by name.
    """

    namespace: str
    protocol: int
    server: ServerInfo
    shards: tuple[ShardStats, ...]
    nodes: tuple[NodeStats, ...]
    workers: tuple[WorkerStatus, ...]
