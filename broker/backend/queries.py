"""Queries made of plain Redis commands: one typed function each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from broker.backend import page_sizes
from broker.backend.connections import translated
from broker.backend.reads import at_one_moment
from broker.backend.stored import (
    INTAKE_DICTS,
    INTAKE_HEAD,
    MadeAs,
    NodeRecord,
    dictionaries_in,
    id_of,
    intake_head,
    is_asked,
    is_number,
    made_as,
    node_record,
    number,
    number_or_none,
)
from broker.backend.topology import Client
from broker.errors import ConnectError, DamagedError, DecodeError
from broker.protocol.constants import EPOCH_BYTES
from broker.protocol.dictionaries import dictionary_of
from broker.protocol.digest import Digest
from broker.protocol.fields import name_of
from broker.protocol.messages import Head, LogEntry, Position
from broker.protocol.names import ShardKeys, config_key
from broker.protocol.state_bounds import StateBounds, StateFull, state_full

SIZE_SAMPLES: Final = 1000  # fields of a hash from which the server estimates its bytes

_HEAD_FIELDS = (
    "epoch",
    "offset",
    "id",
    "snap_offset",
    "snap_id",
    "covered",
    "published_at",
    "log_bytes",
    "fold_to",
    "heartbeat",
    "max_age",
)
_DIGESTS = ("digest", "tables_digest")


@dataclass(frozen=True, slots=True)
class LogPage:
    """Head and log of one shard, read at one moment.

    Attributes:
        head: None if the shard does not exist.
        entries: batches after the requested offset, in order; not necessarily all.
    """

    head: Head | None
    entries: list[LogEntry]


async def config(client: Client, namespace: str) -> MadeAs | None:
    """Return how a namespace was made; None if it does not exist."""
    key = config_key(namespace)
    async with translated("reading the namespace"):
        found: list[Any] = await client.hmget(key, ["protocol", "shards", "features"])
    return made_as(key, *found)


async def log_page(client: Client, keys: ShardKeys, after: int, count: int) -> LogPage:
    """Read the head, and up to `count` batches after an offset (0: only the head)."""
    async with translated("reading the log"):

        def queue(pipe: Pipeline) -> None:
            pipe.time()
            pipe.hmget(keys.meta, _HEAD_FIELDS)
            # After the time: what is accepted later is not told to be published.
            pipe.hget(keys.intake, INTAKE_HEAD)
            if count:
                pipe.xrange(keys.log, min=f"{after + 1}-0", max="+", count=count)

        time, meta, intake, *logs = await at_one_moment(client, keys, queue)
    found = [fields for _, fields in logs[0]] if logs else []
    return LogPage(_head(keys.meta, time, meta, intake), [log_entry(fields) for fields in found])


async def dictionary_numbers(client: Client, keys: ShardKeys) -> tuple[int, ...]:
    """Return the numbers of a shard's dictionaries, the newest last."""
    async with translated("looking for dictionaries"):
        found: Any = await client.hget(keys.intake, INTAKE_DICTS)
    return dictionaries_in(found)


async def dictionaries_held(client: Client, keys: ShardKeys) -> tuple[int, ...]:
    """Return the numbers in the hash of dictionaries itself, the newest last."""
    async with translated("looking for dictionaries"):
        try:
            names: list[bytes] = await client.hkeys(keys.dicts)  # type: ignore[assignment]
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            names = []
    return tuple(sorted(int(name) for name in names if is_number(name)))


async def dictionaries(
    client: Client, keys: ShardKeys, numbers: Sequence[int]
) -> dict[int, bytes | None]:
    """Return dictionaries by number; None for one that is not there, or damaged."""
    async with translated("reading dictionaries"):
        try:
            found: list[Any] = await client.hmget(keys.dicts, [str(one) for one in numbers])
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            # Whoever may write there put something else there.
            found = [None] * len(numbers)
    return {
        number: dictionary_of(number, content)
        for number, content in zip(numbers, found, strict=True)
    }


def log_entry(fields: Mapping[bytes, bytes]) -> LogEntry:
    """Return the entry of the log that these fields form."""
    bulk: list[bytes] = []
    while (chunk := fields.get(b"c%d" % (len(bulk) + 1))) is not None:
        bulk.append(chunk)
    nodes = fields.get(b"n", b"").decode(errors="replace").split(" ")
    return LogEntry(fields.get(b"b", b""), bulk, nodes)


def _head(
    key: str, time: tuple[int, int], meta: list[bytes | None], intake: bytes | None
) -> Head | None:
    epoch, offset, batch_id, snap_offset, snap_id, *rest = meta
    if epoch is None and (accepting := intake_head(intake)) is not None:
        # Producers came before any worker: a worker begins with this epoch.
        epoch = accepting.epoch
    if epoch is None:
        return None
    covered_text, published_at, log_bytes, fold_to, heartbeat, max_age = rest
    covered = number(key, "covered", covered_text)
    now_ms = time[0] * 1000 + time[1] // 1000
    epoch = id_of(key, "epoch", epoch)
    return Head(
        position=Position(epoch, number(key, "offset", offset), id_of(key, "id", batch_id)),
        snapshot=Position(
            epoch, number(key, "snap_offset", snap_offset), id_of(key, "snap_id", snap_id)
        ),
        covered=covered,
        # The next heartbeat writes it anew.
        quiet_s=(now_ms - (number_or_none(published_at) or 0)) / 1000,
        time_s=now_ms / 1000,
        log_bytes=number(key, "log_bytes", log_bytes),
        fold_to=number(key, "fold_to", fold_to),
        heartbeat_s=(number_or_none(heartbeat) or 0) / 1000,
        max_age_s=(number_or_none(max_age) or 0) / 1000,
        pending_since_s=_pending_since_s(intake, covered, now_ms / 1000),
    )


