"""The statistics of a producer."""

from __future__ import annotations

from dataclasses import dataclass

from broker.stats.base import Statistics


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
        bytes_saved: bytes; counter, grows by how many more each such chunk would have without
            compression.
        duplicates: chunks; counter, grows when Redis answers that it has a chunk already, as after
            a reply was lost. A part of `chunks`.
        retries: attempts; counter, grows when appending fails with an error and is tried again.
        busy: replies; counter, grows when Redis refuses a chunk because a shard's pending bytes are
            at the limit, or this node's at its share. It is sent again later.
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
    bytes_saved: int
    duplicates: int
    retries: int
    busy: int
