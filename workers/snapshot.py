"""The snapshot worker: folds the log into the full-state hash. Cost follows what changed.

Crash at any step: pages written are marked with their offset, the position is moved last; the next
scheduler reads the same log again and skips, key by key, what a field already holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgpack

from broker import reads
from broker.aio.session import Session
from broker.codec import decode_packet, pack_field, unpack_fields
from broker.errors import BackendError, DecodeError
from broker.fold import BadChunk, decode_chunks, fold
from broker.keys import ShardKeys
from broker.lua import lease_lost
from broker.model import Batch, Chunk, Position
from broker.protocol import OP_INCREMENT

log = logging.getLogger(__name__)

LOG_PAGE_BATCHES = 8  # a page is decoded in one go, and flush workers may share this process
PAGE_KEYS = 1000
DEAD_LIMIT = 1000
DEAD_BYTES = 16 << 10
CUT_PRESSURE = 0.5  # share of the log's limit above which retention gives way


@dataclass(slots=True)
class _Fold:
    """Net changes since the last snapshot, on their way into the hash."""

    fence: int
    position: Position
    previous_id: bytes
    values: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    bad: list[tuple[str, BadChunk]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Written:
    """What one snapshot did: batches folded, keys set and deleted, seconds it took."""

    offset: int
    batches: int
    sets: int
    deletes: int
    seconds: float


class SnapshotWorker:
    """Writes one shard's full state, incrementally, under a lease.

    Args:
        session: connected, namespace made or joined.
        shard: number of the shard.
        holder: this scheduler's name.
        lease_ttl: seconds for which the lease lasts without renewal.
        log_retention: seconds for which the log outlives the snapshot that holds it.
        log_limit: bytes of log above half of which retention gives way.
    """

    def __init__(
        self,
        session: Session,
        shard: int,
        holder: str,
        *,
        lease_ttl: float,
        log_retention: float,
        log_limit: int,
    ) -> None:
        self.shard = shard
        self.holder = holder
        self.fence = 0
        self._session = session
        self._keys: ShardKeys = session.keys[shard]
        self._ttl_ms = round(lease_ttl * 1000)
        self._retention = log_retention
        self._limit = log_limit
        self._committed: deque[tuple[float, int]] = deque()
        self._cut_to = 0
        self._last: tuple[bytes, int] | None = None

    async def renew(self) -> bool:
        """Take or keep the lease; false if another scheduler holds it."""
        before = self.fence
        self.fence = await self._session.commands.lease_take(self._keys, self.holder, self._ttl_ms)
        if self.fence and self.fence != before:
            self._committed.clear()
            self._cut_to = 0
            log.info("lease_taken shard=%d fence=%d", self.shard, self.fence)
        elif before and not self.fence:
            log.warning("lease_lost shard=%d", self.shard)
        return bool(self.fence)

    async def release(self) -> None:
        """Give the lease back so that another scheduler can take over at once."""
        if self.fence:
            fence, self.fence = self.fence, 0
            await self._session.commands.lease_release(self._keys, self.holder, fence)
        else:
            await self._session.commands.sign_off(self._keys, self.holder)

    async def write_once(self) -> Written | None:
        """Bring the hash up to the head; None if there was nothing to do or it is not our turn.

        Raises:
            FencedError: the lease was lost on the way; the next holder goes on from what is there.
            BackendError: Redis failed; likewise.
        """
        started = time.monotonic()
        if not await self.renew():
            return None
        head = (await reads.log_page(self._session.client, self._keys, 0, 0)).head
        if head is None:
            return None
        if (head.snapshot.epoch, head.snapshot.offset) != self._last:
            # Another life of the shard, or cut back: offsets noted before mean other batches now.
            self._committed.clear()
            self._cut_to = 0
        pressed = head.log_bytes > self._limit * CUT_PRESSURE
        if head.position.offset <= head.snapshot.offset and not (
            pressed and self._cut_to < head.snapshot.offset
        ):
            return None
        folded, batches = await self._fold(head.snapshot, head.position.offset)
        sets, deletes = await self._write_pages(folded)
        await self._commit(folded, pressed=pressed)
        written = Written(
            folded.position.offset, batches, sets, deletes, time.monotonic() - started
        )
        log.info(
            "snapshot_written shard=%d offset=%d batches=%d sets=%d deletes=%d seconds=%.3f",
            *(self.shard, written.offset, batches, sets, deletes, written.seconds),
        )
        return written

    async def _fold(self, start: Position, head: int) -> tuple[_Fold, int]:
        """Read the log from the snapshot to the head and fold it to net changes."""
        folded = _Fold(self.fence, start, start.batch_id)
        batches = 0
        while folded.position.offset < head:
            page = await reads.log_page(
                self._session.client, self._keys, folded.position.offset, LOG_PAGE_BATCHES
            )
            if not page.entries:
                raise BackendError(
                    f"the log of shard {self.shard} has nothing after offset "
                    f"{folded.position.offset}, its head is {head}; was the log deleted by hand?"
                )
            for data, nodes in zip(page.entries, page.nodes, strict=True):
                await self._fold_batch(folded, data, nodes)
                batches += 1
                # A stop, and flush workers of this process, get their turn.
                await asyncio.sleep(0)
            # A long fold must not cost us the lease; one taken anew does not cover what was read.
            await self.renew()
            if self.fence != folded.fence:
                raise lease_lost(self.holder)
        return folded, batches

    async def _fold_batch(self, folded: _Fold, data: bytes, nodes: list[str]) -> None:
        batch = decode_packet(data)
        if not isinstance(batch, Batch) or batch.previous_id != folded.position.batch_id:
            raise DecodeError(
                f"the log of shard {self.shard} does not continue at offset "
                f"{folded.position.offset + 1}"
            )
        chunks, bad = decode_chunks(batch)
        await self._read_bases(folded, chunks)
        fold(folded.values, batch, chunks, folded.floors)
        folded.touched.update(key for chunk in chunks for run in chunk.runs for key in run.keys)
        folded.bad += [(nodes[one.index] if one.index < len(nodes) else "", one) for one in bad]
        folded.previous_id = folded.position.batch_id
        folded.position = batch.position

    async def _read_bases(self, folded: _Fold, chunks: list[Chunk]) -> None:
        """Fetch what increments add to: keys whose first delta since the snapshot is one.

        Also the offset of every such field, which is beyond the snapshot where a scheduler died
        after writing pages.
        """
        names: dict[str, None] = {}
        for chunk in chunks:
            for run in chunk.runs:
                if run.op == OP_INCREMENT:
                    names |= dict.fromkeys(run.keys)
        wanted = [name for name in names if name not in folded.touched]
        for first in range(0, len(wanted), PAGE_KEYS):
            page = wanted[first : first + PAGE_KEYS]
            fields = await reads.state_fields(self._session.client, self._keys, page)
            found = [(name, one) for name, one in zip(page, fields, strict=True) if one is not None]
            if found:
                offsets, values = unpack_fields([one for _, one in found])
                for (name, _), offset, value in zip(found, offsets, values, strict=True):
                    folded.values[name] = value
                    folded.floors[name] = offset

    async def _write_pages(self, folded: _Fold) -> tuple[int, int]:
        """Write the net changes, a page at a time; every page checks the lease."""
        offset = folded.position.offset
        names = list(folded.touched)
        sets = deletes = 0
        for first in range(0, len(names), PAGE_KEYS):
            page = names[first : first + PAGE_KEYS]
            fields = [
                (name, pack_field(offset, folded.values[name]))
                for name in page
                if name in folded.values
            ]
            gone = [name for name in page if name not in folded.values]
            await self._check_history(folded.position)
            await self._session.commands.snapshot_page(
                self._keys, self.holder, folded.fence, fields, gone
            )
            sets += len(fields)
            deletes += len(gone)
        return sets, deletes

    async def _check_history(self, position: Position) -> None:
        """Return if the position is (still) in the shard's history.

        A server that came back with less hands out the same lease again: it does not tell.

        Raises:
            BackendError: it is not; what was folded must not be written.
        """
        page = await reads.log_page(self._session.client, self._keys, position.offset - 1, 1)
        found = decode_packet(page.entries[0]).position if page.entries else None
        if page.head is None or found != position:
            raise BackendError(
                f"the history of shard {self.shard} was rewritten while its full state was being "
                f"written; offset {position.offset} is not what it was"
            )

    async def _commit(self, folded: _Fold, *, pressed: bool) -> None:
        position, now = folded.position, time.monotonic()
        for node, one in folded.bad:
            log.error(
                "chunk_skipped node=%s shard=%d offset=%d index=%d bytes=%d fault=%s",
                *(node, self.shard, one.offset, one.index, len(one.data), one.fault),
            )
        cut = self._cut(now, position.offset, pressed=pressed)
        await self._session.commands.snapshot_commit(
            self._keys,
            self.shard,
            self.holder,
            folded.fence,
            epoch=position.epoch,
            offset=position.offset,
            batch_id=position.batch_id,
            previous_id=folded.previous_id,
            cut=cut,
            dead_limit=DEAD_LIMIT,
            dead=[_dead_letter(node, one) for node, one in folded.bad],
        )
        self._cut_to = cut
        self._last = (position.epoch, position.offset)
        self._committed.append((now, position.offset))

    def _cut(self, now: float, offset: int, *, pressed: bool) -> int:
        """Up to which offset the log may go: by age of the snapshots, or all if it is big."""
        cut = self._cut_to
        while self._committed and self._committed[0][0] <= now - self._retention:
            cut = self._committed.popleft()[1]
        return offset if pressed else cut


def _dead_letter(node: str, bad: BadChunk) -> bytes:
    """Return what is kept of a chunk that broke a rule: where it was, why, whose, its bytes."""
    letter = [bad.offset, bad.index, bad.fault, node, bad.data[:DEAD_BYTES]]
    return msgpack.packb(letter)  # type: ignore[no-any-return]