def _pending_since_s(intake: bytes | None, covered: int, now_s: float) -> float | None:
    """Return a moment before which nothing was accepted that is pending; None: nothing is."""
    head = intake_head(intake)
    # Of a head that cannot be read it is not known; a heartbeat makes it anew.
    if intake is None or (head is not None and head.appends <= covered):
        return None
    # An append number is the time of its acceptance in microseconds.
    return min(now_s, covered / 1e6) if covered else float("-inf")


async def table_fields(client: Client, keys: ShardKeys, run: Any = None) -> dict[str, bytes]:
    """Return the tables hash, empty if the shard has no tables. Args: see `state_pages`."""
    found: dict[str, bytes] = {}
    async for names, fields in _pages(client, keys, keys.tables, page_sizes.BLOCKS, run):
        # A name that is not UTF-8 is none of ours: it must not hide the others.
        found.update(zip(map(name_of, names), fields, strict=True))
    return found


async def gone_nodes(client: Client, keys: ShardKeys, nodes: Collection[str]) -> dict[str, int]:
    """Return the nodes that have left, and an append number that none of their chunks is above."""
    if not nodes:
        return {}
    names = sorted(nodes)
    async with translated("looking for nodes"):
        # In one command, so at one moment.
        found: list[Any] = await client.hmget(keys.intake, [INTAKE_HEAD, *names])
    head = intake_head(found[0])
    if head is None:
        # It is made anew soon.
        return {}
    return {
        name: head.appends for name, record in zip(names, found[1:], strict=True) if record is None
    }


async def has_tables(client: Client, keys: ShardKeys) -> bool:
    """Whether the full state holds any table."""
    async with translated("looking for tables"):
        return bool(await client.hlen(keys.tables))


async def state_page(
    client: Client, keys: ShardKeys, cursor: int, count: int
) -> tuple[int, list[bytes], list[bytes]]:
    """Return about `count` fields of the full-state hash: next cursor (0: the end), keys, fields.

    A cursor of another server may leave fields out.
    """
    async with translated("reading the full state"):
        following, page = await client.execute_command(  # type: ignore[no-untyped-call]
            "HSCAN", keys.state, cursor, "COUNT", count
        )
    return following, list(page), list(page.values())


async def state_pages(
    client: Client, keys: ShardKeys, run: Any = None
) -> AsyncIterator[tuple[list[bytes], list[bytes]]]:
    """Yield the full-state hash in pages of (keys, fields); a later field of a key wins.

    Args:
        client: made by `broker.backend.connections`.
        keys: the shard.
        run: `server_identity`, if something was read before that must match; None reads it now.

    Raises:
        ConnectError: also if not all pages came from the same server process.
    """
    async for page in _pages(client, keys, keys.state, page_sizes.FIELDS, run):
        yield page


async def _pages(
    client: Client, keys: ShardKeys, key: str, count: int, run: Any
) -> AsyncIterator[tuple[list[bytes], list[bytes]]]:
    cursor = 0
    run = run or await server_identity(client, keys)
    while True:
        async with translated("reading the full state"):
            cursor, page = await client.execute_command(  # type: ignore[no-untyped-call]
                "HSCAN", key, cursor, "COUNT", count
            )
        yield list(page), list(page.values())
        if not cursor:
            break
    await ensure_same_server(client, keys, run)


@dataclass(frozen=True, slots=True)
class StateMarks:
    """What meta records about the full-state hash, read at one moment.

    Attributes:
        snapshot: the hash holds everything up to this position.
        fold_to: the hash holds nothing beyond this offset.
        digest: of the hash as it is; None if it is unknown.
        tables_digest: of the tables hash, likewise.
    """

    snapshot: Position
    fold_to: int
    digest: Digest | None
    tables_digest: Digest | None


async def state_marks(client: Client, keys: ShardKeys) -> StateMarks | None:
    """Return the marks of the full-state hash; None if the shard does not exist."""
    async with translated("reading the digest"):
        meta: list[Any] = await client.hmget(
            keys.meta, ["epoch", "snap_offset", "snap_id", "fold_to", *_DIGESTS]
        )
    epoch, offset, batch_id, fold_to, *digests = meta
    if epoch is None:
        return None
    key = keys.meta
    return StateMarks(
        Position(
            id_of(key, "epoch", epoch),
            number(key, "snap_offset", offset),
            id_of(key, "snap_id", batch_id),
        ),
        number(key, "fold_to", fold_to),
        *map(digest_or_none, digests),
    )


