"""What `status --check` finds wrong, role by role: numbers in, sentences out, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from broker.backend.damage import Damage
from broker.config import default_node, unfit
from broker.model import Status
from broker.stats.namespace import ShardStats, WorkerStatus

WORKERS: Final = ("flush", "schedule")
PRODUCER: Final = "producer"
SUBSCRIBER: Final = "subscriber"
ROLES: Final = (*WORKERS, PRODUCER, SUBSCRIBER)
LIVE_TIMEOUT_S: Final = 5.0
PENDING_BOUND_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Joined:
    """How a replica joined.

    Attributes:
        status: its last status.
        join_s: seconds until it was live; None after a timeout.
        lag_s: its lag in seconds; None after a timeout.
        unreadable: keys that it lacks, for their fields of the full state cannot be read.
        doubts: why its content may not be right though it is live.
        bytes_compressed: of the compressed chunks in the log that it read.
        bytes_uncompressed: of what they held.
    """

    status: str
    join_s: float | None = None
    lag_s: float | None = None
    unreadable: int = 0
    doubts: tuple[str, ...] = ()
    bytes_compressed: int = 0
    bytes_uncompressed: int = 0


def this_host() -> str:
    """Return the host as the names of its workers spell it."""
    return default_node().rsplit("-", 2)[0]


def host_of(worker: WorkerStatus) -> str:
    """Return the host in a worker's name; "" if it has none."""
    name = worker.worker.removeprefix(f"{worker.role}-")
    return name.rsplit("-", 2)[0] if name.count("-") > 1 else ""


def worker_faults(
    workers: Sequence[WorkerStatus], roles: Sequence[str] = WORKERS, host: str = ""
) -> Iterator[str]:
    """Yield what is wrong with the workers of these roles, one sentence each.

    Args:
        workers: as `Inspector.status` reports them.
        roles: those of `WORKERS` that have to run.
        host: only workers of this host count; "" for all.
    """
    alive = [
        one
        for one in workers
        if one.health != "gone" and one.role in roles and host in ("", host_of(one))
    ]
    missing = [role for role in roles if role not in {one.role for one in alive}]
    if missing:
        where = f" on {host}" if host else ""
        start = "serve" if len(missing) > 1 else f"serve` or `statebroker {missing[0]}"
        yield f"no live {', '.join(missing)} worker{where}; start `statebroker {start}`"
    for one in alive:
        if one.health == "red":
            yield f"{one.worker} is red: {one.reason}"


def away_faults(shards: Sequence[ShardStats]) -> Iterator[str]:
    """Yield one sentence for each shard whose server cannot be read."""
    for one in shards:
        if one.away:
            yield f"shard {one.shard} is away: {one.away}"


def pending_faults(shards: Sequence[ShardStats]) -> Iterator[str]:
    """Yield one sentence for each shard where accepted deltas wait too long to be published."""
    for one in shards:
        if (one.pending_ms or 0) > PENDING_BOUND_MS:
            yield (
                f"shard {one.shard}: {one.pending_deltas:,} deltas are accepted and not published, "
                f"the oldest for {one.pending_ms or 0:,} ms, over {PENDING_BOUND_MS:,}; "
                "are a flush worker and a scheduler running?"
            )


def settings_faults(shards: Sequence[ShardStats], staleness_bound: float) -> list[str]:
    """Return how settings of the running workers break a staleness bound, each once."""
    found = [
        fault
        for one in shards
        for fault in unfit(
            (one.heartbeat_ms or 0) / 1000, (one.max_age_ms or 0) / 1000, staleness_bound
        )
    ]
    return [f"the workers' settings do not fit: {fault}" for fault in dict.fromkeys(found)]


def replica_faults(joined: Joined) -> Iterator[str]:
    """Yield a sentence if a replica that joined did not become live."""
    if joined.status != Status.LIVE:
        yield f"a replica that joined was not live after {LIVE_TIMEOUT_S:g} s but {joined.status}"


def faults(
    shards: Sequence[ShardStats],
    workers: Sequence[WorkerStatus],
    joined: Joined | None,
    damaged: Sequence[Damage] = (),
    *,
    roles: Sequence[str] = (),
    host: str = "",
) -> list[str]:
    """Return why a role cannot do its work, one sentence each; empty if all can.

    Args:
        shards: as `Inspector.status` reports them.
        workers: the same.
        joined: how a replica joined; None: not tried.
        damaged: what cannot be read.
        roles: some of `ROLES`; none of them: whether data flows at all.
        host: only workers of this host count; "" for all.
    """
    found: list[str] = []
    if not roles or PRODUCER in roles:
        found += away_faults(shards)
    if PRODUCER in roles:
        found += pending_faults(shards)
    needed = [role for role in WORKERS if role in roles] if roles else WORKERS
    found += worker_faults(workers, needed, host)
    found += [f"damaged: {one}; run `statebroker repair`" for one in damaged]
    if joined is not None:
        found += replica_faults(joined)
        if not roles:
            found += (f"a replica that joined is {doubt}" for doubt in joined.doubts)
    return found
