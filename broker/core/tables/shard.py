"""All tables of one shard: how a chunk changes them, and how they stand in the full state.

Fields of the tables hash, each with check sum and offset in front:

    <table>:<kind>:k:<block>             the keys of 512 slots
    <table>:<kind>:v:<block>             which of them hold a value, values, timestamps
    <table>:<kind>:d:<incarnation>:<node>  what a producer's ids mean, since when, and until when

A reader may find some fields newer than others, as with the state hash. So blocks have floors, and
the log gives keys and ids that are already there the same slots again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from broker.core.tables.full_state import load_table, read_tables, table_of_field
from broker.core.tables.index import NameIndex, Slots
from broker.core.tables.sums import Entries, altered_blocks, digest_of, entries_of, replace
from broker.core.tables.table import NO_SLOTS, Column, Table, next_revision
from broker.errors import DecodeError
from broker.model import ABSENT, Absent
from broker.protocol.constants import BLOCK_SLOTS, MAX_TABLES
from broker.protocol.digest import Digest
from broker.protocol.messages import Chunk, IdRange, TableDefine, TableKey, TableRun
from broker.protocol.refusal import refuses
from broker.protocol.table_fields import pack_table_field, packed_content

SHOWN_KEYS = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of a chunk's deltas on tables.

    Attributes:
        applied: took effect.
        superseded: the loaded state held them already.
        refused: increments beyond int64.
        fault: the rule that the part for tables broke; then none of it was applied.
    """

    applied: int = 0
    superseded: int = 0
    refused: int = 0
    fault: str = ""


@dataclass(slots=True)
class _Defined:
    """A producer's ids in a table while its chunk is checked: those before it, and its own."""

    keys: list[str]
    slots: Slots
    added: list[str]

    @classmethod
    def of(cls, table: Table | None, node: str, incarnation: int) -> _Defined:
        # Not `if table`: one whose keys were all deleted is empty.
        if table is None or not isinstance(table.index, NameIndex):
            return cls([], NO_SLOTS, [])
        return cls(table.index.keys, table.slots_of_ids(node, incarnation), [])

    def __len__(self) -> int:
        return self.slots.size + len(self.added)

    def add(self, define: TableDefine) -> str:
        """Take what a define adds; return the rule that it breaks."""
        known, before = len(self), self.slots.size
        if define.first > known:
            return f"ids of {define.table.name} from {known} to {define.first} are not defined"
        again = define.keys[: known - define.first]
        for number, key in enumerate(again, define.first):
            if key != (
                self.keys[self.slots[number]] if number < before else self.added[number - before]
            ):
                return f"id {number} of {define.table.name} is given another key"
        self.added += define.keys[len(again) :]
        return ""