def digest_or_none(digest: bytes | None) -> Digest | None:
    """Return a digest as meta holds it; None if it is absent or none: it can be computed again."""
    try:
        return None if digest is None else Digest.of_bytes(digest)
    except DecodeError:
        # A scheduler computes it again, as if there were none.
        return None


async def forget_digest(client: Client, keys: ShardKeys) -> None:
    """Delete the digests, so that the next full state computes them again."""
    async with translated("deleting the digests"):
        await client.hdel(keys.meta, *_DIGESTS)


async def remove_state_fields(client: Client, keys: ShardKeys, found: dict[bytes, bytes]) -> None:
    """Delete fields of the full-state hash, unless they changed since they were read."""
    async with translated("removing damaged fields"):
        now: list[Any] = await client.hmget(keys.state, [*found])
        same = [key for (key, one), held in zip(found.items(), now, strict=True) if held == one]
        if same:
            await client.hdel(keys.state, *same)


async def remove_table_fields(client: Client, keys: ShardKeys, names: list[str]) -> None:
    """Delete fields of the tables hash."""
    async with translated("removing damaged tables"):
        await client.hdel(keys.tables, *names)


async def state_fields(
    client: Client, keys: ShardKeys, names: Sequence[str | bytes]
) -> list[bytes | None]:
    """Return fields of the full-state hash; None for each absent key."""
    async with translated("reading the full state"):
        return await client.hmget(keys.state, names)  # type: ignore[return-value]


async def server_identity(client: Client, keys: ShardKeys) -> Any:
    """Return the run id of the server process that owns a shard now."""
    async with translated("asking which server answers"):
        pipe = client.pipeline(transaction=False)
        pipe.info("server")
        # The key routes the pipeline.
        pipe.hmget(keys.meta, ["epoch"])
        info, _ = await pipe.execute()
    return info.get("run_id")


async def ensure_same_server(client: Client, keys: ShardKeys, run: Any) -> None:
    """Make sure that the server process is still the one whose `server_identity` is `run`.

    A cursor is only valid on one server: on another one it may skip fields.

    Raises:
        ConnectError: another server, or a restarted one, owns the shard now.
    """
    if await server_identity(client, keys) != run:
        raise ConnectError(
            f"{keys.state} was read from a server that has been replaced or restarted; it is read "
            "again"
        )


async def epoch_of(client: Client, keys: ShardKeys) -> bytes | None:
    """Return the epoch of a shard as meta has it; None if it has none, or none that can be read."""
    async with translated("asking for the epoch"):
        (epoch,) = await client.hmget(keys.meta, ["epoch"])
    return epoch if epoch is not None and len(epoch) == EPOCH_BYTES else None  # type: ignore[return-value]


async def full_state(client: Client, keys: ShardKeys) -> StateFull | None:
    """Return the bound that a shard's full state is above; None if none."""
    async with translated("asking whether the state is full"):
        found: Any = await client.hmget(keys.meta, ["full"])
    return state_full(found[0])


async def note_full_state(client: Client, keys: ShardKeys, bounds: StateBounds) -> StateFull | None:
    """Compare a shard's full state with its bounds, note which one it is above, and return it."""
    async with translated("comparing the state with its bounds"):
        pipe = client.pipeline(transaction=False)
        pipe.hmget(keys.meta, ["full"])
        if bounds.keys:
            pipe.hlen(keys.state)
        if bounds.bytes:
            for key in (keys.state, keys.tables):
                pipe.memory_usage(key, samples=SIZE_SAMPLES)
        (noted,), *sizes = await pipe.execute()
        found = bounds.passed_by(
            sizes.pop(0) if bounds.keys else 0, sum(size or 0 for size in sizes)
        )
        text = b"" if found is None else found.packed()
        if text != (noted or b""):
            await client.hset(keys.meta, "full", text)
    return found


async def records_lost(client: Client, keys: ShardKeys) -> tuple[bytes, int] | None:
    """Return up to which append number of which epoch records of nodes were deleted by others.

    What was accepted up to there is not lost with them. None if they never were.
    """
    async with translated("asking whether records were lost"):
        found: Any = await client.hmget(keys.meta, ["epoch", "records_lost"])
    epoch, append = found
    number = None if append is None else number_or_none(append)
    return None if epoch is None or number is None else (epoch, number)


@dataclass(frozen=True, slots=True)
class Held:
    """What Redis records of a node.

    Attributes:
        record: of the process that holds the name.
        is_asked: the record will be forgotten unless that process writes it again.
    """

    record: NodeRecord
    is_asked: bool


async def last_chunk(client: Client, keys: ShardKeys, node: str) -> Held | None:
    """Return what Redis records of a node; None if nothing.

    Raises:
        DamagedError: the record cannot be read.
    """
    try:
        async with translated("asking for the last chunk"):
            record = await client.hget(keys.intake, node)
    except DamagedError:
        raise DamagedError(keys.intake, "it is no hash", field=node) from None
    if record is None:
        return None
    found: bytes = record  # type: ignore[assignment]
    return Held(node_record(keys.intake, node, found), is_asked(found))
