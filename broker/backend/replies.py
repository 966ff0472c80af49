"""What the commands are given and answer, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol.names import ShardKeys


@dataclass(frozen=True, slots=True)
class Opened:
    """The node name is ours.

    Attributes:
        incarnation: our number.
        epoch: of the shard.
        max_age_ms: the namespace's age threshold.
        max_count: likewise the count threshold.
    """

    incarnation: int
    epoch: bytes
    max_age_ms: int
    max_count: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Redis holds the chunk.

    Attributes:
        append: the append number to wait for; a later one if the chunk was a duplicate.
        epoch: the shard's epoch.
        max_age_ms: the namespace's (or this node's own) age threshold.
        max_count: likewise the count threshold.
        duplicate: whether Redis had it already.
    """

    append: int
    epoch: bytes
    max_age_ms: int
    max_count: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """What a server has accepted of a node in one shard, as the node knows it.

    Attributes:
        keys: the shard.
        incarnation: of the node.
        number: up to which every chunk was accepted.
    """

    keys: ShardKeys
    incarnation: int
    number: int


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Where it is.

    Attributes:
        is_held: whether the server itself holds every chunk claimed; else the rest says nothing.
        local: whether it is on the server's own disk; false if nobody asked.
        replicas: how many replicas have it, or (asked for disks) have it on theirs.
    """

    is_held: bool
    local: bool
    replicas: int


@dataclass(frozen=True, slots=True)
class Missing:
    """Redis has nothing of this incarnation from chunk `number` on; `deltas` of it are there."""

    number: int
    deltas: int


@dataclass(frozen=True, slots=True)
class Busy:
    """The shard's pending bytes are at their limit; try again later."""

    pending_bytes: int


@dataclass(frozen=True, slots=True)
class Drained:
    """A batch was published.

    Attributes:
        offset: its offset.
        trigger: 1 count, 2 age.
        deltas: as its producers said.
        chunks: how many it holds.
        size: bytes.
        oldest_ms: how long its oldest chunk had been pending.
        next_ms: until the next is due; 0 now, -1 nothing is pending.
        missing: chunks that the order list promised and the pending lists did not have.
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
    """Nothing was published; something will be due in `next_ms` (-1: nothing is pending)."""

    next_ms: int


@dataclass(frozen=True, slots=True)
class Undeclared:
    """Nothing was done: these nodes' pending lists have to be declared."""

    nodes: list[str]


@dataclass(frozen=True, slots=True)
class LogFull:
    """Nothing was done: the log is at its limit, the scheduler does not keep up."""

    log_bytes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a shard's full state.

    Attributes:
        holder: the scheduler's name.
        fence: fencing number; 0 is no right.
        ttl_ms: how long it lasts without renewal; every page renews it.
        mark: 8 random bytes that no other write has; of the one full state written under it.
    """

    holder: str
    fence: int
    ttl_ms: int
    mark: bytes


@dataclass(frozen=True, slots=True)
class StateSums:
    """One page of the full-state hash, summed up.

    Attributes:
        cursor: of the next page; "0": that was the last.
        fields: how many were summed up.
        sums: key range -> sum of its entry hashes, not yet wrapped to 64 bits.
    """

    cursor: str
    fields: int
    sums: dict[int, int]


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """How large a batch and the log may get.

    Attributes:
        batch_bytes: bytes of chunks in a batch; a single larger chunk still goes alone.
        batch_chunks: chunks in a batch; at most 4,096.
        log_bytes: bytes of the log, above which nothing is drained.
    """

    batch_bytes: int = 1 << 20
    batch_chunks: int = 4096
    log_bytes: int = 256 << 20