class ShardTables:
    """The tables of one shard at some position.

    Args:
        tracks: record which blocks change; a scheduler needs it to write the full state.

    Attributes:
        tables: by name and kind.
        newest: the largest offset of a loaded field.
        damaged: tables of which the full state lacks a part, or has one that cannot be read: what
            is wrong. Deltas for them are left out.
        entries: what the fields that lie in Redis add to the digest; only who tracks keeps them.
    """

    def __init__(self, *, tracks: bool = False) -> None:
        self.tables: dict[TableKey, Table] = {}
        self.newest = 0
        self.damaged: dict[TableKey, str] = {}
        self.entries: Entries = {}
        self._has_floors = True
        self._tracks = tracks

    def table(self, key: TableKey) -> Table:
        """Return a table, made if it is new."""
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = Table(key, tracks=self._tracks)
        return table

    # -- the history ------------------------------------------------------------------------------

    def apply(self, chunk: Chunk, offset: int) -> Outcome:
        """Apply a chunk's part for tables: all of it, or nothing if it breaks a rule."""
        fault = chunk.tables_fault or self._fault(chunk)
        if fault:
            return Outcome(fault=fault)
        if offset > self.newest and self._has_floors:
            # From here on no block is ahead of the position.
            self._has_floors = False
            for table in self.tables.values():
                table.floors = None
        superseded = refused = deltas = 0
        changed = set()
        for part in chunk.tables:
            if part.table in self.damaged:
                continue
            table = self.table(part.table)
            changed.add(part.table)
            deltas += part.deltas
            if isinstance(part, TableDefine):
                table.define(part, chunk.node, chunk.incarnation, offset)
            else:
                gone, no = table.apply(part, chunk.node, chunk.incarnation, offset)
                superseded += gone
                refused += no
        for key in changed:
            self.tables[key].revision = next_revision()
        return Outcome(deltas - superseded - refused, superseded, refused)

    def _fault(self, chunk: Chunk) -> str:
        """Return the rule that the chunk breaks, of those that depend on earlier chunks."""
        known: dict[TableKey, _Defined] = {}
        new: set[TableKey] = set()
        for part in chunk.tables:
            key = part.table
            if key in self.damaged:
                continue
            if key not in self.tables:
                new.add(key)
                # The tables of a load may be ahead of its position. Each of them is one that the
                # history makes before it reaches the limit, so the answer is the same.
                if len(self.tables) + len(self.damaged) + len(new) > MAX_TABLES:
                    return f"table {key.name} ({key.kind}) would be one more than {MAX_TABLES}"
            if not key.is_named:
                continue
            if key not in known:
                table = self.tables.get(key)
                known[key] = _Defined.of(table, chunk.node, chunk.incarnation)
            if isinstance(part, TableDefine):
                if fault := known[key].add(part):
                    return fault
            elif (needed := _ids_needed(part)) > len(known[key]):
                return f"id {needed - 1} of {key.name} is not defined"
        return ""

    # -- the full state ---------------------------------------------------------------------------

    @classmethod
    @refuses
    def loaded(
        cls, fields: Mapping[str, bytes], offset: int, *, tracks: bool = False
    ) -> ShardTables:
        """Return the tables that a tables hash holds; those that are damaged are only named.

        Args:
            fields: all of them; those of other names are ignored.
            offset: up to which the full state is complete; fields may be newer.
            tracks: as for the class.
        """
        tables = cls(tracks=tracks)
        if tracks:
            tables.entries = entries_of(fields)
        for key, parts in read_tables(fields).items():
            try:
                table = Table(key, tracks=tracks)
                tables.newest = max(tables.newest, load_table(table, parts, offset))
            except DecodeError as error:
                tables.damaged[key] = str(error)
            else:
                tables.tables[key] = table
        return tables

    def get(self, key: TableKey) -> Table | None:
        """Return a table; None if there is none.

        Raises:
            DecodeError: it is damaged: with what is wrong with it, and the fix.
        """
        if (fault := self.damaged.get(key)) is not None:
            raise DecodeError(
                f"table {key.name} ({key.kind}) of the full state is damaged: {fault}; a scheduler "
                "that still has it writes it again; if none does, run `statebroker verify --accept`"
            )
        return self.tables.get(key)

    def damaged_fields(self, names: Iterable[str]) -> list[str]:
        """Return those of some fields of the tables hash that belong to damaged tables."""
        return [name for name in names if table_of_field(name) in self.damaged]

    def changed_fields(self, offset: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each field that changed since `clean()`.

        Keys come in the order of their slots: a reader of a part must not miss one in between.
        """
        for table in self.tables.values():
            prefix = ":".join(table.key)
            for block in _new_key_blocks(table):
                yield _packed(f"{prefix}:k:{block}", offset, _packed_keys(table, block))
            for node, incarnation, ids in table.producers():
                if ids.changed:
                    slots = ids.slots[: ids.known].astype("<u4").tobytes()
                    content = [slots, ids.ended, [*chain.from_iterable(ids.counts)]]
                    yield _packed(f"{prefix}:d:{incarnation}:{node}", offset, content)
            assert table.dirty is not None  # noqa: S101 - a writer tracks
            for block in np.flatnonzero(table.dirty).tolist():
                yield _packed(f"{prefix}:v:{block}", offset, _packed_block(table, block))

    def producers(self) -> set[tuple[str, int]]:
        """Return node and incarnation of the producers whose ids are in use."""
        return {
            (node, incarnation)
            for table in self.tables.values()
            for node, incarnation, ids in table.producers()
            if not ids.ended
        }

    def end(self, producers: Collection[tuple[str, int]], offset: int) -> None:
        """End the ids of producers that have no batches after `offset`."""
        for table in self.tables.values():
            for node, incarnation, ids in table.producers():
                if (node, incarnation) in producers and not ids.ended:
                    ids.ended, ids.changed = offset, True

    def over(self, offset: int) -> list[str]:
        """Return names of the fields of ids that no batch after `offset` uses."""
        return [
            f"{':'.join(table.key)}:d:{incarnation}:{node}"
            for table in self.tables.values()
            for node, incarnation, ids in table.producers()
            if ids.ended and ids.ended <= offset
        ]

    def clean(self, offset: int) -> None:
        """Mark all blocks as written; drop ids that ended at `offset`: their fields are deleted.

        Args:
            offset: the log begins after it, so no reader begins before.
        """
        for table in self.tables.values():
            if table.dirty is not None:
                table.dirty[:] = False
            table.written_keys = len(table.index)
            table.forget_ids(offset)
            for _, _, ids in table.producers():
                ids.changed = False
                ids.forget_counts(offset)

    def mark_damage(self, fields: Mapping[str, bytes], offset: int) -> list[str] | None:
        """Mark the tables that differ from what was written, so that all of them is written again.

        Args:
            fields: of the tables hash.
            offset: up to which the full state, and this, is complete.

        Returns:
            The fields to delete, for they belong to no table; None if all is as it was written.
        """
        written = type(self).loaded(fields, offset, tracks=True)
        differ = False
        expected: set[str] = set()
        for key, table in self.tables.items():
            expected.update(_field_names(table))
            other = written.tables.get(key)
            if other is None or not _are_equal(table, other) or _ids(table) != _ids(other):
                differ = True
                table.touch_all()
        surplus = [
            name for name in fields if table_of_field(name) is not None and name not in expected
        ]
        return surplus if differ or surplus else None

    def digest_of_fields(self) -> Digest:
        """Return the digest of the fields that lie in Redis."""
        return digest_of(self.entries)

    def count(self, page: Iterable[tuple[str, bytes]], digest: Digest) -> None:
        """Count fields that are written now in a digest, in place of those before."""
        replace(self.entries, digest, page)

    # -- comparing --------------------------------------------------------------------------------

    def altered(self, fields: Mapping[str, bytes], known: Digest) -> tuple[str, ...]:
        """Return which rows of a tables hash may not be what schedulers wrote, for people.

        Of tables that are damaged nothing is said.

        Args:
            fields: those that these tables were loaded from.
            known: the digest of what schedulers wrote.
        """
        is_altered, blocks = altered_blocks(fields, known)
        if is_altered and not blocks and not self.damaged:
            return ("tables that are gone",)
        return tuple(
            f"table {key.name} ({key.kind}) rows {self._rows(key, at)}"
            for key, at in blocks
            if key in self.tables
        )

    def _rows(self, key: TableKey, block: int) -> str:
        """Return the first keys of a block, for people."""
        first = block * BLOCK_SLOTS
        index = self.tables[key].index
        keys = index.keys[first : first + BLOCK_SLOTS]
        shown = keys[:SHOWN_KEYS]
        texts = map(repr, shown if isinstance(shown, list) else shown.tolist())
        rest = len(keys) - SHOWN_KEYS
        return ", ".join(texts) + (f" and {rest} more" if rest > 0 else "")

    def digest(self) -> Digest:
        """Return the digest that the full state of these tables has."""
        digest = Digest()
        for table in self.tables.values():
            prefix = ":".join(table.key)
            for block in range(-(-len(table.index) // BLOCK_SLOTS)):
                keys, values = _packed_keys(table, block), _packed_block(table, block)
                digest.add(f"{prefix}:k:{block}", packed_content(keys))
                digest.add(f"{prefix}:v:{block}", packed_content(values))
        return digest

    def revisions(self) -> dict[TableKey, int]:
        """Return the revision of each table: as long as none differs, nothing changed."""
        return {key: table.revision for key, table in self.tables.items()}

    def lost_in(self, other: ShardTables) -> str:
        """Return a table of which the same position has fewer slots elsewhere; "" if there is none.

        Slots are never taken back, so it was damaged there.
        """
        for key, table in self.tables.items():
            if _lost_keys(table, other.tables.get(key)):
                return f"table {key.name} ({key.kind})"
        return ""

    def differences(self, other: ShardTables) -> list[tuple[str, Any, Any]]:
        """Return (`table[key]`, value here, value there) for each key that differs; else nothing.

        Of tables that are damaged here or there nothing is said. Values are compared with their
        timestamps; a key that one side lacks is ABSENT there.
        """
        found = []
        for key in sorted({*self.tables, *other.tables} - {*self.damaged, *other.damaged}):
            mine, theirs = self.tables.get(key), other.tables.get(key)
            if mine is not None and theirs is not None and _are_equal(mine, theirs):
                continue
            left, right = _content(mine), _content(theirs)
            found += [
                (f"{key.name}[{one}]", left.get(one, ABSENT), right.get(one, ABSENT))
                for one in sorted({*left, *right}, key=None if key.is_named else int)
                if not _same(left.get(one, ABSENT), right.get(one, ABSENT))
            ]
        return found


def _lost_keys(mine: Table, theirs: Table | None) -> bool:
    return len(mine.index) > (0 if theirs is None else len(theirs.index))


def _field_names(table: Table) -> list[str]:
    prefix = ":".join(table.key)
    blocks = range(-(-len(table.index) // BLOCK_SLOTS))
    return [
        *(f"{prefix}:{what}:{block}" for what in "kv" for block in blocks),
        *(f"{prefix}:d:{incarnation}:{node}" for node, incarnation, _ in table.producers()),
    ]


def _ids(table: Table) -> dict[tuple[str, int], tuple[list[int], int]]:
    return {
        (node, incarnation): (ids.slots[: ids.known].tolist(), ids.ended)
        for node, incarnation, ids in table.producers()
    }


def _ids_needed(run: TableRun) -> int:
    if isinstance(run.keys, IdRange):
        return run.keys.first + run.keys.size
    return int(np.frombuffer(run.keys, dtype="<u4").max()) + 1


def _new_key_blocks(table: Table) -> range:
    if len(table.index) == table.written_keys:
        return range(0)
    return range(table.written_keys // BLOCK_SLOTS, -(-len(table.index) // BLOCK_SLOTS))


def _packed(name: str, offset: int, content: Any) -> tuple[str, bytes]:
    return name, pack_table_field(name, offset, content)


def _packed_keys(table: Table, block: int) -> Any:
    first = block * BLOCK_SLOTS
    return table.index.packed(first, min(first + BLOCK_SLOTS, len(table.index)))


def _packed_block(table: Table, block: int) -> list[Any]:
    slots = slice(block * BLOCK_SLOTS, (block + 1) * BLOCK_SLOTS)
    values: Column = table.values[slots]
    if table.key.is_float:
        values = _plain(values)
    stamps = None if table.timestamps is None else table.timestamps[slots]
    return [
        np.packbits(table.present[slots]).tobytes(),
        values.astype(table.dtype).tobytes(),
        # One form only: it does not depend on what other blocks hold.
        None if stamps is None or not stamps.any() else stamps.astype("<i8").tobytes(),
    ]


def _are_equal(mine: Table, theirs: Table) -> bool:
    """Whether two tables are the same, slot by slot; tables with other slots are not."""
    end = len(mine.index)
    if end != len(theirs.index) or not np.array_equal(mine.index.keys, theirs.index.keys):
        return False
    return (
        bool((mine.present[:end] == theirs.present[:end]).all())
        and np.array_equal(_bits(mine)[:end], _bits(theirs)[:end])
        and np.array_equal(_stamps(mine)[:end], _stamps(theirs)[:end])
    )


def _bits(table: Table) -> Column:
    """Values, to be compared bit by bit: 0.0 and -0.0 differ, NaNs do not."""
    return _plain(table.values).view(np.int64) if table.key.is_float else table.values


def _plain(values: Column) -> Column:
    # Which NaN it is differs between processors.
    return np.where(np.isnan(values), np.nan, values)


def _stamps(table: Table) -> Column:
    return table.timestamps if table.timestamps is not None else np.zeros(table.values.size)


def _content(table: Table | None) -> dict[str, tuple[float, int]]:
    """Return value and timestamp by the text of the key.

    By its text, because Python does not seed the hash of a number: a dict of chosen ones is slow.
    """
    if table is None:
        return {}
    slots = np.flatnonzero(table.present[: len(table.index)])
    index = table.index
    keys: list[Any] = index.keys if isinstance(index, NameIndex) else index.keys.tolist()
    pairs = zip(table.values[slots].tolist(), _stamps(table)[slots].tolist(), strict=True)
    return {
        repr(keys[slot]): (value, int(stamp))
        for slot, (value, stamp) in zip(slots.tolist(), pairs, strict=True)
    }


def _same(one: tuple[float, int] | Absent, other: tuple[float, int] | Absent) -> bool:
    # NaN is not equal to itself, but it is the same.
    return repr(one) == repr(other)
