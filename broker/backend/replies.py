"""Arguments and replies of the commands, as frozen values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from broker.protocol.constants import NO_ID
from broker.protocol.names import ShardKeys


@dataclass(frozen=True, slots=True)
class Opened:
    """The node name was acquired.

    Attributes:
        incarnation: number of this process.
        epoch: of the shard.
        max_age_ms: age threshold of the namespace.
        max_count: count threshold of the namespace.
        full: 1 if the shard's state is above a bound, else 0.
    """

    incarnation: int
    epoch: bytes
    max_age_ms: int
    max_count: int
    full: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """Redis has accepted the chunk.

    Attributes:
        append: the append number to wait for; a later one if the chunk was a duplicate.
        epoch: the shard's epoch.
        max_age_ms: age threshold of this node, or else of the namespace.
        max_count: count threshold, likewise.
        is_full: whether the shard's state is above a bound.
        duplicate: whether Redis had accepted it before.
    """

    append: int
    epoch: bytes
    max_age_ms: int
    max_count: int
    is_full: bool
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What a server has accepted of a node in one shard, as the node remembers it.

    Attributes:
        keys: the shard.
        incarnation: of the node.
        number: all chunks up to this one were accepted.
    """

    keys: ShardKeys
    incarnation: int
    number: int


@dataclass(frozen=True, slots=True)
class Confirmed:
    """How far the claimed chunks have been replicated or written to disk.

    Attributes:
        is_held: whether the server itself holds every claimed chunk; if not, the rest is void.
        local: whether they are on the disk of the server; false if that was not asked.
        replicas: how many replicas have them in memory, or on disk if that was asked.
    """

    is_held: bool
    local: bool
    replicas: int


@dataclass(frozen=True, slots=True)
class Missing:
    """Redis lacks the chunks of this incarnation from `number` on; it has `deltas` deltas of it."""

    number: int
    deltas: int


@dataclass(frozen=True, slots=True)
class Busy:
    """The shard has reached its limit of pending bytes, or the node its share; try again later.

    Attributes:
        pending_bytes: of the shard.
        own_bytes: those of this node that count for its share.
    """

    pending_bytes: int
    own_bytes: int

    def trouble(self, shard: int, size: int, limit: int) -> str:
        """Return why a chunk of this size waits, for the errors of callers that wait with it."""
        is_share = self.pending_bytes + size <= limit
        return (
            f"{self.pending_bytes} bytes are pending in shard {shard}, the limit is {limit}"
            + (f", and {self.own_bytes} of them are this node's share" if is_share else "")
            + "; are flush workers and a scheduler running?"
        )


@dataclass(frozen=True, slots=True)
class NoDictionary:
    """The shard lacks the dictionary that the chunk needs; send it without."""


@dataclass(frozen=True, slots=True)
class Drained:
    """A batch was published.

    Attributes:
        offset: of the batch.
        trigger: what made it due, 1 count or 2 age.
        deltas: number of deltas, as its producers reported.
        chunks: number of chunks.
        size: bytes.
        oldest_ms: how long its oldest chunk had been pending.
        next_ms: milliseconds until the next batch is due; 0 now, -1 nothing is pending.
        missing: elements of the queue that were neither a chunk before its entry nor an entry.
    """

    offset: int
    trigger: int
    deltas: int
    chunks: int
    size: int
    oldest_ms: int
    next_ms: int
    missing: int


@dataclass(frozen=True, slots=True)
class NotDue:
    """Nothing was published; the next batch is due in `next_ms` (-1: nothing is pending)."""

    next_ms: int


@dataclass(frozen=True, slots=True)
class LogFull:
    """Nothing was done: the log is full, because the scheduler does not keep up."""

    log_bytes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a shard's full state.

    Attributes:
        holder: the scheduler's name.
        fence: fencing number; 0 if the lease is not held.
        ttl_ms: how long it lasts without renewal; every page renews it.
        mark: 8 bytes that the last step of the full state being written left on the server.
    """

    holder: str
    fence: int
    ttl_ms: int
    mark: bytes

    def after_page(self) -> Lease:
        """Return it with the mark that a page leaves: a server that lost the page lacks it."""
        mark = hashlib.sha1(self.mark).digest()[: len(NO_ID)]  # noqa: S324 - what Lua has
        return replace(self, mark=mark)


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """Limits of a batch and of the log.

    Attributes:
        batch_bytes: bytes of chunks in a batch; a larger chunk gets a batch of its own.
        batch_chunks: chunks in a batch; at most 4,096.
        log_bytes: bytes of the log; when it is full nothing is drained.
    """

    batch_bytes: int = 1 << 20
    batch_chunks: int = 4096
    log_bytes: int = 256 << 20
