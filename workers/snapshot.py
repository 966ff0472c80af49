"""The snapshot worker: folds the log into the full-state hash, at the cost of the changes.

1. It may crash at any step: fields carry their offset, and the position is moved last. The next
   scheduler reads the same log again and skips what a field already contains.
2. A backlog is folded and committed in portions, so that memory is bounded and progress is kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

from broker.backend import page_sizes, queries
from broker.backend.commands import lease_lost_error
from broker.backend.replies import Lease
from broker.backend.session import Session
from broker.core.fold import BadChunk
from broker.core.tables import need_numpy, new_tables
from broker.engine.log_reader import log_pages
from broker.engine.net_changes import NetChanges
from broker.errors import DecodeError
from broker.protocol.constants import BATCH_ID_BYTES
from broker.protocol.digest import Digest
from broker.protocol.fields import content_in, contents_in, pack_fields
from broker.protocol.messages import Head, LogEntry, Position
from broker.protocol.names import ShardKeys
from broker.protocol.state_bounds import StateBounds, StateFull
from broker.runtime import clock
from workers.mending import Mender
from workers.unreadable import UnreadableFields

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

log = logging.getLogger(__name__)

DEAD_LIMIT = 1000
DEAD_BYTES = 16 << 10
SHOWN_KEYS = 5
TABLES_CHECK_S = 60.0  # where tables have more than a megabyte
CUT_THRESHOLD = 0.5  # share of the log limit above which the retention is ignored


@dataclass(slots=True)
class Written:
    """The result of one round: batches folded, keys set and deleted, duration."""

    offset: int = 0
    batches: int = 0
    sets: int = 0
    deletes: int = 0
    seconds: float = 0.0


class SnapshotWorker:
    """Writes one shard's full state, incrementally, under a lease.

    Args:
        session: connected, namespace created or joined.
        shard: number of the shard.
        holder: name of this scheduler.
        lease_ttl: seconds for which the lease lasts without renewal.
        log_retention: seconds for which log entries are kept after a snapshot contains them.
        log_limit: bytes; above half of this the retention is ignored.
        bounds: of the shard's state.
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
        bounds: StateBounds | None = None,
    ) -> None:
        self.shard = shard
        self.holder = holder
        self.fence = 0
        self.reason = ""
        self.committed_at = 0.0
        self._session = session
        self._keys: ShardKeys = session.keys[shard]
        self._ttl_ms = round(lease_ttl * 1000)
        self._lease = Lease(holder, 0, self._ttl_ms, b"")
        self._retention = log_retention
        self._limit = log_limit
        self._bounds = bounds or StateBounds()
        self._is_compared = False
        self._full: StateFull | None = None
        self._damage_told: set[str] = set()
        self.unreadable_fields = UnreadableFields()
        self._mender = Mender(session, self._keys, self.unreadable_fields)
        self._surplus: list[str] = []
        self._check_at = 0.0
        self._committed: deque[tuple[float, int]] = deque()
        self._cut_to = 0
        self._last: tuple[bytes, int] | None = None
        # Who left, and an append number that none of its chunks is above.
        self._left: dict[tuple[str, int], int] = {}
        # Kept between rounds, since folding needs the slots of their keys; None: not loaded.
        self._tables: ShardTables | None = None
        self._tables_at = Position()

    async def renew(self) -> bool:
        """Acquire or renew the lease; false if another scheduler holds it."""
        before = self.fence
        self.fence = await self._session.commands.lease_take(
            self._keys, self.holder, self._ttl_ms, self.reason
        )
        if self.fence and self.fence != before:
            # The holder before may have noted bounds of its own.
            self._is_compared = False
            self._committed.clear()
            self._cut_to = 0
            log.info("lease_taken shard=%d fence=%d", self.shard, self.fence)
        elif before and not self.fence:
            log.warning("lease_lost shard=%d", self.shard)
        return bool(self.fence)

    async def release(self) -> None:
        """Release the lease so that another scheduler can take over at once."""
        if self.fence:
            fence, self.fence = self.fence, 0
            await self._session.commands.lease_release(self._keys, self.holder, fence)
        else:
            await self._session.commands.remove_worker(self._keys, self.holder)

    async def write_once(self) -> Written | None:
        """Update the hash to the head; None if there was nothing to do or the lease is not held.

        Raises:
            FencedError: the lease was lost; the next holder continues from the last commit.
            BackendError: Redis failed; the next round continues.
        """
        started = clock.now()
        if not await self.renew():
            return None
        client = self._session.client
        known = self._tables.producers() if self._tables is not None else set()
        # Read before the head, so that everything they wrote is before it. A node that came back
        # has a new incarnation, which is not in `known`.
        appends = await queries.gone_nodes(client, self._keys, {node for node, _ in known})
        self._left = {
            who: self._left.get(who, appends[who[0]]) for who in known if who[0] in appends
        }
        head = (await queries.log_page(client, self._keys, 0, 0)).head
        if head is None:
            return None
        # What they had pending when they were first seen to have left is published.
        gone = {who for who, append in self._left.items() if append <= head.covered}
        if (head.snapshot.epoch, head.snapshot.offset) != self._last:
            # The history was rewritten: noted offsets belong to other batches.
            self._committed.clear()
            self._cut_to = 0
            self._last = (head.snapshot.epoch, head.snapshot.offset)
        if not self._committed and head.log_bytes and self._cut_to < head.snapshot.offset:
            # What a scheduler before left: its age is not known, so it counts from now on.
            self._committed.append((clock.now(), head.snapshot.offset))
        await self.unreadable_fields.read_again(client, self._keys)
        await self._mender.look()
        await self._mender.mend(head, self._new_lease())
        pressed = self._is_half_full(head)
        mends = await self._check_tables(head)
        if not mends and not await self._has_work(head, pressed=pressed):
            return None
        written = Written()
        at = head.snapshot
        while True:
            changes, batches = await self._fold(at, head)
            if changes.tables is not None and changes.position.offset >= head.position.offset:
                changes.tables.end(gone, changes.position.offset)
            sets, deletes = await self._write_pages(changes)
            await self._commit(changes, pressed=pressed)
            at = changes.position
            written.offset = at.offset
            written.batches += batches
            written.sets += sets
            written.deletes += deletes
            if at.offset >= head.position.offset:
                break
        written.seconds = clock.now() - started
        log.info(
            "snapshot_written shard=%d offset=%d batches=%d sets=%d deletes=%d seconds=%.3f",
            *(self.shard, written.offset, written.batches, written.sets, written.deletes),
            written.seconds,
        )
        return written

    async def compare_with_bounds(self) -> None:
        """Note whether the state that was written is above a bound, for producers.

        Without bounds once for each lease: what the holder before noted goes.

        Raises:
            BackendError: Redis failed.
        """
        if not self.fence or (self._is_compared and self._bounds == StateBounds()):
            return
        before = self._full
        self._full = await queries.note_full_state(self._session.client, self._keys, self._bounds)
        self._is_compared = True
        if self._full is not None and before is None:
            log.error(
                "state_full shard=%d holds=%s fix=delete keys or raise the bound",
                *(self.shard, self._full),
            )
        elif before is not None and self._full is None:
            log.info("state_has_room shard=%d", self.shard)

    async def is_log_half_full(self) -> bool:
        """Whether the log is more than half full.

        Raises:
            BackendError: Redis failed.
        """
        head = (await queries.log_page(self._session.client, self._keys, 0, 0)).head
        return head is not None and self._is_half_full(head)

    def _is_half_full(self, head: Head) -> bool:
        return head.log_bytes > self._limit * CUT_THRESHOLD

    async def _has_work(self, head: Head, *, pressed: bool) -> bool:
        if head.position.offset > head.snapshot.offset:
            return True
        if pressed and self._cut_to < head.snapshot.offset:
            return True
        if self._is_expired(clock.now()):
            return True
        marks = await queries.state_marks(self._session.client, self._keys)
        if marks is None or not marks.snapshot.offset:
            return False
        has_tables = self._tables is not None and bool(self._tables.entries)
        return marks.digest is None or (has_tables and marks.tables_digest is None)

    async def _tables_of(self, at: Position) -> ShardTables | None:
        """Return the tables of the full state at a position; the caller may change them."""
        tables, self._tables = self._tables, None
        if tables is None or self._tables_at != at:
            fields = await queries.table_fields(self._session.client, self._keys)
            if fields:
                need_numpy()
            # In a thread: the first call imports numpy, which would delay a flush worker.
            tables = await asyncio.to_thread(new_tables, tracks=True)
            if tables is not None:
                tables = tables.loaded(fields, at.offset, tracks=True)
                self._tell_damaged_tables(tables)
                self.unreadable_fields.loaded(key.name for key in tables.damaged)
        return tables

    async def _fold(self, start: Position, head: Head) -> tuple[NetChanges, int]:
        """Fold a portion of the log after `start`, up to the head, into net changes."""
        fence = self.fence
        changes = NetChanges.since(start, self._session.frames, await self._tables_of(start))
        batches = 0
        # A portion must reach `fold_to`, up to where another scheduler wrote pages: otherwise it
        # could write a newer value of a key under its own, older offset.
        replay = changes.replay
        pages = log_pages(
            *(self._session.client, self._keys, replay),
            goal=lambda: head.position,
            batches=page_sizes.LOG_OF_SCHEDULER,
            frames=self._session.frames,
        )
        async with aclosing(pages):
            async for page in pages:
                for entry in replay.until(head.position, page.entries):
                    await self._fold_batch(changes, entry)
                    batches += 1
                if changes.table_deltas:
                    need_numpy()
                # Renew during a long fold; a newly acquired lease does not cover what was read
                # before.
                await self.renew()
                if self.fence != fence:
                    raise lease_lost_error(self.holder)
                is_full = len(changes.touched) >= page_sizes.PORTION_KEYS
                if is_full and replay.position.offset >= head.fold_to:
                    break
        return changes, batches

    async def _fold_batch(self, changes: NetChanges, entry: LogEntry) -> None:
        await changes.take(self._session.client, self._keys, entry)

    async def _write_pages(self, changes: NetChanges) -> tuple[int, int]:
        """Write the net changes page by page; every page checks and renews the lease."""
        lease = self._new_lease()
        commands = self._session.commands
        known, of_tables = await commands.snapshot_begin(self._keys, lease, changes.position)
        digest = await self._digest_from(known)
        self._tell_damage(changes.damaged)
        self.unreadable_fields.folded(changes)
        # In the order in which they lie in memory: that halves the time of a page.
        held, cells = [*changes.values], [*changes.values.values()]
        # A damaged field stays: somebody may still mend it, and what it held is not known.
        absent = [*changes.touched.difference(changes.values, changes.damaged)]
        sets = deletes = 0
        # At least one page, which writes the digest.
        for first in range(0, max(1, len(held) + len(absent)), page_sizes.KEYS):
            page = slice(first, first + page_sizes.KEYS)
            rest = slice(max(0, first - len(held)), max(0, page.stop - len(held)))
            keys, over = [*map(str.encode, held[page])], [*map(str.encode, absent[rest])]
            gone = await self._take_out([*keys, *over], len(keys), digest)
            fields = pack_fields(keys, changes.position.offset, cells[page], digest)
            pairs = [*zip(keys, fields, strict=True)]
            await commands.snapshot_page(self._keys, lease, bytes(digest), pairs, gone)
            lease = lease.after_page()
            sets += len(pairs)
            deletes += len(gone)
        self._lease = lease
        if changes.tables is not None:
            sets += await self._write_tables(changes, changes.tables, of_tables)
        return sets, deletes

    async def _take_out(self, keys: list[bytes], kept: int, digest: Digest) -> list[bytes]:
        """Take the entries of a page's fields out of the digest; return those to delete.

        Args:
            keys: of the page.
            kept: how many of them, from the first, get a field again.
            digest: changed in place.
        """
        if not keys:
            return []
        fields = await queries.state_fields(self._session.client, self._keys, keys)
        held = [(key, one) for key, one in zip(keys, fields, strict=True) if one is not None]
        digest.add_all([key for key, _ in held], contents_in([one for _, one in held]), -1)
        return [key for key, _ in held[kept - fields[:kept].count(None) :]]

    def _new_lease(self) -> Lease:
        return Lease(self.holder, self.fence, self._ttl_ms, os.urandom(BATCH_ID_BYTES))

    async def _write_tables(
        self, changes: NetChanges, tables: ShardTables, known: bytes | None
    ) -> int:
        """Write the changed fields of the tables in order; return how many.

        Args:
            changes: what was folded.
            tables: at its position.
            known: digest of the tables hash; None: it is not known.
        """
        digest = queries.digest_or_none(known)
        is_new = digest is None and bool(tables.entries)
        if digest is None:
            digest = tables.digest_of_fields()
        page: list[tuple[str, bytes]] = []
        size = written = 0
        for one in tables.changed_fields(changes.position.offset):
            page.append(one)
            size += len(one[1])
            written += 1
            if size > page_sizes.BYTES:
                tables.count(page, digest)
                await self._write_table_page(bytes(digest), page, [])
                page, size = [], 0
        # Ids that the remaining log uses stay, for readers that still load an earlier full state.
        over = [*tables.over(self._cut_to), *self._surplus]
        if page or over or is_new:
            tables.count(page, digest)
            await self._write_table_page(bytes(digest), page, over)
        tables.clean(self._cut_to)
        return written

    def _tell_damaged_tables(self, tables: ShardTables) -> None:
        """Log the damaged tables; their fields stay, and their deltas are left out."""
        for key, fault in tables.damaged.items():
            log.error(
                "table_damaged shard=%d table=%s kind=%s fault=%s fix=statebroker verify --accept",
                *(self.shard, key.name, key.kind, fault),
            )

    async def _check_tables(self, head: Head) -> bool:
        """Compare the tables that this scheduler wrote with those that are there.

        Returns:
            Whether some were lost or altered; they are written again with this full state.
        """
        tables = self._tables
        self._surplus = []
        if tables is None or self._tables_at != head.snapshot or clock.now() < self._check_at:
            return False
        if head.fold_to > head.snapshot.offset:
            return False
        fields = await queries.table_fields(self._session.client, self._keys)
        if sum(map(len, fields.values())) > page_sizes.BYTES:
            self._check_at = clock.now() + TABLES_CHECK_S
        surplus = tables.mark_damage(fields, head.snapshot.offset)
        if surplus is None:
            return False
        self._surplus = surplus
        for name in surplus:
            # No scheduler wrote them, so the digest does not count them.
            tables.entries.pop(name, None)
        log.error(
            "tables_altered shard=%d surplus=%d fix=they are written again",
            *(self.shard, len(surplus)),
        )
        return True

    def _tell_damage(self, keys: set[str]) -> None:
        """Log the damaged fields of the full state that were not logged before."""
        new = keys - self._damage_told
        self._damage_told = set(keys)
        if new:
            log.error(
                "fields_damaged shard=%d keys=%d first=%s fix=write them again, then run "
                "statebroker verify --accept",
                *(self.shard, len(new), ascii(sorted(new)[:SHOWN_KEYS])),
            )

    async def _digest_from(self, known: bytes | None) -> Digest:
        """Return the digest that Redis has; computed again if it has none, or a damaged one."""
        try:
            return await self._digest_of_state() if known is None else Digest.of_bytes(known)
        except DecodeError as error:
            log.warning("digest_damaged shard=%d error=%s", self.shard, error)
            return await self._digest_of_state()

    async def _write_table_page(
        self, digest: bytes, page: list[tuple[str, bytes]], over: list[str]
    ) -> None:
        await self._session.commands.snapshot_page(
            self._keys, self._lease, digest, page, over, of_tables=True
        )
        self._lease = self._lease.after_page()

    async def _digest_of_state(self) -> Digest:
        """Compute the digest of the whole hash, if it is missing."""
        digest, seen = Digest(), set[bytes]()
        async for names, fields in queries.state_pages(self._session.client, self._keys):
            for name, one in zip(names, fields, strict=True):
                if name not in seen:
                    seen.add(name)
                    digest.add(name, content_in(one))
            await self.renew()
        log.info("digest_made shard=%d keys=%d", self.shard, len(seen))
        return digest

    async def _commit(self, changes: NetChanges, *, pressed: bool) -> None:
        position, now = changes.position, clock.now()
        for node, one in changes.bad:
            log.error(
                "chunk_skipped node=%s shard=%d offset=%d index=%d bytes=%d fault=%s",
                *(node, self.shard, one.offset, one.index, len(one.data), one.fault),
            )
        cut = self._cut(now, position.offset, pressed=pressed)
        await self._session.commands.snapshot_commit(
            self._keys,
            self.shard,
            self._lease,
            position,
            changes.previous_id,
            cut=cut,
            dead_limit=DEAD_LIMIT,
            dead=[_dead_letter(node, one) for node, one in changes.bad],
        )
        self._cut_to = cut
        self._last = (position.epoch, position.offset)
        # Damaged ones are read again: somebody may have mended them.
        is_whole = changes.tables is None or not changes.tables.damaged
        self._tables, self._tables_at = (changes.tables if is_whole else None), position
        self.committed_at = now
        if position.offset > cut:
            # What was cut leaves nothing to cut later: an idle log is written to no more.
            is_noted = bool(self._committed) and self._committed[-1][1] == position.offset
            if not is_noted:
                self._committed.append((now, position.offset))

    def _cut(self, now: float, offset: int, *, pressed: bool) -> int:
        """Return the offset to cut the log at: by retention, or everything if pressed."""
        cut = self._cut_to
        while self._is_expired(now):
            cut = self._committed.popleft()[1]
        return offset if pressed else cut

    def _is_expired(self, now: float) -> bool:
        """Whether the oldest full state that was noted is older than the retention."""
        return bool(self._committed) and self._committed[0][0] <= now - self._retention


def _dead_letter(node: str, bad: BadChunk) -> bytes:
    """Return the dead letter of an invalid chunk: place, fault, node and the first bytes."""
    letter = [bad.offset, bad.index, bad.fault, node, bad.data[:DEAD_BYTES]]
    return msgpack.packb(letter)  # type: ignore[no-any-return]
