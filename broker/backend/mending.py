"""The script that mends a shard; for administrators, and no part of the protocol."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from broker.backend.commands import Commands
from broker.protocol.constants import BATCH_ID_BYTES, EPOCH_BYTES
from broker.protocol.names import ShardKeys

FIRST_CONTENT: Final = 4  # of the script's KEYS: state, then tables


async def mend(
    commands: Commands,
    keys: ShardKeys,
    greatest: int,
    removals: Sequence[tuple[str, bytes | None]],
) -> list[str]:
    """Write again what can be derived from the rest of a shard; return what was done, in lines.

    Args:
        commands: with the rights of `statebroker acl admin`.
        keys: the shard.
        greatest: offset of a field of the full-state hash that stays.
        removals: content that cannot be read: its key, and the field or None for all of it. If
            there is any, a new epoch begins: else replicas that have what is lost would differ for
            good from those that load.
    """
    content = [keys.state, keys.tables]
    removed: list[str | bytes | float] = []
    for key, field in removals:
        place = FIRST_CONTENT + content.index(key)
        removed += ["DEL", place, b""] if field is None else ["HDEL", place, field]
    reply = await commands.run_for_admin(
        "repair",
        [keys.meta, keys.queue, keys.log, *content, keys.intake],
        os.urandom(EPOCH_BYTES),
        os.urandom(BATCH_ID_BYTES),
        greatest,
        int(bool(removals)),
        len(removals),
        *removed,
    )
    return [line.decode(errors="replace") for line in reply]
