"""What is known about the running demo at one moment; the board and the plain lines show it."""

from collections import deque
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any

from broker.stats import NamespaceStatus

RATES_OVER_S = 3.0
SECONDS_A_MINUTE = 60
WORKER_GONE_MS = 5_000


@dataclass(slots=True)
class Totals:
    """The sums over all shards, as Redis counts them."""

    accepted: int = 0
    published: int = 0
    pending: int = 0
    pending_ms: int | None = None
    offset: int = 0
    batches: int = 0
    by_count: int = 0
    by_age: int = 0
    bytes_published: int = 0
    state_keys: int = 0
    log_entries: int = 0
    snapshot_age_ms: int | None = None
    is_snapshot_current: bool = False
    workers_seen: int = 0
    lease_holder: str = ""

    @classmethod
    def of(cls, status: NamespaceStatus) -> "Totals":
        """Add up what an inspector reports."""
        shards = status.shards
        waits = [shard.pending_ms for shard in shards if shard.pending_ms is not None]
        ages = [shard.snapshot_age_ms for shard in shards if shard.snapshot_age_ms is not None]

        def total(name: str) -> int:
            return sum(getattr(shard, name) for shard in shards)

        return cls(
            accepted=total("accepted"),
            published=total("published"),
            pending=total("pending_deltas"),
            pending_ms=max(waits, default=None),
            offset=total("offset"),
            batches=total("batches"),
            by_count=total("by_count"),
            by_age=total("by_age"),
            bytes_published=total("bytes_published"),
            state_keys=total("state_keys"),
            log_entries=total("log_entries"),
            snapshot_age_ms=max(ages, default=None),
            is_snapshot_current=all(s.snapshot_offset == s.offset for s in shards),
            workers_seen=sum(w.seen_ms < WORKER_GONE_MS for w in status.workers),
            lease_holder=next((s.lease for s in shards if s.lease), ""),
        )


@dataclass(slots=True)
class Rates:
    """Growth of the totals per second, over the last seconds."""

    deltas: float = 0.0
    batches: float = 0.0
    bytes_published: float = 0.0


@dataclass(slots=True)
class Node:
    """Progress of one producer."""

    total: int
    planned_deltas: int
    done: int = 0
    deltas: int = 0
    minute: int = 0


@dataclass(slots=True)
class View:
    """Everything that the board shows; the orchestrator keeps it current."""

    flights: int
    first_minute: int
    last_minute: int
    speed: float
    nodes: dict[str, Node] = field(default_factory=dict)
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    airports: dict[str, dict[str, int]] = field(default_factory=dict)
    moves: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float | None = None
    samples: deque[tuple[float, Totals]] = field(default_factory=deque)

    def pace(self) -> str:
        """Return what is replayed and how fast, as text."""
        speed = "as fast as possible" if self.speed == inf else f"{self.speed:,.0f} times real time"
        return f"{self.flights:,} real flights, {speed}"

    def add_totals(self, totals: Totals) -> None:
        """Set new totals, and keep those of the last seconds for the rates."""
        now = monotonic()
        self.totals = totals
        self.samples.append((now, totals))
        while self.samples[0][0] < now - RATES_OVER_S:
            self.samples.popleft()

    def totals_age(self) -> float:
        """Return the seconds since Redis reported the totals; 0 before."""
        return monotonic() - self.samples[-1][0] if self.samples else 0.0

    def rates(self) -> Rates:
        """Return the growth between the oldest and the newest sample."""
        if len(self.samples) < 2:  # noqa: PLR2004 - a rate needs two points
            return Rates()
        (then, old), (now, new) = self.samples[0], self.samples[-1]
        seconds = now - then
        return Rates(
            deltas=(new.published - old.published) / seconds,
            batches=(new.batches - old.batches) / seconds,
            bytes_published=(new.bytes_published - old.bytes_published) / seconds,
        )

    def behind(self, replica: str) -> int:
        """Return how many published batches a replica has not applied yet."""
        offset: int = self.replicas[replica]["stats"]["offset"]
        return max(0, self.totals.offset - offset)

    def applied(self) -> int:
        """Return how many deltas the replicas have applied together."""
        return sum(replica["stats"]["deltas_applied"] for replica in self.replicas.values())

    def elapsed(self) -> float:
        """Return the seconds since the replay began, 0 before."""
        return 0.0 if self.started is None else monotonic() - self.started

    def fraction(self) -> float:
        """Return how much of all movements has been written, 0 to 1."""
        if not self.nodes:
            return 0.0
        total = sum(node.total for node in self.nodes.values())
        return sum(node.done for node in self.nodes.values()) / total if total else 1.0

    def minute(self) -> int:
        """Return the simulated time of the slowest node that is still writing."""
        if not self.nodes:
            return self.first_minute
        running = [node.minute for node in self.nodes.values() if node.done < node.total]
        return max(self.first_minute, min(running, default=self.last_minute))

    def remaining(self) -> float:
        """Return an estimate of the seconds that the replay still needs."""
        if self.speed == inf:
            return self.elapsed() * (1 / self.fraction() - 1) if self.fraction() else 0.0
        return (self.last_minute - self.minute()) * SECONDS_A_MINUTE / self.speed
