"""The script that mends a shard; for administrators, and no part of the protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files

from broker.backend.commands import Commands
from broker.protocol.constants import BATCH_ID_BYTES, EPOCH_BYTES
from broker.protocol.names import ShardKeys


async def mend(
    commands: Commands, keys: ShardKeys, greatest: int, nodes: Sequence[str], *, is_new: bool
) -> list[str]:
    """Write again what can be derived from the rest of a shard; return what was done, in lines.

    Args:
        commands: with the rights of `statebroker acl admin`.
        keys: the shard.
        greatest: offset of a field of the full-state hash.
        nodes: whose pending lists are looked at.
        is_new: begin a new epoch in any case.
    """
    text = files("broker.backend").joinpath("repair.lua").read_text("utf-8")
    sha = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - how Redis names scripts
    reply = await commands.run_text(
        "repair",
        text,
        sha,
        [keys.meta, keys.order, keys.log, *map(keys.pending, nodes)],
        os.urandom(EPOCH_BYTES),
        os.urandom(BATCH_ID_BYTES),
        greatest,
        int(is_new),
        *nodes,
    )
    return [line.decode(errors="replace") for line in reply]
