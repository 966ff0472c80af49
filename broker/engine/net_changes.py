"""The changes of the full state by a part of the log, key by key: to write it, and to prove it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from broker.backend import page_sizes, queries
from broker.backend.topology import Client
from broker.core.fold import BadChunk, fold
from broker.core.replay import LogReplay
from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk
from broker.protocol.constants import BULK_BYTES
from broker.protocol.fields import read_page
from broker.protocol.frames import FrameReader, size_within
from broker.protocol.messages import Cell, Chunk, LogEntry, Position
from broker.protocol.names import ShardKeys
from broker.protocol.operations import OPERATIONS

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables


@dataclass(slots=True)
class NetChanges:
    """The outcome of the batches after a snapshot, for the keys they touch.

    Correct even if the hash is half written: each field has an offset, and deltas up to it are
    skipped.

    Attributes:
        replay: of the log; `position` is its place.
        previous_id: batch id before that position's.
        values: what touched keys hold at the position; deleted ones are absent.
        floors: key -> offset up to which the hash held it when it was read; only where larger
            offsets than the snapshot's were found does it matter.
        touched: every key that a delta named.
        damaged: those of them whose field cannot be read, and that nothing overwrote since: they
            stay as they are.
        bad: chunks that broke a rule, each with its node.
        tables: changed as well; None: deltas for tables are left out.
        table_deltas: whether there were deltas for tables.
        start: offset after which it begins.
        frames: opens compressed chunks; None: the namespace lacks the word `compress`.
    """

    replay: LogReplay
    previous_id: bytes
    values: dict[str, Cell] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    bad: list[tuple[str, BadChunk]] = field(default_factory=list)
    tables: ShardTables | None = None
    table_deltas: bool = False
    start: int = 0
    frames: FrameReader | None = None

    @classmethod
    def since(
        cls, position: Position, frames: FrameReader | None, tables: ShardTables | None = None
    ) -> NetChanges:
        """Begin with nothing changed; `tables` are those of the position."""
        replay, at = LogReplay(position), position
        return cls(replay, at.batch_id, tables=tables, start=at.offset, frames=frames)

    @property
    def position(self) -> Position:
        """The position up to which batches were folded."""
        return self.replay.position

    async def take(self, client: Client, keys: ShardKeys, entry: LogEntry) -> None:
        """Fold the next batch of the log; reads what its increments (and the like) go on from.

        Args:
            client: to read with.
            keys: the shard.
            entry: of the log.

        Raises:
            DecodeError: it is not the batch after `position`.
            BackendError: Redis failed. After either error this object must not be used.
        """
        previous_id = self.position.batch_id
        batch = self.replay.take(entry)
        for index, chunk_data in enumerate(batch.chunks):
            # A batch may take half a second on a slow processor: let other tasks run, such as a
            # stop, or a flush worker in the same process.
            await asyncio.sleep(0)
            try:
                # A large one takes as long as its bytes are many, up to seconds: in a thread, so
                # that a flush worker in the same process goes on.
                is_large = size_within(chunk_data) >= BULK_BYTES
                chunk = (
                    await asyncio.to_thread(decode_chunk, chunk_data, self.frames)
                    if is_large
                    else decode_chunk(chunk_data, self.frames)
                )
            except DecodeError as error:
                self._note(entry.nodes, batch.offset, index, chunk_data, str(error))
                continue
            await self._read_bases(client, keys, chunk)
            self.table_deltas |= bool(chunk.tables or chunk.tables_fault)
            note = partial(self._note, entry.nodes, batch.offset, index, chunk_data)
            fold(
                *(self.values, batch, (chunk,), self.floors),
                damaged=self.damaged,
                tables=self.tables,
                note_fault=note,
            )
            for run in chunk.runs:
                self.touched.update(run.keys)
        self.previous_id = previous_id

    def _note(self, names: Sequence[str], offset: int, index: int, data: bytes, fault: str) -> None:
        node = names[index] if index < len(names) else ""
        self.bad.append((node, BadChunk(offset, index, fault, data)))

    async def _read_bases(self, client: Client, keys: ShardKeys, chunk: Chunk) -> None:
        """Fetch what increments add to: keys whose first delta since the snapshot is one.

        Also the offset of every such field: it is beyond the snapshot if a scheduler was killed
        after writing pages.
        """
        names: dict[str, None] = {}
        for run in chunk.runs:
            if not OPERATIONS[run.op].overwrites:
                names |= dict.fromkeys(run.keys)
        wanted = [name for name in names if name not in self.touched]
        for first in range(0, len(wanted), page_sizes.KEYS):
            page = wanted[first : first + page_sizes.KEYS]
            fields = await queries.state_fields(client, keys, page)
            found = [(name, one) for name, one in zip(page, fields, strict=True) if one is not None]
            if found:
                read = read_page([name.encode() for name, _ in found], [one for _, one in found])
                for name, offset, value in zip(read.names, read.offsets, read.cells, strict=True):
                    self.values[name] = value
                    self.floors[name] = offset
                self.damaged.update(name.decode() for name in read.damaged)
