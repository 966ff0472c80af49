"""The statistics of a replica."""

from __future__ import annotations

from dataclasses import dataclass

from broker.model import Health, Status
from broker.stats.base import Statistics


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
        chunks_compressed: chunks; counter, grows with each compressed chunk that is opened, from
            the channel or from the log, self-checks included.
        bytes_compressed: bytes; counter, grows by the size of its compressed part.
        bytes_uncompressed: bytes; counter, grows by the size of what that part held.
        packets: packets; counter, grows with each packet of the subscription: batches, heartbeats
            and notices, but not bulk chunks.
        packets_unreadable: packets; counter, grows with each packet that cannot be read or is of
            another shard. A part of `packets`.
        packets_foreign: packets; counter, grows with each packet on a channel of this namespace
            that is of another history than the server's, which is ignored. A part of `packets`.
        gaps: packets; counter, grows when a packet shows that one before it is missing.
        forks: packets; counter, grows when a packet contradicts the history that is held.
        cuts: reads; counter, grows when log or head show that the position held is not part of the
            history any more; the full state is loaded then.
        silences: times; counter, grows when nothing proved a shard current within the staleness
            bound.
        catch_ups: reads; counter, grows when a shard's log has been read up to its head.
        loads: loads; counter, grows when a load of a shard's full state begins, the first included.
        loads_altered: loads; counter, grows when what was loaded is not what schedulers wrote, in
            keys that can be read; `health` says so while it lasts. Loads of more than 20,000 keys
            of a shard are compared later, by a self-check.
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
        tables_damaged: tables; gauge, how many the replica does not show because a part of them in
            the full state cannot be read; one in two shards counts twice. `health` names them.
        status_changes_conflated: changes; counter, grows when slow readers of status changes do not
            get each one.
        values_unreadable: reads; counter, grows with each read that met a value which is not of our
            domain: `replica[key]` raises, the others leave that key out.
        unreadable: key, node if it is known, and fault of the last 5 such values; also in the log
            (`value_unreadable`, once a minute).
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
    chunks_compressed: int
    bytes_compressed: int
    bytes_uncompressed: int
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
    tables_damaged: int
    status_changes_conflated: int
    values_unreadable: int
    unreadable: tuple[str, ...]
