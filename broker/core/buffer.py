"""A producer's deltas until Redis accepts them, and for a while after: it may lose them. No I/O.

Every shard has a lane: deltas gather in columns, full columns queue up, packed chunks are in
flight, and accepted chunks are kept for a while. The states of a delta:

    set() -> intake -> open columns -> closed columns -> chunk in flight -> kept -> dropped
                                           ^                                  |
                                           '---- resent on MISSING n, same number

Invariants:
1. A chunk's number and bytes never change once packed, so that Redis recognises a repeat.
2. Chunks are sent in the order of their numbers; those in flight follow each other.
3. `buffered = accepted + conflated + pending` for every lane. Lost deltas count as accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from broker.core.buffer_room import BufferRoom
from broker.core.chunk_size import CHUNK_HEAD_BYTES, RUN_BYTES
from broker.core.columns import Columns
from broker.core.exclusive import exclusive, reentrant_error
from broker.core.lane import Lane
from broker.core.packer import Packer
from broker.core.sent_chunks import Packed
from broker.errors import EncodeError
from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.constants import MAX_TABLES
from broker.protocol.frames import FrameReader
from broker.protocol.messages import TableKey, TableRun
from broker.protocol.names import shard_of
from broker.protocol.operations import OP_SET
from broker.protocol.table_codec import table_run_size
from broker.protocol.values import admit_key


class AddResult(Enum):
    """The result of adding deltas to the buffer."""

    WAKE = auto()  # buffered; wake the lane's sender: a first delta, or a full chunk
    BUFFERED = auto()  # buffered; the sender is awake or has a deadline
    NO_ROOM = auto()  # not buffered


# Globals are found faster than an enum's members.
_WAKE, _BUFFERED, _NO_ROOM = AddResult


@dataclass(frozen=True, slots=True)
class BufferCounts:
    """Counters over all shards; the fields of the same names of `ProducerStats` describe them."""

    buffered: int
    accepted: int
    conflated: int
    pending: int
    lost: int
    resent: int
    buffer_bytes: int


class ProducerBuffer(BufferRoom):
    """Bounded store of a producer's deltas for all shards; safe to call from many threads.

    Args:
        node: the writer's name, put into every chunk.
        shards: number of shards.
        max_bytes: upper bound of the bytes that Redis has not accepted yet.
        max_count: deltas after which a chunk is closed.
        chunk_bytes: bytes after which a chunk is closed.
        keep_s: seconds for which accepted chunks are kept.
        keep_bytes: bytes of accepted chunks that are kept, over all shards.
        conflates: leave out of each chunk the deltas that a newer set or delete in it overwrites.
        level: of the compression of chunks; 0: none.
    """

    def __init__(
        self,
        *,
        node: str,
        shards: int,
        max_bytes: int,
        max_count: int,
        chunk_bytes: int,
        keep_s: float,
        keep_bytes: int,
        conflates: bool = False,
        level: int = 0,
    ) -> None:
        super().__init__(shards, max_bytes, max_count, chunk_bytes)
        self.keep_s = keep_s
        self.keep_bytes = keep_bytes // shards
        self._packer = Packer(node, chunk_bytes, conflates=conflates, level=level)
        self._tables: set[TableKey] = set()
        self._places: dict[TableKey, dict[str, int]] = {}

    # -- adding deltas ----------------------------------------------------------------------------

    def add(  # noqa: PLR0917 - called for every delta, and keywords cost time
        self, shard: int, op: int, key: str, value: Any, size: int, stamp: int | None, now: float
    ) -> AddResult:
        """Buffer one admitted delta."""
        # As `exclusive` does, which would cost a quarter of this call.
        with self._lock:
            if self._is_entered:
                raise reentrant_error()
            try:
                self._is_entered = True
                self._now = now
                lane = self.lanes[shard]
                closed = self._gather(lane)
                columns = lane.open
                full = columns.count and columns.size + size + RUN_BYTES > self.chunk_bytes
                room = size + (CHUNK_HEAD_BYTES + RUN_BYTES if full else columns.overhead(op))
                if not self._has_room(room):
                    return _NO_ROOM
                if full:
                    columns = lane.close_open()
                first = not columns.count
                if first:
                    columns.since = now
                columns.append(op, key, value, stamp, size)
                self.bytes += room
                lane.longest = max(lane.longest, size)
                lane.buffered += 1
                if columns.count >= self.max_count:
                    lane.close_open()
                    return _WAKE
                self._grant(lane)
                return _WAKE if first or closed else _BUFFERED  # noqa: TRY300 - as early as above
            except BaseException:
                self.mend()
                raise
            finally:
                self._is_entered = False
                if self._put_off:
                    self.do_put_off()

    @exclusive
    def add_many(  # noqa: PLR0917 - as add
        self,
        shard: int,
        keys: Sequence[str],
        values: Sequence[Any],
        size: int,
        stamp: int | None,
        now: float,
    ) -> AddResult:
        """Buffer many sets in one chunk, so that they become visible at once."""
        return self._add_together(
            self.lanes[shard],
            len(keys),
            size + RUN_BYTES,
            now,
            lambda columns: columns.extend(OP_SET, keys, values, stamp, size),
        )

    def _add_together(
        self, lane: Lane, deltas: int, size: int, now: float, put: Callable[[Columns], None]
    ) -> AddResult:
        """Let `put` add deltas of `size` bytes to one lane's columns, all or none."""
        self._now = now
        closed = self._gather(lane)
        columns = lane.open
        full = columns.count and (
            columns.size + size > self.chunk_bytes or columns.count + deltas > self.max_count
        )
        first = full or not columns.count
        room = size + (CHUNK_HEAD_BYTES if first else 0)
        if not self._has_room(room):
            return _NO_ROOM
        if full:
            columns = lane.close_open()
        if first:
            columns.since = now
        put(columns)
        self.bytes += room
        lane.buffered += deltas
        if columns.count >= self.max_count or columns.size >= self.chunk_bytes:
            lane.close_open()
            return _WAKE
        self._grant(lane)
        return _WAKE if first or closed else _BUFFERED

    def admit_table(self, table: TableKey) -> None:
        """Note that this producer writes a table.

        Raises:
            EncodeError: it is one more than a shard may have.
        """
        if table not in self._tables:
            self._note_table(table)

    @exclusive
    def _note_table(self, table: TableKey) -> None:
        if len(self._tables) >= MAX_TABLES:
            raise EncodeError(
                f"table {table.name!r} is one more than the {MAX_TABLES} that a namespace may "
                "have; put what distinguishes the tables into the keys of one"
            )
        self._tables.add(table)

    @exclusive
    def intern(self, table: TableKey, keys: Iterable[str]) -> dict[str, int] | None:
        """Give an id to each text key that has none yet.

        Returns:
            key -> id x shards + shard, of this and every earlier call; None if there is no room:
            then nothing changed.

        Raises:
            EncodeError: a key cannot be sent; nothing changed.
        """
        places = self._places.setdefault(table, {})
        count = len(self.lanes)
        new = {key: (admit_key(key), shard_of(key, count)) for key in keys if key not in places}
        size = sum(one for one, _ in new.values())
        for shard in {shard for _, shard in new.values()}:
            size += self.lanes[shard].names.head_bytes(table)
        if new and not self._has_room(size):
            return None
        self.bytes += size
        for key, (one, shard) in new.items():
            places[key] = self.lanes[shard].names.add(table, key, one) * count + shard
        return places

    @exclusive
    def add_table_run(self, shard: int, run: TableRun, now: float) -> AddResult:
        """Buffer deltas of a table in one chunk, so that they become visible at once."""
        size = table_run_size(run)
        return self._add_together(
            self.lanes[shard],
            run.deltas,
            size,
            now,
            lambda columns: columns.add_table_run(run, size),
        )

    @exclusive
    def conflate(self) -> int:
        """Drop every waiting delta that a newer set or delete of its key overwrites.

        Returns:
            How many bytes that freed.
        """
        self._gather_all()
        before = self.bytes
        for lane in self.lanes:
            overwritten: set[str] = set()
            for columns in (lane.open, *reversed(lane.closed)):
                self.bytes -= lane.drop_overwritten(columns, overwritten)
            lane.closed = deque(columns for columns in lane.closed if columns.count)
        return before - self.bytes

    # -- sending ----------------------------------------------------------------------------------

    @exclusive
    def next_chunk(
        self, shard: int, now: float, linger: float, time_ms: int
    ) -> tuple[Packed | None, float | None]:
        """Return the next chunk to send, or how many seconds the open columns may still wait.

        The chunk is in flight until `accepted`, `requeue` or `rewind`. Those in flight follow each
        other, so they have to be sent in this order and on one connection.

        Returns:
            (chunk, None), or (None, seconds until the linger is over), or (None, None) if empty.
        """
        lane = self.lanes[shard]
        packed, wait = (
            (lane.sent.resend.popleft(), None)
            if lane.sent.resend
            else self._next_packed(lane, now, linger, time_ms)
        )
        if packed is not None:
            lane.sent.in_flight.append(packed)
        return packed, wait

    @exclusive
    def use_dictionary(self, shard: int, number: int, dictionary: bytes) -> None:
        """Compress the chunks of a shard with this dictionary from now on."""
        self._packer.use_dictionary(self.lanes[shard], number, dictionary)

    @exclusive
    def forgo_dictionary(self, shard: int, frames: FrameReader) -> None:
        """Redis lacks the dictionary of a chunk: send those that are to be sent again without one.

        They hold the same deltas: who read other bytes under the same number, before a server lost
        them, has the same.
        """
        lane = self.lanes[shard]
        self._packer.use_dictionary(lane, 0, b"")

        def plain(packed: Packed) -> Packed:
            if not packed.dictionary:
                return packed
            data = encode_chunk(decode_chunk(packed.data, frames))
            return replace(packed, data=data, saved=0, dictionary=0)

        self.bytes -= lane.sent.replace(plain)

    def is_behind(self, shard: int) -> bool:
        """Whether the lane has closed columns, or chunks to send again."""
        lane = self.lanes[shard]
        return bool(lane.closed or lane.sent.resend)

    def _next_packed(
        self, lane: Lane, now: float, linger: float, time_ms: int
    ) -> tuple[Packed | None, float | None]:
        self._now = now
        self._packer.time_ms = time_ms
        self._gather(lane)
        if not lane.closed:
            if not lane.open.count:
                # Ids alone may fill the buffer, and their deltas need room.
                if self._is_short and lane.names.waiting_bytes:
                    place = Columns(since=now, ticket=lane.tickets)
                    return self._counted(*self._packer.pack_ids(lane, place)), None
                return None, None
            wait = lane.open.since + linger - now
            if wait > 0:
                self._grant(lane)
                return None, wait
            lane.close_open()
        return self._counted(*self._packer.pack(lane)), None

    def _counted(self, packed: Packed, freed: int) -> Packed:
        self.bytes -= freed
        return packed

    @exclusive
    def accepted(self, shard: int, now: float) -> None:
        """Redis accepted the oldest chunk in flight, now or earlier: keep it for a while."""
        sent = self.lanes[shard].sent
        self.bytes -= sent.accept(now)
        sent.drop_expired(now - self.keep_s, self.keep_bytes)

    @exclusive
    def requeue(self, shard: int) -> None:
        """Send the chunks in flight again: it is unknown whether Redis accepted them."""
        self.lanes[shard].sent.requeue()

    @exclusive
    def accepted_so_far(self, shard: int) -> tuple[int, int]:
        """Return (last chunk number known as accepted, deltas up to it); later ones are sent again.

        For a record of this writer that was overwritten: what Redis accepted is still there.
        """
        lane = self.lanes[shard]
        lane.sent.requeue()
        if lane.sent.resend:
            first = lane.sent.resend[0]
            return first.number - 1, first.total - first.deltas
        return lane.number, lane.packed

    @exclusive
    def rewind(
        self, shard: int, number: int, server_deltas: int, now: float
    ) -> tuple[int, int, int]:
        """Redis answered that it has no chunk of this lane from `number` on.

        Kept chunks from there on will be sent again. Chunks no longer kept are counted as lost.

        Args:
            shard: the lane.
            number: first chunk number that Redis does not have.
            server_deltas: deltas of this incarnation that Redis does have.
            now: monotonic seconds.

        Returns:
            (chunk number before the first that can be sent again, deltas up to there, deltas lost).
            The number is `number - 1` if nothing is lost.
        """
        lane = self.lanes[shard]
        sent = lane.sent
        sent.drop_expired(now - self.keep_s, self.keep_bytes)
        sent.rewind(number)
        if sent.resend:
            first = sent.resend[0]
            base_number, base_total = first.number - 1, first.total - first.deltas
        else:
            base_number, base_total = lane.number, lane.packed
        lost = sent.lose(server_deltas, base_total)
        if base_number < number:
            return base_number, base_total, lost
        if sent.resend:
            base_number -= self._packer.define_again(lane, number, base_number, base_total)
        else:
            self.bytes += lane.names.requeue(number)
        return base_number, base_total, lost

    @exclusive
    def close_all(self) -> list[int]:
        """Close all open columns, so that everything buffered is sent without lingering.

        Returns:
            For each lane the ticket of its last columns, for `is_accepted`.
        """
        self._gather_all()
        for lane in self.lanes:
            if lane.open.count:
                lane.close_open()
        return [lane.tickets for lane in self.lanes]

    @exclusive
    def is_accepted(self, tickets: Iterable[int]) -> bool:
        """Whether Redis has accepted everything up to these tickets, one for each lane."""
        return not any(
            lane.outstanding(ticket) for lane, ticket in zip(self.lanes, tickets, strict=True)
        )

    @exclusive
    def reached(self) -> list[int]:
        """Return for each lane the chunk number up to which Redis has accepted everything."""
        return [lane.sent.reached(lane.number) for lane in self.lanes]

    @property
    @exclusive
    def pending(self) -> int:
        """Deltas that Redis has not accepted yet, over all shards."""
        self._gather_all()
        return sum(lane.pending for lane in self.lanes)

    @exclusive
    def counts(self) -> BufferCounts:
        """Return counters over all shards: `buffered = accepted + conflated + pending`."""
        self._gather_all()
        sent = [lane.sent for lane in self.lanes]
        return BufferCounts(
            buffered=sum(lane.buffered for lane in self.lanes),
            accepted=sum(one.accepted for one in sent),
            conflated=sum(lane.conflated for lane in self.lanes),
            pending=sum(lane.pending for lane in self.lanes),
            lost=sum(one.lost for one in sent),
            resent=sum(one.resent for one in sent),
            buffer_bytes=self.bytes,
        )
