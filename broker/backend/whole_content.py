"""What is damaged in the log and the full state of a shard, read from end to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from broker.backend.connections import translated
from broker.backend.damage import Damage
from broker.backend.queries import state_pages
from broker.backend.stored import number_or_none
from broker.backend.topology import Client
from broker.core.tables import new_tables
from broker.errors import DecodeError
from broker.protocol.codec import decode_head
from broker.protocol.fields import decode_keys, unpack_fields
from broker.protocol.messages import Heartbeat
from broker.protocol.names import ShardKeys
from broker.protocol.refusal import shown

LOG_PAGE: Final = 64
MAX_SINGLES: Final = 300  # fields of a table of which each is suspected alone


def head_of(entry: tuple[bytes, Mapping[bytes, bytes]]) -> Heartbeat | None:
    """Return the head that a log entry tells, None if it holds no batch."""
    try:
        return decode_head(entry[1].get(b"b", b""))
    except DecodeError:
        return None


async def chain_damages(client: Client, keys: ShardKeys) -> list[Damage]:
    """Read the log, and find where an entry is not the batch after the one before."""
    before: Heartbeat | None = None
    after = "-"
    while True:
        async with translated("looking for damage"):
            page: Any = await client.xrange(keys.log, min=after, max="+", count=LOG_PAGE)
        for entry_id, fields in page:
            after = f"({entry_id.decode()}"
            head = head_of((entry_id, fields))
            follows = before is None or (
                head is not None
                and (head.epoch, head.offset, head.previous_id)
                == (before.epoch, before.offset + 1, before.id)
            )
            if head is None or not follows:
                return [Damage(keys.log, f"entry {shown(entry_id)} does not follow the one before")]
            before = head
        if not page:
            return []


async def content_damages(client: Client, keys: ShardKeys, head: int) -> list[Damage]:
    """Read the full state; find fields that cannot be read, or are of later than the head was."""
    found = []
    greatest = 0
    async for names, fields in state_pages(client, keys):
        for name, one in zip(names, fields, strict=True):
            try:
                name.decode()
                offsets, _ = unpack_fields([name], [one])
                # Fields that are written meanwhile may be newer.
                greatest = max([greatest, *offsets])
            except (DecodeError, UnicodeDecodeError):
                what = f"the value of {shown(name)} cannot be read"
                found.append(Damage(keys.state, what, field=name, is_content=True))
    if greatest > head:
        async with translated("looking for damage"):
            (now,) = await client.hmget(keys.meta, ["offset"])
        if greatest > (number_or_none(now or b"0") or 0):  # type: ignore[arg-type]
            what = f"offset is {head}, the full state has a field of offset {greatest}"
            found.append(Damage(keys.meta, what))
    async with translated("looking for damage"):
        tables: Any = await client.hgetall(keys.tables)
    found += [
        Damage(keys.tables, f"the field {shown(name)} cannot be read", field=name, is_content=True)
        for name in unreadable_fields(tables)
    ]
    return found


def unreadable_fields(fields: Mapping[bytes, bytes]) -> list[bytes]:
    """Return the fields of a tables hash without which the others can be read."""
    if _is_readable(fields):
        return []
    found = []
    groups: dict[tuple[bytes, ...], dict[bytes, bytes]] = {}
    for name, one in fields.items():
        groups.setdefault(tuple(name.split(b":")[:2]), {})[name] = one
    for group in groups.values():
        if _is_readable(group):
            continue
        singles = group if len(group) <= MAX_SINGLES else ()
        alone = [one for one in singles if _is_readable({k: group[k] for k in group if k != one})]
        # Where no single field is at fault the whole table is.
        found += alone[:1] or list(group)
    return found


def _is_readable(fields: Mapping[bytes, bytes]) -> bool:
    tables = new_tables()
    try:
        if tables is not None:
            names = decode_keys(list(fields))
            tables.loaded(dict(zip(names, fields.values(), strict=True)), 0)
    except DecodeError:
        return False
    return True
