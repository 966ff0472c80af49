"""One shard's deltas in a producer, from the call to the chunk. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from broker.core.columns import Columns
from broker.core.compression import Compression
from broker.core.fast_path import Intake
from broker.core.key_ids import LaneNames
from broker.core.sent_chunks import SentChunks
from broker.protocol.frames import FrameWriter


@dataclass(slots=True)
class Lane:
    """The deltas of one shard.

    Attributes:
        shard: number of the shard.
        incarnation: of the node name; chunks are numbered for it.
        intake: deltas of the fast path, not in columns yet.
        names: the text keys of tables, and which of their ids are defined.
        reserved: bytes of the buffer that the fast path may use.
        longest: bytes of the longest delta of late; it falls by half whenever the intake moves on.
        open: columns that fill.
        closed: columns to be packed, the oldest first.
        sent: chunks from packing on.
        tickets: columns that were closed.
        number: of the last packed chunk.
        packed: deltas up to that chunk.
        compression: whether to compress its chunks.
        writer: compresses with the shard's dictionary; None: without one.
        buffered: deltas that were added.
        conflated: deltas that were dropped, because newer ones overwrite them.
        is_full: whether the shard takes only deletes, which the fast path does not know.
    """

    shard: int
    incarnation: int = 0
    intake: Intake = field(init=False)
    names: LaneNames = field(default_factory=LaneNames)
    reserved: int = 0
    longest: int = 1
    open: Columns = field(default_factory=Columns)
    closed: deque[Columns] = field(default_factory=deque)
    sent: SentChunks = field(default_factory=SentChunks)
    tickets: int = 0
    number: int = 0
    packed: int = 0
    compression: Compression = field(default_factory=Compression)
    writer: FrameWriter | None = None
    buffered: int = 0
    conflated: int = 0
    is_full: bool = False

    def __post_init__(self) -> None:
        """Give it an intake of its own."""
        self.intake = Intake(self.shard)

    def begin(self, incarnation: int) -> None:
        """Number chunks for this incarnation of the node name."""
        self.incarnation = incarnation

    @property
    def pending(self) -> int:
        """Deltas that Redis has not accepted yet."""
        return self.buffered - self.conflated - self.sent.accepted

    def close_open(self) -> Columns:
        """Close the open columns; return the new ones."""
        self.tickets += 1
        self.open.ticket = self.tickets
        self.closed.append(self.open)
        self.open = Columns()
        return self.open

    def mend(self) -> int:
        """Make columns and counters consistent after a call that was left at an unknown point.

        Returns:
            Upper bound of the bytes of what Redis has not accepted yet.
        """
        if self.closed and self.closed[-1] is self.open:
            self.open = Columns()
        for columns in (*self.closed, self.open):
            columns.recount()
        self.closed = deque(columns for columns in self.closed if columns.count)
        waiting = [columns for columns in (*self.closed, self.open) if columns.count]
        self.buffered = self.packed + self.conflated + sum(columns.count for columns in waiting)
        self.intake.limit = self.reserved = 0
        size = self.names.waiting_bytes + sum(columns.size for columns in waiting)
        return size + self.sent.unaccepted_bytes

    def drop_overwritten(self, columns: Columns, overwritten: set[str]) -> int:
        """Drop the deltas of columns that newer ones overwrite, see `Columns.conflate`.

        Returns:
            How many bytes that frees.
        """
        before = columns.size
        dropped = columns.conflate(overwritten)
        self.conflated += dropped
        return before - (columns.size if columns.count else 0) if dropped else 0

    def outstanding(self, ticket: int) -> bool:
        """Whether columns with this ticket or an older one still have to reach Redis."""
        return self.sent.outstanding(ticket) or (
            bool(self.closed) and self.closed[0].ticket <= ticket
        )
