"""The counters of one shard of a replica. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ShardCounts:
    """Counters since the shard was made; `ReplicaStats` has fields of the same names.

    Only the shard changes them; what others find is one of its inputs.
    """

    batches_applied: int = 0
    chunks_skipped: int = 0
    bytes_received: int = 0
    packets: int = 0
    packets_unreadable: int = 0
    packets_foreign: int = 0
    loads: int = 0
    loads_altered: int = 0
    self_checks: int = 0
    self_checks_failed: int = 0
    self_checks_undecided: int = 0
    keys_repaired: int = 0
    full_state_altered: int = 0

    def add(self, other: ShardCounts) -> None:
        """Add the counters of another shard to these."""
        self.batches_applied += other.batches_applied
        self.chunks_skipped += other.chunks_skipped
        self.bytes_received += other.bytes_received
        self.packets += other.packets
        self.packets_unreadable += other.packets_unreadable
        self.packets_foreign += other.packets_foreign
        self.loads += other.loads
        self.loads_altered += other.loads_altered
        self.self_checks += other.self_checks
        self.self_checks_failed += other.self_checks_failed
        self.self_checks_undecided += other.self_checks_undecided
        self.keys_repaired += other.keys_repaired
        self.full_state_altered += other.full_state_altered
