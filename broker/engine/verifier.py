"""Proof that a copy of a shard is what Redis' history says, on a running system.

It compares digests at one position. Only key ranges that differ are read, and nothing is
written. The rules are PROTOCOL.md's, "Proof".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Any

from broker.backend import page_sizes, queries
from broker.backend.session import Session
from broker.core.fold import decode_chunks, fold
from broker.core.replay import LogReplay
from broker.core.tables import made_tables
from broker.engine.log_reader import LogMovedError, log_pages
from broker.engine.net_changes import NetChanges
from broker.engine.state_copy import StateCopy
from broker.errors import BrokerError, DecodeError
from broker.protocol.digest import DIGEST_BYTES, Digest, range_of
from broker.protocol.fields import content_in, content_of, contents_in, name_of, read_page
from broker.protocol.messages import Batch, Cell, LogEntry, Position
from broker.protocol.names import ShardKeys

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables


class SnapshotMovedError(BrokerError):
    """Redis no longer has the history at this position: compare again with a newer copy."""


class Verifier:
    """Finds the differences between a copy of one shard and Redis.

    Args:
        session: connected, the namespace known.
        shard: number of the shard.

    Attributes:
        bytes_read: of digests, log and fields, so far.
        has_table_deltas: whether the log that `differing` read had anything for tables.
        damaged: keys, in the ranges read so far, whose fields cannot be read.
        altered_tables: blocks of the tables read last that are not what schedulers wrote.
        tables_digest: of the tables at the position that `differing` compared at; None where it is
            not known without reading them.
    """

    def __init__(self, session: Session, shard: int) -> None:
        self._client = session.client
        self._commands = session.commands
        self._keys = session.keys[shard]
        self._frames = session.frames
        self._shard = shard
        self.bytes_read = 0
        self.has_table_deltas = False
        self.damaged: set[str] = set()
        self.altered_tables: tuple[str, ...] = ()
        self.tables_digest: Digest | None = None

    async def differing(self, held: StateCopy, position: Position) -> set[int]:
        """Return the key ranges in which a copy differs from the history at `position`.

        Args:
            held: of the shard.
            position: of the copy.

        Raises:
            SnapshotMovedError: Redis does not have the history there (any more).
            BackendError: Redis failed.
        """
        expected = await self._digest_at(position)
        return (await held.digest()).differing(expected)

    async def _digest_at(self, position: Position) -> Digest:
        start = await self._marks(position)
        changes = NetChanges.since(start.snapshot, self._frames)
        async for entries in self._log(changes.replay, lambda: position):
            for entry in changes.replay.until(position, entries):
                await self._take(changes, entry)
        self.has_table_deltas |= changes.table_deltas
        before = await self._marks(position)
        digest = self._known(before)
        names = list(changes.touched)
        for first in range(0, len(names), page_sizes.KEYS):
            page = names[first : first + page_sizes.KEYS]
            fields = await queries.state_fields(self._client, self._keys, page)
            for name, one in zip(page, fields, strict=True):
                if name in changes.damaged:
                    # Its field stays as it is.
                    continue
                if one is not None:
                    self.bytes_read += len(one)
                    digest.add(name, content_in(one), -1)
                if name in changes.values:
                    digest.add(name, content_of(changes.values[name]))
            await asyncio.sleep(0)
        if await self._marks(position) != before:
            raise SnapshotMovedError(f"{self._keys.state} was written meanwhile")
        # What the log changed in tables cannot be told without their keys.
        self.tables_digest = None if changes.table_deltas else before.tables_digest
        return digest

    async def content(
        self, ranges: Collection[int], until: Callable[[], Position]
    ) -> tuple[dict[str, Any], Position]:
        """Return the content of key ranges at a position of the history, and that position.

        Keys that are `damaged` are not in it.

        Args:
            ranges: which; nothing else is read.
            until: returns the position, called after each read of the log. Between its last call
                and the return nothing is awaited.

        Raises:
            SnapshotMovedError: the position is behind the full state, or not in the history.
            BackendError: Redis failed.
        """
        run = await queries.server_identity(self._client, self._keys)
        at = (await self._marks(until())).snapshot
        values, floors, _ = await self._fields(ranges)
        damaged = self.damaged
        await queries.ensure_same_server(self._client, self._keys, run)
        at = await self._replay(
            at,
            until,
            lambda batch: self._fold(values, floors, batch, None, damaged),
            self._keys.state,
        )
        return {key: values[key] for key in values if range_of(key) in ranges}, at

    async def _replay(
        self,
        at: Position,
        until: Callable[[], Position],
        fold_one: Callable[[Batch], object],
        name: str,
    ) -> Position:
        """Fold the log from `at` to a position, and return that; arguments as `content`.

        Called after the fields of the hash `name` were read, so that none of them is newer.
        """
        fold_to = (await self._marks(until())).fold_to
        replay = LogReplay(at)
        async for entries in self._log(replay, until):
            for entry in replay.until(until(), entries):
                try:
                    fold_one(replay.take(entry))
                except DecodeError as error:
                    raise SnapshotMovedError(str(error)) from None
        if fold_to > replay.position.offset:
            raise SnapshotMovedError(f"{name} is beyond offset {replay.position.offset} already")
        return replay.position

    async def has_tables(self) -> bool:
        """Whether the full state, or the log that `differing` read, has data of tables."""
        return self.has_table_deltas or await queries.has_tables(self._client, self._keys)

    async def tables(self, until: Callable[[], Position]) -> ShardTables:
        """Return the tables at a position of the history.

        They are read whole, for they are small: 8 to 16 bytes a key. Those that are damaged are
        named in them. Arguments and errors as `content`; needs numpy.
        """
        # Before the position: it may not be valid for another server's fields.
        run = await queries.server_identity(self._client, self._keys)
        marks = await self._marks(until())
        at = marks.snapshot
        tables = await self._stored_tables(marks, run)
        await self._replay(
            at, until, lambda batch: self._fold({}, {}, batch, tables), self._keys.tables
        )
        return tables

    async def doubted_tables(self) -> tuple[str, ...]:
        """Return what of the tables hash cannot be read, or is not what schedulers wrote.

        Needs numpy. Errors as `altered`.
        """
        run = await queries.server_identity(self._client, self._keys)
        marks = await queries.state_marks(self._client, self._keys)
        return () if marks is None else self.doubts_of(await self._stored_tables(marks, run))

    def doubts_of(self, stored: ShardTables) -> tuple[str, ...]:
        """Return what of the tables that were read last is in doubt, for people."""
        return (
            *(
                f"table {key.name} ({key.kind}) of shard {self._shard}: {fault}"
                for key, fault in stored.damaged.items()
            ),
            *(
                f"{rows} of shard {self._shard}: not what schedulers wrote"
                for rows in self.altered_tables
            ),
        )

    async def _stored_tables(self, marks: queries.StateMarks, run: Any) -> ShardTables:
        """Return the tables hash as it is, and note what of it no scheduler wrote.

        Args:
            marks: read before.
            run: `server_identity`, read before that.
        """
        fields = await queries.table_fields(self._client, self._keys, run)
        if await queries.state_marks(self._client, self._keys) != marks:
            raise SnapshotMovedError(f"{self._keys.tables} was written meanwhile")
        self.bytes_read += sum(map(len, fields.values()))
        tables = made_tables().loaded(fields, marks.snapshot.offset)
        self.altered_tables = tables.altered(fields, marks.tables_digest or Digest())
        if marks.tables_digest is None and self.altered_tables:
            raise _without_digest(self._keys)
        return tables

    async def altered(self) -> dict[int, list[str]]:
        """Return key ranges in which the full-state hash differs from what schedulers wrote.

        Each comes with its keys. It is read whole; ranges that differ once more.

        Raises:
            SnapshotMovedError: the hash was written meanwhile.
            BackendError: Redis failed.
        """
        run = await queries.server_identity(self._client, self._keys)
        before = await queries.state_marks(self._client, self._keys)
        if before is None:
            return {}
        known = self._known(before)
        found_now = Digest()
        async for names, fields in queries.state_pages(self._client, self._keys, run):
            self.bytes_read += sum(map(len, fields))
            found_now.add_all(names, contents_in(fields))
        # HSCAN may name a field twice: what is left after each was counted once is true.
        suspects = found_now.differing(known)
        found: dict[int, list[str]] = {}
        if suspects:
            values, _, digest = await self._fields(suspects)
            found = {at: [] for at in sorted(digest.differing(known) & suspects)}
            for key in sorted({*values, *self.damaged}):
                if (at := range_of(key)) in found:
                    found[at].append(key)
        await queries.ensure_same_server(self._client, self._keys, run)
        if await queries.state_marks(self._client, self._keys) != before:
            raise SnapshotMovedError(f"{self._keys.state} was written meanwhile")
        return found

    async def _fields(
        self, ranges: Collection[int]
    ) -> tuple[dict[str, Any], dict[str, int], Digest]:
        """Read the fields of key ranges: values, floors, and the digest of their bytes."""
        values: dict[str, Cell] = {}
        floors: dict[str, int] = {}
        digest, seen = Digest(), set[bytes]()
        cursor = "0"
        while True:
            cursor, names, fields = await self._commands.state_ranges(
                self._keys, cursor, page_sizes.SCANNED_FIELDS, ranges
            )
            if fields:
                self.bytes_read += sum(map(len, fields))
                page = read_page(names, fields)
                values.update(zip(page.names, page.cells, strict=True))
                floors.update(zip(page.names, page.offsets, strict=True))
                self.damaged.difference_update(page.names)
                self.damaged.update(name_of(key) for key in page.damaged)
                for key, one in zip(names, fields, strict=True):
                    # HSCAN may name a field twice.
                    if key not in seen:
                        digest.add(key, content_in(one))
                seen.update(names)
            if cursor == "0":
                return values, floors, digest

    async def _marks(self, position: Position) -> queries.StateMarks:
        marks = await queries.state_marks(self._client, self._keys)
        self.bytes_read += DIGEST_BYTES
        if marks is None or marks.snapshot.epoch != position.epoch:
            raise SnapshotMovedError(f"{self._keys.meta} is of another epoch now")
        if max(marks.snapshot.offset, marks.fold_to) > position.offset:
            raise SnapshotMovedError(
                f"{self._keys.state} is beyond offset {position.offset} already"
            )
        return marks

    def _known(self, marks: queries.StateMarks) -> Digest:
        if marks.digest is not None:
            return Digest(marks.digest.sums)
        if marks.fold_to:
            raise _without_digest(self._keys)
        return Digest()

    async def _log(
        self, replay: LogReplay, goal: Callable[[], Position]
    ) -> AsyncIterator[list[LogEntry]]:
        """Yield the log up to a position, a page at a time."""
        size = page_sizes.LOG_OF_VERIFIER
        try:
            async for page in log_pages(
                *(self._client, self._keys, replay, goal), batches=size, frames=self._frames
            ):
                self.bytes_read += sum(entry.size for entry in page.entries)
                yield page.entries
        except LogMovedError as error:
            raise SnapshotMovedError(str(error)) from None

    def _fold(
        self,
        values: dict[str, Cell],
        floors: dict[str, int],
        batch: Batch,
        tables: ShardTables | None,
        damaged: set[str] | None = None,
    ) -> None:
        chunks, _ = decode_chunks(batch, self._frames)
        fold(values, batch, chunks, floors, damaged=damaged, tables=tables)

    async def _take(self, changes: NetChanges, entry: LogEntry) -> None:
        try:
            await changes.take(self._client, self._keys, entry)
        except DecodeError as error:
            raise SnapshotMovedError(str(error)) from None


def _without_digest(keys: ShardKeys) -> SnapshotMovedError:
    return SnapshotMovedError(
        f"{keys.meta} has no digest; the scheduler sums the full state up in its next round: is "
        "one running?"
    )
