"""What is damaged in a shard: what Redis holds of it, compared with what belongs there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from broker.backend.connections import translated
from broker.backend.damage import Damage
from broker.backend.queries import config, digest_or_none
from broker.backend.reads import at_one_moment
from broker.backend.stored import (
    ID_BYTES,
    INTAKE_HEAD,
    intake_head,
    is_number,
    node_name,
    node_record,
    number_or_none,
    queue_entry,
    worker_record,
)
from broker.backend.topology import Client
from broker.backend.whole_content import chain_damages, content_damages, head_of
from broker.config import SETTINGS
from broker.errors import BackendError, ConnectError, DamagedError
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Position
from broker.protocol.names import ShardKeys
from broker.protocol.refusal import shown

MAX_ELEMENTS: Final = 1000  # of the queue, that are looked at
MAX_NAMED: Final = 10  # of one kind of damage
_TRIES: Final = 3
_IDS: Final = ("epoch", "id", "previous", "snap_id")
_NUMBERS: Final = (
    *("offset", "covered", "published", "max_age", "max_count", "published_at", "log_bytes"),
    *("logged", "bytes", "by_count", "by_age", "missing", "snap_offset", "snap_at", "fold_to"),
    *("dead", "fence", "records_lost"),
)
_LEASE: Final = re.compile(rb"\d{1,20} .+", re.DOTALL)


@dataclass(slots=True)
class Stored:
    """What Redis holds of a shard; a key of another type is empty here.

    Attributes:
        meta, intake, workers: the hashes.
        lease: the string.
        others: damages that reading met: keys of other types.
    """

    meta: Mapping[bytes, bytes]
    intake: Mapping[bytes, bytes]
    workers: Mapping[bytes, bytes]
    lease: bytes | None
    others: list[Damage]

    def number(self, field: str) -> int | None:
        """Return a number of meta; 0 if it is absent, None if it cannot be read."""
        value = self.meta.get(field.encode())
        return 0 if value is None else number_or_none(value)


async def read_stored(client: Client, keys: ShardKeys) -> Stored:
    """Read all of a shard that can be damaged, but for the log and the full state."""
    others: list[Damage] = []

    async def ask(calls: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
        """Run commands by key; None for a key of another type, or where the user may not look."""
        async with translated("looking for damage"):
            pipe = client.pipeline(transaction=False)
            for call in calls.values():
                call(pipe)
            replies = await pipe.execute(raise_on_error=False)
        found = {}
        for key, reply in zip(calls, replies, strict=True):
            if isinstance(reply, RedisError) and "WRONGTYPE" in str(reply):
                others.append(Damage(key, "holds another type", is_other_type=True))
            found[key] = None if isinstance(reply, Exception) else reply
        return found

    found = await ask(
        {
            keys.meta: lambda pipe: pipe.hgetall(keys.meta),
            keys.intake: lambda pipe: pipe.hgetall(keys.intake),
            keys.workers: lambda pipe: pipe.hgetall(keys.workers),
            keys.queue: lambda pipe: pipe.llen(keys.queue),
            keys.lease: lambda pipe: pipe.get(keys.lease),
            keys.log: lambda pipe: pipe.xlen(keys.log),
            keys.state: lambda pipe: pipe.hlen(keys.state),
            keys.tables: lambda pipe: pipe.hlen(keys.tables),
            keys.ready: lambda pipe: pipe.llen(keys.ready),
            keys.dead: lambda pipe: pipe.llen(keys.dead),
        }
    )
    return Stored(
        found[keys.meta] or {},
        found[keys.intake] or {},
        found[keys.workers] or {},
        found[keys.lease],
        others,
    )


async def examine(client: Client, keys: ShardKeys, *, is_whole: bool = False) -> list[Damage]:
    """Return what is damaged in a shard, most important first.

    Args:
        client: with the rights of `statebroker acl admin`.
        keys: the shard.
        is_whole: read log and full state from end to end too.
    """
    stored = await read_stored(client, keys)
    found = [
        *stored.others,
        *_meta_damages(keys, stored),
        *_record_damages(keys, stored),
        *await _log_damages(client, keys),
        *await _pending_damages(client, keys),
    ]
    if is_whole and not any(one.is_other_type for one in found):
        head = stored.number("offset") or 0
        found += [*await chain_damages(client, keys), *await content_damages(client, keys, head)]
    return found


async def _asked(client: Client, keys: ShardKeys, queue: Callable[[Pipeline], object]) -> list[Any]:
    """Return replies of one moment; empty where so much happens that there is none."""
    try:
        async with translated("looking for damage"):
            return await at_one_moment(client, keys, queue, keeps_errors=True, with_intake=True)
    except BackendError as error:
        if isinstance(error, ConnectError) or not error.is_temporary:
            raise
        return []


async def examine_namespace(client: Client, namespace: str) -> list[Damage]:
    """Return what is damaged in the hash of a namespace itself."""
    try:
        await config(client, namespace)
    except DamagedError as error:
        return [Damage(error.key, str(error))]
    return []


def _meta_damages(keys: ShardKeys, stored: Stored) -> Iterator[Damage]:
    for what in (*_unreadable_fields(stored.meta), *_impossible_fields(stored)):
        yield Damage(keys.meta, what)


def _unreadable_fields(meta: Mapping[bytes, bytes]) -> Iterator[str]:
    for field in _IDS:
        value = meta.get(field.encode())
        if value is not None and len(value) != ID_BYTES:
            yield f"{field} is {shown(value)}, not {ID_BYTES} bytes"
    for field in _NUMBERS:
        value = meta.get(field.encode())
        if value is not None and not is_number(value):
            yield f"{field} is {shown(value)}, not a number from 0 to 2**53"
    for field in ("digest", "tables_digest"):
        digest = meta.get(field.encode())
        if digest is not None and digest_or_none(digest) is None:
            yield f"{field} has {len(digest)} bytes"


def _impossible_fields(stored: Stored) -> Iterator[str]:
    offset, batches = stored.number("offset"), _sum(stored, "by_count", "by_age")
    if offset is not None and batches is not None and offset > batches:
        yield f"offset is {offset}, but there were only {batches} batches"
    for lower, higher in (("snap_offset", "offset"), ("fold_to", "offset")):
        small, great = stored.number(lower), stored.number(higher)
        if small is not None and great is not None and small > great:
            yield f"{lower} is {small}, above {higher}, {great}"
    yield from (
        f"{field} is gone"
        for field in ("epoch", "id")
        if offset and field.encode() not in stored.meta
    )
    age = stored.number("max_age")
    longest = SETTINGS["local_delta_max_age"].high * 1000
    if age is not None and age > longest:
        yield f"max_age is {age} ms, above the limit of {longest:.0f}"
    if stored.meta.get(b"max_count") == b"0":
        yield "max_count is 0"


def _sum(stored: Stored, *fields: str) -> int | None:
    numbers = [stored.number(field) for field in fields]
    return None if None in numbers else sum(n for n in numbers if n is not None)


def _record_damages(keys: ShardKeys, stored: Stored) -> Iterator[Damage]:
    for name, record in stored.intake.items():
        if name.startswith(b":"):
            continue
        node = node_name(name)
        if node is None:
            yield Damage(keys.intake, f"{shown(name)} is no name of a node", field=name)
            continue
        try:
            node_record(keys.intake, node, record)
        except DamagedError:
            yield Damage(keys.intake, f"the record of node {node} is {shown(record)}", field=name)
    for name, record in stored.workers.items():
        if worker_record(record) is None:
            what = f"the record of worker {shown(name)} is {shown(record)}"
            yield Damage(keys.workers, what, field=name)
    if stored.lease is not None and _LEASE.fullmatch(stored.lease) is None:
        yield Damage(keys.lease, f"is {shown(stored.lease)}", is_other_type=True)


async def _log_damages(client: Client, keys: ShardKeys) -> list[Damage]:
    """Compare the ends of the log with the positions that meta has, all read at one moment."""
    offset = snap_offset = 0
    for _ in range(_TRIES):

        def queue(pipe: Pipeline, offset: int = offset, snap_offset: int = snap_offset) -> None:
            pipe.hmget(keys.meta, ["epoch", "offset", "id", "snap_offset", "snap_id"])
            pipe.xrange(keys.log, min="-", max="+", count=1)
            pipe.xrange(keys.log, min=f"{offset}-0", max="+", count=2)
            pipe.xrange(keys.log, min=f"{snap_offset}-0", max=f"{snap_offset}-0")

        replies = await _asked(client, keys, queue)
        if not replies or isinstance(replies[0], Exception) or isinstance(replies[1], Exception):
            return []
        meta, first, last, at_snap = replies
        epoch, head, batch_id, snap, snap_id = meta
        known, known_snap = number_or_none(head or b"0"), number_or_none(snap or b"0")
        if known is None or known_snap is None:
            return []
        if epoch is None:
            return [Damage(keys.meta, "epoch is gone, though there is a log")] if first else []
        if (known, known_snap) == (offset, snap_offset):
            return _ends_damaged(
                keys,
                Position(epoch, offset, batch_id or NO_ID),
                Position(epoch, snap_offset, snap_id or NO_ID),
                (first, last, at_snap),
            )
        offset, snap_offset = known, known_snap
    return []


def _ends_damaged(
    keys: ShardKeys,
    head: Position,
    snapshot: Position,
    entries: tuple[list[Any], list[Any], list[Any]],
) -> list[Damage]:
    first, last, at_snapshot = entries
    if not first:
        if snapshot != head:
            return [Damage(keys.log, f"is gone; the full state ends at offset {snapshot.offset}")]
        return []
    begins = head_of(first[0])
    ends = head_of(last[-1]) if last else None
    if ends is None or ends.position != head:
        where = "nothing" if ends is None else f"the batch of offset {ends.offset}"
        text = f"ends with {where}, which is not the head of offset {head.offset} in meta"
        return [Damage(keys.log, text)]
    at = head_of(at_snapshot[0]) if at_snapshot else None
    if begins is not None and at is None and begins.offset == snapshot.offset + 1:
        fits = begins.previous_id == snapshot.batch_id
    else:
        fits = at is not None and at.position == snapshot
    if not fits:
        where = f"offset {snapshot.offset}, where the full state ends"
        return [Damage(keys.log, f"does not go on from {where} according to meta")]
    return []


async def _pending_damages(client: Client, keys: ShardKeys) -> list[Damage]:
    """Compare the head of the intake hash with meta and the queue, all read at one moment."""

    def queue(pipe: Pipeline) -> None:
        pipe.lrange(keys.queue, 0, MAX_ELEMENTS - 1)
        pipe.hget(keys.intake, INTAKE_HEAD)
        pipe.hmget(keys.meta, ["epoch", "covered", "published"])

    replies = await _asked(client, keys, queue)
    if not replies or any(isinstance(one, Exception) for one in replies):
        return []
    elements, head, meta = replies
    found = list(_queue_damages(keys, elements))
    what, known_head = _head_damage(head, meta[0], meta[1]), intake_head(head)
    if what is None and known_head is not None and not found and len(elements) < MAX_ELEMENTS:
        # Nothing else is wrong, so the counters have to agree.
        waiting = [one.deltas for element in elements if (one := queue_entry(element)) is not None]
        published = number_or_none(meta[2] or b"0")
        accepted = known_head.accepted
        if published is not None and accepted != (known := published + sum(waiting)):
            what = f"accepted is {accepted}, but {known} were published or are pending"
    if what is not None:
        found.append(Damage(keys.intake, what))
    return found[:MAX_NAMED]


def _head_damage(head: bytes | None, epoch: bytes | None, covered: bytes | None) -> str | None:
    """Return why a heartbeat has to make the head of an intake hash anew."""
    if head is None:
        return None if epoch is None else "its head is gone"
    found = intake_head(head)
    if found is None:
        return f"its head is {shown(head)}"
    if epoch is not None and found.epoch != epoch:
        return "its head is of another epoch than meta"
    known = number_or_none(covered or b"0")
    if known is not None and known != found.covered:
        return f"its head says that {found.covered} is covered, meta says {known}"
    return None


def _queue_damages(keys: ShardKeys, elements: Sequence[bytes]) -> Iterator[Damage]:
    at = 0
    while at < len(elements):
        is_chunk = queue_entry(elements[at]) is None
        if is_chunk and at + 1 == MAX_ELEMENTS:
            return  # its entry was not read
        if is_chunk and at + 1 < len(elements) and queue_entry(elements[at + 1]) is not None:
            at += 2
            continue
        yield Damage(keys.queue, f"an element is {shown(elements[at])}")
        at += 1
