"""How a producer's columns, and the ids that they use, become numbered chunks. No I/O."""

from __future__ import annotations

from typing import Final

from broker.core.chunk_size import CHUNK_HEAD_BYTES
from broker.core.columns import Columns
from broker.core.compression import MIN_BYTES, MIN_BYTES_WITH_DICTIONARY, Compression
from broker.core.lane import Lane
from broker.core.sent_chunks import Packed
from broker.protocol.codec import encode_chunk, encode_compressed
from broker.protocol.constants import MAX_CHUNK_BYTES
from broker.protocol.frames import FrameWriter
from broker.protocol.messages import Chunk, Run, TableOp
from broker.protocol.table_codec import merged

DEFINED_ALONG_BYTES: Final = 64 << 10  # of ids in a chunk that carries deltas
DEFINED_ALONE_BYTES: Final = 1 << 20
DEFINED_AGAIN_BYTES: Final = 2 << 20


class Packer:
    """Packs chunks for all lanes of a producer; a chunk's number and bytes never change after.

    Each method returns by how many bytes the buffer becomes smaller: from packing on the exact size
    counts, not the upper bound of the columns.

    Args:
        node: the writer's name, put into every chunk.
        chunk_bytes: columns are joined up to this size.
        conflates: leave out of each chunk the deltas that a newer set or delete in it overwrites.
        level: of the compression; 0: chunks are not compressed.

    Attributes:
        time_ms: wall clock, put into every chunk.
    """

    def __init__(self, node: str, chunk_bytes: int, *, conflates: bool, level: int = 0) -> None:
        self.node = node
        self.chunk_bytes = chunk_bytes
        self.conflates = conflates
        self.time_ms = 0
        self._level = level
        self._writer = FrameWriter(level) if level else None
        self._with_dictionary: FrameWriter | None = None

    def pack(self, lane: Lane) -> tuple[Packed, int]:
        """Pack the next chunk of a lane with closed columns.

        Its ids come first, in a chunk of their own if more wait than fit beside the columns.
        """
        first = lane.closed[0]
        along = max(0, min(DEFINED_ALONG_BYTES, MAX_CHUNK_BYTES - first.size))
        if lane.names.waiting_bytes > along:
            return self.pack_ids(lane, Columns(since=first.since, ticket=first.ticket))
        columns, freed = self._next_columns(lane)
        packed, more = self._pack(lane, columns, DEFINED_ALONG_BYTES)
        return packed, freed + more

    def pack_ids(self, lane: Lane, place: Columns) -> tuple[Packed, int]:
        """Pack a chunk of ids alone, with age and ticket of empty columns."""
        return self._pack(lane, place, DEFINED_ALONE_BYTES)

    def _next_columns(self, lane: Lane) -> tuple[Columns, int]:
        columns, freed = lane.closed.popleft(), 0
        # In a backlog, joining columns saves chunks: each costs the same, whatever it holds.
        most = min(self.chunk_bytes, MAX_CHUNK_BYTES - lane.names.waiting_bytes)
        while lane.closed and columns.size + lane.closed[0].size <= most:
            columns.join(lane.closed.popleft())
            freed += CHUNK_HEAD_BYTES
        if self.conflates:
            freed += lane.drop_overwritten(columns, set())
        return columns, freed

    def _pack(self, lane: Lane, columns: Columns, define_bytes: int) -> tuple[Packed, int]:
        lane.number += 1
        lane.packed += columns.count
        names, before = lane.names, lane.names.defined
        defines, size = names.take(lane.number, define_bytes) if names.waiting_bytes else ([], 0)
        tables = [*defines, *merged(columns.tables)]
        content = columns.size + size - CHUNK_HEAD_BYTES
        encoded = self._encoded(lane, lane.number, columns.runs, tables, content)
        packed = Packed(
            *(lane.number, columns.count, lane.packed, columns.since, columns.ticket, *encoded),
            defined=before,
        )
        # Columns made only for ids were not counted yet.
        return packed, size + (columns.size if columns.count else 0) - len(packed.data)

    def use_dictionary(self, lane: Lane, number: int, dictionary: bytes) -> None:
        """Compress the chunks of a lane with a dictionary from now on; 0: with none."""
        known = self._with_dictionary
        if number and (known is None or known.number != number):
            # The lanes have the same one, so one compressor is enough.
            known = self._with_dictionary = FrameWriter(self._level, dictionary, number)
        lane.writer = known if number else None
        lane.compression = Compression(MIN_BYTES_WITH_DICTIONARY if number else MIN_BYTES)

    def define_again(self, lane: Lane, number: int, base_number: int, base_total: int) -> int:
        """Define the ids again that the lost chunks from `number` to `base_number` defined.

        The chunks that are sent again use these ids. The new chunks take the last of the lost
        numbers. There are enough numbers, as the new chunks are packed more densely.

        Returns:
            How many chunks were put before those that are sent again.
        """
        first = lane.sent.resend[0]
        made = [
            Packed(
                *(at, 0, base_total, first.since, first.ticket),
                *self._encoded(lane, at, [], defines, DEFINED_AGAIN_BYTES),
                before,
            )
            for at, defines, before in lane.names.again(
                number, base_number, first.defined, DEFINED_AGAIN_BYTES
            )
        ]
        lane.sent.resend.extendleft(reversed(made))
        return len(made)

    def _encoded(
        self, lane: Lane, number: int, runs: list[Run], tables: list[TableOp], size: int
    ) -> tuple[bytes, int, int]:
        """Return a chunk of runs and tables, how many bytes compression saved, its dictionary.

        `size` is about how many bytes they have.
        """
        chunk = Chunk(self.node, lane.incarnation, number, self.time_ms, runs, tables)
        if self._writer is None or not lane.compression.is_due(size):
            return encode_chunk(chunk), 0, 0
        writer = lane.writer or self._writer
        data, saved = encode_compressed(chunk, writer)
        lane.compression.tried(saved)
        return data, saved, writer.number if saved else 0
