"""The numbers of one shard that `status` shows, read from Redis at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.client import Pipeline
from redis.exceptions import NoPermissionError

from broker.backend.reads import at_one_moment
from broker.backend.stored import (
    INTAKE_HEAD,
    intake_head,
    node_name,
    node_record,
    number_or_none,
    queue_entry,
    worker_record,
)
from broker.backend.topology import Client
from broker.errors import DamagedError
from broker.protocol.names import ShardKeys
from broker.stats.namespace import NodeStats, ShardStats, WorkerStatus

# A running worker writes its record with each heartbeat (1 s) or lease renewal (3 s).
ALIVE_MS: Final = 10_000


def shard_away(number: int, slot: int | None, why: str) -> ShardStats:
    """Return the numbers of a shard whose server cannot be read: none.

    Args:
        number: of the shard.
        slot: of its keys; None unless on a Cluster.
        why: the error.
    """
    nothing = ShardReading(
        time=(0, 0),
        meta={},
        intake={},
        workers={},
        pending_elements=0,
        oldest_pending=None,
        log_entries=0,
        state_keys=0,
        lease=None,
        idle={},
    )
    return nothing.shard(number, slot=slot, held_by=None, away=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReading:
    """The replies, as Redis gave them.

    Attributes:
        time: the server's clock: seconds and microseconds.
        meta: the meta hash.
        intake: the intake hash: its head, and node -> its record.
        workers: worker -> its role, the time of its last record, and the reason why it is red.
        pending_elements: of the queue: chunks and their entries.
        oldest_pending: the first entry.
        log_entries: batches in the log.
        state_keys: fields of the full-state hash.
        lease: fencing number and holder; None if nobody holds it.
        idle: node -> when its record was noted as idle, and that record.
    """

    time: tuple[int, int]
    meta: Mapping[bytes, bytes]
    intake: Mapping[bytes, bytes]
    workers: Mapping[bytes, bytes]
    pending_elements: int
    oldest_pending: bytes | None
    log_entries: int
    state_keys: int
    lease: bytes | None
    idle: Mapping[bytes, bytes]

    @property
    def _now_ms(self) -> int:
        seconds, microseconds = self.time
        return seconds * 1000 + microseconds // 1000

    def _number(self, name: str) -> int:
        return number_or_none(self.meta.get(name.encode())) or 0

    def _hex(self, name: str) -> str:
        return self.meta.get(name.encode(), b"").hex()

    def _age_ms(self, name: str) -> int | None:
        at = number_or_none(self.meta.get(name.encode()))
        return None if at is None else self._now_ms - at

    def _pending_ms(self) -> int | None:
        entry = queue_entry(self.oldest_pending or b"")
        return max(0, self._now_ms - entry.accepted_ms) if entry else None

    def shard(
        self, number: int, *, slot: int | None, held_by: str | None, away: str = ""
    ) -> ShardStats:
        """Return the shard's numbers.

        Args:
            number: of the shard.
            slot: of its keys; None unless on a Cluster.
            held_by: address of the server that owns it; None for a single server.
            away: why it could not be read.
        """
        head, published = (
            intake_head(self.intake.get(INTAKE_HEAD.encode())),
            self._number("published"),
        )
        accepted = head.accepted if head else published
        by_count, by_age = self._number("by_count"), self._number("by_age")
        return ShardStats(
            shard=number,
            epoch=self._hex("epoch"),
            offset=self._number("offset"),
            batch_id=self._hex("id"),
            appends=head.appends if head else 0,
            covered=self._number("covered"),
            accepted=accepted,
            published=published,
            pending_deltas=accepted - published,
            pending_chunks=self.pending_elements // 2,
            pending_bytes=head.pending_bytes if head else 0,
            batches=by_count + by_age,
            by_count=by_count,
            by_age=by_age,
            missing=self._number("missing"),
            dead=self._number("dead"),
            bytes_published=self._number("bytes"),
            log_bytes=self._number("log_bytes"),
            log_entries=self.log_entries,
            state_keys=self.state_keys,
            snapshot_offset=self._number("snap_offset"),
            snapshot_age_ms=self._age_ms("snap_at"),
            pending_ms=self._pending_ms(),
            last_packet_ms=self._age_ms("published_at"),
            heartbeat_ms=number_or_none(self.meta.get(b"heartbeat")),
            max_age_ms=number_or_none(self.meta.get(b"max_age")),
            lease=self.lease.decode(errors="replace").partition(" ")[2] if self.lease else None,
            fence=self._number("fence"),
            slot=slot,
            held_by=held_by,
            away=away,
        )

    def nodes(self) -> list[NodeStats]:
        """Return what each node wrote to this shard; records that cannot be read are left out."""
        found = []
        head = intake_head(self.intake.get(INTAKE_HEAD.encode()))
        for name, record in self.intake.items():
            node = node_name(name)
            if node is None:
                continue
            try:
                one = node_record("", node, record)
            except DamagedError:
                continue
            pending = one.count if head is None or one.append > head.covered else 0
            found.append(
                NodeStats(
                    node=node,
                    chunks=one.number,
                    deltas=one.deltas,
                    pending_deltas=pending,
                    idle_ms=None if pending else self._idle_ms(name, record),
                )
            )
        return found

    def _idle_ms(self, name: bytes, record: bytes) -> int | None:
        noted_at, _, noted = self.idle.get(name, b"").partition(b" ")
        at = number_or_none(noted_at)
        # While its holder is asked, a mark is before the record.
        if at is None or not (record == noted or record.endswith(b" " + noted)):
            return None
        return max(0, self._now_ms - at)

    def worker_statuses(self) -> list[WorkerStatus]:
        """Return what each worker recorded last in this shard; unreadable records are left out."""
        found = []
        for name, record in self.workers.items():
            if (known := worker_record(record)) is None:
                continue
            role, seen_at, reason = known
            seen_ms = self._now_ms - seen_at
            # One from far ahead is of a clock that was set back, or invented.
            health = "gone" if abs(seen_ms) >= ALIVE_MS else "red" if reason else "green"
            found.append(
                WorkerStatus(
                    worker=name.decode(errors="replace"),
                    role=role,
                    seen_ms=seen_ms,
                    health=health,
                    reason=reason,
                )
            )
        return found


_EMPTY: Final[Mapping[str, Any]] = {
    "meta": {},
    "intake": {},
    "workers": {},
    "oldest_pending": None,
    "lease": None,
    "idle": {},
}


async def read_shard(client: Client, keys: ShardKeys) -> ShardReading:
    """Read all that `status` shows of one shard, at one moment; a key of another type is empty."""
    queued: dict[str, Any] = {}

    def queue(pipe: Pipeline) -> None:
        queued.update(
            time=pipe.time(),
            meta=pipe.hgetall(keys.meta),
            intake=pipe.hgetall(keys.intake),
            workers=pipe.hgetall(keys.workers),
            pending_elements=pipe.llen(keys.queue),
            oldest_pending=pipe.lindex(keys.queue, 1),
            log_entries=pipe.xlen(keys.log),
            state_keys=pipe.hlen(keys.state),
            lease=pipe.get(keys.lease),
            idle=pipe.hgetall(keys.idle),
        )

    found = await at_one_moment(client, keys, queue, keeps_errors=True, with_intake=True)
    for at, (name, reply) in enumerate(zip(queued, found, strict=True)):
        if isinstance(reply, Exception):
            # Users with older rules may not see it.
            is_hidden = name == "idle" and isinstance(reply, NoPermissionError)
            if "WRONGTYPE" not in str(reply) and not is_hidden:
                raise reply
            found[at] = _EMPTY.get(name, 0)
    return ShardReading(**dict(zip(queued, found, strict=True)))
