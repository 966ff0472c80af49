"""Where a packet stands in relation to the history that a shard holds. No I/O."""

from __future__ import annotations

from typing import Final

from broker.core.transitions import Event
from broker.protocol.messages import Batch, Heartbeat, Packet, Position

RECENT_IDS: Final = 4096


class RecentIds:
    """The ids of the last batches of a shard, by offset; bounded.

    Offsets alone cannot distinguish a rewritten history from the one that is held.
    """

    def __init__(self) -> None:
        self._ids: dict[int, bytes] = {}

    def __len__(self) -> int:
        """How many ids are kept."""
        return len(self._ids)

    def add(self, batch: Batch) -> None:
        """Add the next batch of the history."""
        self._ids[batch.offset] = batch.id
        self._ids.pop(batch.offset - RECENT_IDS, None)

    def clear(self) -> None:
        """Forget all: ids of another history must not make one of its batches a duplicate."""
        self._ids.clear()

    def classify(self, packet: Packet, position: Position) -> Event:  # noqa: PLR0911 - one a rule
        """Return which event a packet is for a shard at this position."""
        if packet.epoch != position.epoch:
            return Event.FORK
        if packet.offset == position.offset:
            if packet.id != position.batch_id:
                return Event.FORK
            return Event.CURRENT if isinstance(packet, Heartbeat) else Event.DUPLICATE
        if packet.offset < position.offset:
            known = self._ids.get(packet.offset)
            if isinstance(packet, Heartbeat) or known is None:
                return Event.BEHIND
            return Event.DUPLICATE if known == packet.id else Event.FORK
        if isinstance(packet, Batch) and packet.offset == position.offset + 1:
            return Event.NEXT if packet.previous_id == position.batch_id else Event.FORK
        return Event.GAP
