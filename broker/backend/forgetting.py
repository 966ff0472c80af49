"""The script that forgets writers; for administrators, and no part of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Literal

from broker.backend.commands import Commands
from broker.backend.connections import translated
from broker.backend.stored import node_name
from broker.protocol.names import ShardKeys

PAGE: Final = 500  # nodes in one call, which blocks the server for about a millisecond


class Verdict(StrEnum):
    """What the script says of one writer; `forget.lua` explains each."""

    GONE = "GONE"
    UNREAD = "UNREAD"
    BUSY = "BUSY"
    AHEAD = "AHEAD"
    NOTED = "NOTED"
    WAITS = "WAITS"
    ASKED = "ASKED"
    LIVES = "LIVES"
    FORGOTTEN = "FORGOTTEN"


async def writers_of(commands: Commands, keys: ShardKeys) -> list[str]:
    """Return the nodes that have a record, or a note of one, in a shard."""
    async with translated("reading the writers"):
        found: dict[bytes, bytes] = await commands.client.hgetall(keys.intake)  # type: ignore[assignment]
        noted: dict[bytes, bytes] = await commands.client.hgetall(keys.idle)  # type: ignore[assignment]
    return sorted(node for name in found.keys() | noted.keys() if (node := node_name(name)))


async def judge(
    commands: Commands,
    keys: ShardKeys,
    nodes: Sequence[str],
    *,
    step: Literal["ask", "forget"],
    age_ms: int,
    asking: str,
) -> dict[str, Verdict]:
    """Take a step with each writer of a shard: `forget.lua` explains the steps and verdicts.

    Args:
        commands: with the rights of `statebroker acl admin`.
        keys: the shard.
        nodes: with or without a record.
        step: note idle writers and ask them; or forget those asked that did not answer.
        age_ms: how long a record has to be the same.
        asking: random text without spaces, the same for both steps.
    """
    found: dict[str, Verdict] = {}
    for first in range(0, len(nodes), PAGE):
        page = nodes[first : first + PAGE]
        reply = await commands.run_for_admin(
            "forget", [keys.intake, keys.idle], step, age_ms, asking, *page
        )
        found |= {node: Verdict(one.decode()) for node, one in zip(page, reply, strict=True)}
    return found
