"""The room of a producer's buffer, and how the fast path gets its part of it. No I/O.

Invariants:
1. Only a call makes `bytes` grow, and it checks the limit first. Packing makes it smaller.
2. The fast path adds no more than was reserved for it before, lane by lane.
3. The deltas in a lane's intake move into its columns before anything else is added, closed,
   counted or sent. So the order is that of the calls.
"""

from __future__ import annotations

from broker.core.chunk_size import RUN_BYTES
from broker.core.exclusive import Exclusive, exclusive
from broker.core.fast_path import LONG, MAX_PLAIN, ROW_BYTES, SHORT, PlainKeys, plain_size
from broker.core.lane import Lane


class BufferRoom(Exclusive):
    """The lanes of a producer, and how many bytes they hold and may still take.

    Args:
        shards: number of shards.
        max_bytes: upper bound of the bytes that Redis has not accepted yet.
        max_count: deltas after which a chunk is closed.
        chunk_bytes: bytes after which a chunk is closed.

    Attributes:
        lanes: one for each shard.
        bytes: upper bound of what Redis has not accepted yet, without what is reserved.
        plain_keys: of the fast path.
    """

    def __init__(self, shards: int, max_bytes: int, max_count: int, chunk_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.max_count = max_count
        self.chunk_bytes = chunk_bytes
        self.lanes = [Lane(shard) for shard in range(shards)]
        self.bytes = 0
        self.plain_keys = PlainKeys([lane.intake for lane in self.lanes])
        self._reserved = 0
        self._is_shut = False
        self._is_short = False
        self._is_forced = False
        self._now = 0.0

    def limit_count(self, max_count: int) -> None:
        """Close chunks after so many deltas from now on."""
        self.max_count = max_count

    @exclusive
    def shut(self) -> None:
        """Close the fast path, so that each later write takes the path that raises the reason."""
        self._is_shut = True
        self._gather_all()

    @exclusive
    def mark_full(self, shard: int, is_full: bool) -> None:  # noqa: FBT001 - as `exclusive` calls
        """Close a shard's fast path while it takes only deletes, so that writes ask before."""
        self.lanes[shard].is_full = is_full
        self._gather(self.lanes[shard])

    def shut_in_child(self) -> None:
        """Likewise in a forked child, where a thread of the parent may have held the lock."""
        self._is_shut = True
        for lane in self.lanes:
            lane.intake.limit = 0

    def mend(self) -> None:
        """Make it consistent after a call that was left at an unknown point, as by SystemExit."""
        self.bytes = sum(lane.mend() for lane in self.lanes)
        self._reserved = 0

    def do_put_off(self) -> None:
        """Do the writes of signal handlers; they get room in any case, as nobody can wait."""
        self._is_forced = True
        try:
            super().do_put_off()
        finally:
            self._is_forced = False

    def _gather_all(self) -> None:
        for lane in self.lanes:
            self._gather(lane)

    def _gather(self, lane: Lane) -> bool:
        """Move the intake's deltas into the columns; true if that closed some columns."""
        intake = lane.intake
        intake.limit = 0
        self._reserved -= lane.reserved
        lane.reserved = 0
        if not intake.items:
            return False
        keys, values = intake.columns()
        gathered = len(keys)
        tickets = lane.tickets
        if not lane.open.count:
            # They were added just after the columns were closed.
            lane.open.since = self._now
        while keys:
            columns = lane.open
            before = columns.size if columns.count else 0
            room = max(1, self.max_count - columns.count)
            rest = keys[room:], values[room:]
            if rest[0]:
                # Racing threads added a few more than there was room for.
                del keys[room:], values[room:]
            size, longest = plain_size(keys, values)
            lane.longest = max(longest, lane.longest // 2)
            if columns.count and columns.size + size + RUN_BYTES > self.chunk_bytes:
                # Each racing thread may add a long one.
                since, columns, before = columns.since, lane.close_open(), 0
                columns.since = since
            columns.extend_plain(keys, values, size)
            self.bytes += columns.size - before
            lane.buffered += len(keys)
            keys, values = rest
            if columns.count >= self.max_count:
                lane.close_open().since = columns.since
        intake.drop(gathered)
        return lane.tickets != tickets

    def _grant(self, lane: Lane) -> None:
        """Open the fast path for as many deltas as surely fit into the open columns and buffer."""
        columns, share = lane.open, len(self.lanes)
        # The next power of two: what a service writes has about the same length again and again.
        longest = min(LONG, max(SHORT, 1 << (lane.longest - 1).bit_length()))
        each = SHORT + ROW_BYTES + longest
        most = min(
            MAX_PLAIN,
            self.max_count - columns.count,
            (self.chunk_bytes - columns.size - RUN_BYTES) // each,
            ((self.max_bytes - self.bytes - self._reserved) // share - RUN_BYTES) // each,
        )
        if most > 0 and columns.count and not self._is_shut and not lane.is_full:
            lane.reserved = most * each + RUN_BYTES
            self._reserved += lane.reserved
            lane.intake.longest = longest
            lane.intake.limit = 2 * most

    def _has_room(self, size: int) -> bool:
        if self._is_forced:
            return True
        # An empty buffer accepts a call of any size, even one above its limit.
        if self.bytes and self.bytes + self._reserved + size > self.max_bytes:
            # This frees the room that other lanes reserved for their fast path.
            self._gather_all()
        self._is_short = self.bytes != 0 and self.bytes + self._reserved + size > self.max_bytes
        return not self._is_short
