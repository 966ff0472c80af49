"""What the log proves of keys at a position: for those whose field of the full state is damaged."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing

from broker.backend import page_sizes, queries
from broker.backend.session import Session
from broker.engine.log_reader import LogMovedError, log_pages
from broker.engine.net_changes import NetChanges
from broker.errors import DecodeError
from broker.model import ABSENT, Absent
from broker.protocol.codec import decode_head
from broker.protocol.messages import Cell, Position
from broker.protocol.names import ShardKeys


async def proved_by_log(
    session: Session, keys: ShardKeys, at: Position, names: Collection[str]
) -> dict[str, Cell | Absent]:
    """Return what some keys hold at a position, as far as the retained log proves it.

    It does where it has a set or a delete of the key, and everything since can be read: before that
    nothing matters, and after it nothing is unknown.

    Args:
        session: to read with.
        keys: the shard.
        at: a position of the log.
        names: keys whose fields cannot be read. What else the log has is not of interest.

    Returns:
        By key; those that are not proved are missing. Empty if the log does not lead to `at`.

    Raises:
        BackendError: Redis failed.
    """
    client, frames = session.client, session.frames
    first = (await queries.log_page(client, keys, 0, 1)).entries
    try:
        head = decode_head(first[0].packet) if first else None
    except DecodeError:
        head = None
    if head is None or head.epoch != at.epoch or head.offset > at.offset:
        return {}
    start = Position(head.epoch, head.offset - 1, head.previous_id)
    changes = NetChanges.since(start, frames)
    pages = log_pages(
        *(client, keys, changes.replay, lambda: at),
        batches=page_sizes.LOG_OF_SCHEDULER,
        frames=frames,
    )
    try:
        async with aclosing(pages):
            async for page in pages:
                for entry in changes.replay.until(at, page.entries):
                    await changes.take(client, keys, entry)
    except (DecodeError, LogMovedError):
        return {}
    if changes.bad:
        # What it held is not known here; others may have heard it whole.
        return {}
    proved = (changes.touched - changes.damaged).intersection(names)
    return {name: changes.values.get(name, ABSENT) for name in proved}
