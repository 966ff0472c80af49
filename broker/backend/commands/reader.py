"""The command that only reads: single key ranges of the full state."""

from __future__ import annotations

from collections.abc import Collection

from broker.backend.commands.scripts import Scripts
from broker.protocol.names import ShardKeys


class ReaderCommands(Scripts):
    """What the verifier and the self-check call."""

    async def state_ranges(
        self, keys: ShardKeys, cursor: str, count: int, ranges: Collection[int]
    ) -> tuple[str, list[bytes], list[bytes]]:
        """Read the fields of certain key ranges in one page: (next cursor, keys, fields)."""
        text = " ".join(f"{at:02x}" for at in sorted(ranges))
        reply = await self.run("state_ranges", [keys.state], cursor, count, text)
        return reply[0].decode(), reply[1::2], reply[2::2]
