"""The commands that only read: the full state, as sums by key range and as single ranges."""

from __future__ import annotations

from collections.abc import Collection

from broker.backend.commands.scripts import Scripts
from broker.backend.replies import StateSums
from broker.protocol.names import ShardKeys


class ReaderCommands(Scripts):
    """What the verifier and the self-check call."""

    async def state_sums(self, keys: ShardKeys, cursor: str, count: int) -> StateSums:
        """Compute the sums of one page of the full-state hash by key range, on the server."""
        reply = await self.run("state_sums", [keys.state], cursor, count)
        numbers = list(map(int, reply[2:]))
        return StateSums(
            reply[0].decode(),
            reply[1],
            {
                at: (high << 32) + low
                for at, high, low in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
            },
        )

    async def state_ranges(
        self, keys: ShardKeys, cursor: str, count: int, ranges: Collection[int]
    ) -> tuple[str, list[bytes], list[bytes]]:
        """Read the fields of certain key ranges in one page: (next cursor, keys, fields)."""
        text = " ".join(f"{at:02x}" for at in sorted(ranges))
        reply = await self.run("state_ranges", [keys.state], cursor, count, text)
        return reply[0].decode(), reply[1::2], reply[2::2]
