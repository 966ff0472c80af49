"""What Redis holds of a namespace, as an inspector reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.stats.base import Statistics


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
        missing: elements; counter, grows when the queue has a chunk without its entry, an entry
            without its chunk, or neither: another program writes to these keys.
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
        pending_deltas: deltas; gauge, accepted since the node last had nothing pending; 0 if it has
            nothing pending.
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
