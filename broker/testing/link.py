"""One connection through a fault proxy: forward requests, replies and messages."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable

from broker.testing import resp
from broker.testing.switches import Direction, Faults, Loss

READ_BYTES = 1 << 16
STALL_POLL_S = 0.02
MAX_HELD_BACK_S = 0.3


class Link:
    """Forwards frames, and applies the faults that are switched on.

    Args:
        faults: the switches, read for every frame.
        counts: counters of the applied faults.
        chance: source of random choices.
        sever: closes both connections.
    """

    def __init__(
        self,
        faults: Faults,
        counts: Counter[str],
        chance: random.Random,
        sever: Callable[[], None],
    ) -> None:
        self._faults = faults
        self._counts = counts
        self._chance = chance
        self._sever = sever
        # For each command in flight: whether to drop its reply.
        self._expected: deque[bool] = deque()
        self._held_back: bytes | None = None
        self._drops_requests = False

    async def requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        """Forward requests until either end closes."""
        frames = resp.Frames()
        while data := await self._arrived(reader, self._faults.to_server):
            for frame in frames.feed(data):
                name = resp.command(frame)
                if name not in resp.SUBSCRIBING:
                    if self._drops_requests or _is_hit(self._faults.lost_requests, name, frame):
                        self._counts["requests_lost"] += 1
                        self._drops_requests = True
                        continue
                    self._expected.append(_is_hit(self._faults.lost_replies, name, frame))
                await self._write(server, frame, self._faults.to_server)

    async def replies(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Forward replies and messages until either end closes."""
        frames = resp.Frames()
        while True:
            patience = MAX_HELD_BACK_S if self._held_back else None
            data = await self._arrived(reader, self._faults.to_client, patience)
            if data is None:
                # No other message arrived that could overtake it.
                await self._write_held_back(client)
                continue
            if not data:
                return
            for frame in frames.feed(data):
                if resp.is_message(frame):
                    await self._message(client, frame)
                elif resp.is_confirmation(frame):
                    await self._write(client, frame, self._faults.to_client)
                elif self._expected and self._expected.popleft():
                    self._counts["replies_lost"] += 1
                    self._sever()
                    return
                else:
                    await self._write(client, frame, self._faults.to_client)

    async def _message(self, client: asyncio.StreamWriter, frame: bytes) -> None:
        faults = self._faults
        self._counts["messages"] += 1
        if self._chance.random() < faults.drop_messages:
            self._counts["messages_dropped"] += 1
            return
        if self._held_back is None and self._chance.random() < faults.reorder_messages:
            self._counts["messages_reordered"] += 1
            self._held_back = frame
            return
        await self._write(client, frame, faults.to_client)
        if self._chance.random() < faults.repeat_messages:
            self._counts["messages_repeated"] += 1
            await self._write(client, frame, faults.to_client)
        await self._write_held_back(client)

    async def _write_held_back(self, client: asyncio.StreamWriter) -> None:
        held, self._held_back = self._held_back, None
        if held is not None:
            await self._write(client, held, self._faults.to_client)

    async def _arrived(
        self, reader: asyncio.StreamReader, direction: Direction, patience: float | None = None
    ) -> bytes | None:
        try:
            async with asyncio.timeout(patience):
                data = await reader.read(READ_BYTES)
        except TimeoutError:
            return None
        if direction.delay:
            self._counts["delayed"] += 1
            await asyncio.sleep(direction.delay)
        self._counts["stalled"] += direction.stall
        while direction.stall:  # noqa: ASYNC110 - a switch is set from any thread
            await asyncio.sleep(STALL_POLL_S)
        return data

    async def _write(
        self, writer: asyncio.StreamWriter, frame: bytes, direction: Direction
    ) -> None:
        counter = "bytes_to_client" if direction is self._faults.to_client else "bytes_to_server"
        self._counts[counter] += len(frame)
        if not direction.split:
            writer.write(frame)
            await writer.drain()
            return
        self._counts["split"] += 1
        at = 0
        while at < len(frame):
            size = self._chance.randint(1, direction.split)
            writer.write(frame[at : at + size])
            await writer.drain()
            # Yield to the loop, so that the parts arrive separately.
            await asyncio.sleep(0)
            at += size


def _is_hit(losses: list[Loss], name: bytes, frame: bytes) -> bool:
    # A copy: the list is changed from any thread.
    return any(loss.matches(name, frame) for loss in list(losses))
