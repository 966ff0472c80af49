"""Mends what others wrote into Redis, as far as it can be derived from what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final

from redis.exceptions import NoPermissionError, ResponseError

from broker.backend import queries
from broker.backend.connections import translated
from broker.backend.damage import Damage
from broker.backend.examination import examine, examine_namespace
from broker.backend.mending import mend
from broker.backend.session import Session
from broker.backend.stored import INTAKE_HEAD, intake_head, node_name
from broker.backend.topology import Client
from broker.errors import BrokerError, ConnectError, NamespaceMismatchError
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.features import NEW_FEATURES, text_of, words_in
from broker.protocol.fields import name_of, read_page
from broker.protocol.names import ShardKeys, config_key, shard_of
from broker.protocol.refusal import shown
from broker.runtime import clock

# A producer that lives writes its own record again within its probe interval of 1 s.
OWN_RECORD_S: Final = 2.5
WRITTEN_PAUSE_S: Final = 0.05
OTHERS_MAY_KNOW: Final = (
    "a scheduler writes it anew if the log, or its own copy of a table, proves it; live replicas "
    "may hold it; else give --value, or --all to delete it"
)


async def damages(url: str | None, namespace: str, *, is_whole: bool = False) -> list[Damage]:
    """Return what is damaged in a namespace; empty also if it does not exist.

    Shards that are away are left out, unless all of them are: the status names them.

    Args:
        url: any supported URL.
        namespace: a validated name.
        is_whole: read log and full state from end to end too.

    Raises:
        BackendError: Redis failed.
    """
    session = Session(url, namespace, None)
    away: list[ConnectError] = []
    try:
        await session.connect()
        found = await examine_namespace(session.client, namespace)
        if not found and await session.try_join():
            for keys in session.keys:
                try:
                    found += await examine(session.client, keys, is_whole=is_whole)
                except ConnectError as error:
                    away.append(error)
            if len(away) == len(session.keys):
                raise away[0]
    finally:
        await session.close()
    return found


async def repair(
    url: str | None,
    namespace: str,
    shards: int | None,
    *,
    deletes_content: bool = False,
    lost: Collection[str] | None = (),
) -> list[str]:
    """Mend a namespace while everything runs; return what was done, a line each.

    Args:
        url: any supported URL.
        namespace: a validated name.
        shards: the number of shards it was made with, if that cannot be read; or the number to make
            it with instead.
        deletes_content: make it again with `shards`, without what it holds.
        lost: keys to delete if their fields of the full state cannot be read, also from replicas
            that hold them; None: all such keys, and tables. The others stay as they are.

    Raises:
        BrokerError: the number of shards is needed, or does not fit what is there.
        NamespaceMismatchError: this release must not use the namespace.
        BackendError: Redis failed; call it again.
    """
    session = Session(url, namespace, None)
    done: list[str] = []
    try:
        await session.connect()
        done += await _repair_namespace(session, shards, deletes_content=deletes_content)
        if not await session.try_join():
            raise BrokerError(
                f"namespace {namespace!r} does not exist; start `statebroker serve`, or give "
                "--shards N with the number of shards it was made with"
            )
        for number, keys in enumerate(session.keys):
            found = await examine(session.client, keys, is_whole=True)
            done += [f"shard {number}: found {one}" for one in found]
            done += [
                f"shard {number}: {line}"
                for line in await _repair_shard(session, keys, found, lost)
            ]
    finally:
        await session.close()
    return done


async def _repair_namespace(
    session: Session, shards: int | None, *, deletes_content: bool
) -> list[str]:
    client, key = session.client, config_key(session.namespace)
    found = await examine_namespace(client, session.namespace)
    made = None if found else await queries.config(client, session.namespace)
    if made is not None and (reason := made.refusal()):
        raise NamespaceMismatchError(f"namespace {session.namespace!r} {reason}")
    if shards is None or (made is not None and made.shards == shards):
        if found:
            raise BrokerError(
                f"{found[0].what}: nothing else tells the number; a running worker's log does"
            )
        return []
    done = []
    if made is not None:
        old = [
            ShardKeys.of(session.namespace, number, made.shards) for number in range(made.shards)
        ]
        used = [keys for keys in old if await _has_history(session, keys)]
        wanted = ShardKeys.of(session.namespace, 0, shards)
        if deletes_content:
            done += [await _delete(session, keys) for keys in old]
        elif used and not await _has_history(session, wanted):
            raise BrokerError(
                f"namespace {session.namespace!r} holds data in {made.shards} shards, which "
                f"{shards} shards would hide: use another namespace, or stop its producers and add "
                "--delete-content"
            )
    async with translated("writing the namespace"):
        words = await _words_of(client, key)
        pipe = client.pipeline(transaction=True)
        pipe.delete(key)
        again = {"protocol": PROTOCOL_VERSION, "shards": shards, "created": 0, "features": words}
        pipe.hset(key, mapping=again)  # type: ignore[arg-type]
        await pipe.execute()
    return [*done, f"{key} says {shards} shards again"]


async def _words_of(client: Client, key: str) -> str:
    """Return the feature words of a namespace; those of a new one if nothing tells them."""
    try:
        text: bytes | None = await client.hget(key, "features")  # type: ignore[assignment]
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        text = None
    words = None if text is None else words_in(text)
    return text_of(NEW_FEATURES if words is None else words)


async def _delete(session: Session, keys: ShardKeys) -> str:
    """Delete a shard; producers of it stop, for the namespace has other shards then."""
    async with translated("deleting a shard"):
        records: dict[bytes, bytes] = await session.client.hgetall(keys.intake)  # type: ignore[assignment]
        stages = [keys.stage(node) for name in records if (node := node_name(name))]
        for key in (
            *stages,
            keys.queue,
            keys.ready,
            keys.log,
            keys.state,
            keys.tables,
            keys.dicts,
            keys.dead,
        ):
            await session.client.delete(key)
        for key in (keys.lease, keys.workers, keys.intake, keys.meta):
            await session.client.delete(key)
        with suppress(NoPermissionError):
            # Notes of `--forget-idle`; users with older rules may not touch them.
            await session.client.delete(keys.idle)
    return f"{keys.prefix}* is deleted"


async def _has_history(session: Session, keys: ShardKeys) -> bool:
    async with translated("looking for a history"):
        offset = await session.client.hget(keys.meta, "offset")
        head = intake_head(await session.client.hget(keys.intake, INTAKE_HEAD))  # type: ignore[arg-type]
    return bool(offset or (head and head.accepted))


async def is_unreadable(url: str | None, namespace: str, key: str) -> bool:
    """Whether the field of a key in the full state is there, and cannot be read.

    Raises:
        BrokerError: the namespace does not exist.
        BackendError: Redis failed.
    """
    async with _joined(url, namespace) as session:
        keys = session.keys[shard_of(key, len(session.keys))]
        return not await _is_readable(session, keys, key)


async def written_anew(url: str | None, namespace: str, key: str, seconds: float) -> bool:
    """Wait until a scheduler wrote a key anew that could not be read, and believe what it wrote.

    Nobody knows what the digest had of it, so the next full state computes the digest again.

    Returns:
        Whether that was in time.

    Raises:
        BrokerError: the namespace does not exist.
        BackendError: Redis failed.
    """
    async with _joined(url, namespace) as session:
        keys = session.keys[shard_of(key, len(session.keys))]
        end = clock.now() + seconds
        while not await _is_readable(session, keys, key):
            if clock.now() > end:
                return False
            await asyncio.sleep(WRITTEN_PAUSE_S)
        await queries.forget_digest(session.client, keys)
    return True


@asynccontextmanager
async def _joined(url: str | None, namespace: str) -> AsyncIterator[Session]:
    session = Session(url, namespace, None)
    try:
        await session.connect()
        if not await session.try_join():
            raise BrokerError(f"namespace {namespace!r} does not exist; start `statebroker serve`")
        yield session
    finally:
        await session.close()


async def _is_readable(session: Session, keys: ShardKeys, key: str) -> bool:
    (field,) = await queries.state_fields(session.client, keys, [key])
    return field is None or not read_page([key.encode()], [field]).damaged


async def _repair_shard(
    session: Session, keys: ShardKeys, found: list[Damage], lost: Collection[str] | None
) -> list[str]:
    client, done = session.client, list[str]()
    content = {keys.state, keys.tables}
    if any(one.key == keys.intake for one in found):
        # A producer that finds no record sends what it kept again: let each note first that its own
        # was overwritten, or write it again.
        await asyncio.sleep(OWN_RECORD_S)
        # Without their records, those who live must not be taken for who was forgotten.
        async with translated("letting writers come back"):
            await client.hdel(keys.intake, ":forgotten")
    others = dict.fromkeys(one.key for one in found if one.is_other_type)
    for key in others:
        if key not in content:
            async with translated("deleting a key of another type"):
                await client.delete(key)
        done.append(f"{key} is deleted")
    removals: list[tuple[str, bytes | None]] = [(key, None) for key in others if key in content]
    for one in found:
        if one.is_content and one.field is not None and one.key not in others:
            if lost is not None and not (one.key == keys.state and name_of(one.field) in lost):
                done.append(f"{one.key}: {shown(one.field)} stays as it is: {OTHERS_MAY_KNOW}")
                continue
            removals.append((one.key, one.field))
            done.append(f"{one.key}: {shown(one.field)} is deleted, write it again")
    gone = {field for key, field in removals if key == keys.state}
    greatest = 0 if None in gone else await _greatest_offset(session, keys, gone)
    done += await mend(session.commands, keys, greatest, removals)
    return done + await _remove_records(session, keys, found)


async def _greatest_offset(
    session: Session, keys: ShardKeys, gone: Collection[bytes | None]
) -> int:
    """Return the greatest offset of a field of the full-state hash, without those that go."""
    greatest = 0
    async for names, fields in queries.state_pages(session.client, keys):
        stay = {name: one for name, one in zip(names, fields, strict=True) if name not in gone}
        greatest = max([greatest, *read_page([*stay], [*stay.values()]).offsets])
    return greatest


async def _remove_records(session: Session, keys: ShardKeys, found: list[Damage]) -> list[str]:
    """Remove records that nobody who lives wrote again meanwhile."""
    records = [one for one in found if one.field is not None and not one.is_content]
    done: list[str] = []
    if not records:
        return done
    still = await examine(session.client, keys)
    for one in records:
        if one in still and one.field is not None:
            async with translated("deleting a record"):
                await session.client.hdel(one.key, one.field)
            done.append(f"{one.key}: {shown(one.field)} is deleted")
    return done
