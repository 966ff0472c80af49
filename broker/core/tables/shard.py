"""All tables of one shard: how a chunk changes them, and how they stand in the full state.

Fields of the tables hash, each with its offset in front like those of the state hash:

    <table>:<kind>:k:<block>             the keys of 512 slots
    <table>:<kind>:v:<block>             which of them hold a value, values, timestamps
    <table>:<kind>:d:<incarnation>:<node>  what a producer's ids mean, and since when no more

A reader may find some fields newer than others, as with the state hash. So blocks have floors, and
the log gives keys and ids that are already there the same slots again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from broker.core.tables.index import NameIndex, NumberIndex
from broker.core.tables.table import Column, NodeIds, Table, next_revision
from broker.errors import DecodeError
from broker.model import ABSENT, Absent
from broker.protocol.constants import BLOCK_SLOTS, MAX_TABLES, TABLE_KINDS
from broker.protocol.fields import pack_field, unpack_fields
from broker.protocol.messages import Chunk, IdRange, TableDefine, TableKey, TableRun
from broker.protocol.refusal import refuses, shown


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


class ShardTables:
    """The tables of one shard at some position.

    Args:
        tracks: record which blocks change; a scheduler needs it to write the full state.
    """

    def __init__(self, *, tracks: bool = False) -> None:
        self.tables: dict[TableKey, Table] = {}
        self.newest = 0
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
        superseded = refused = 0
        changed = set()
        for part in chunk.tables:
            if isinstance(part, TableDefine) and not part.keys and part.table not in self.tables:
                # It would make a table without keys, which no full state holds.
                continue
            table = self.table(part.table)
            changed.add(part.table)
            if isinstance(part, TableDefine):
                table.define(part, chunk.node, chunk.incarnation, offset)
            else:
                gone, no = table.apply(part, chunk.node, chunk.incarnation, offset)
                superseded += gone
                refused += no
        for key in changed:
            self.tables[key].revision = next_revision()
        deltas = sum(part.deltas for part in chunk.tables)
        return Outcome(deltas - superseded - refused, superseded, refused)

    def _fault(self, chunk: Chunk) -> str:
        """Return the rule that the chunk breaks, of those that depend on earlier chunks."""
        known: dict[TableKey, int] = {}
        new: set[TableKey] = set()
        for part in chunk.tables:
            key = part.table
            if key not in self.tables and not (isinstance(part, TableDefine) and not part.keys):
                new.add(key)
                # The tables of a load may be ahead of its position. Each of them is one that the
                # history makes before it reaches the limit, so the answer is the same.
                if len(self.tables) + len(new) > MAX_TABLES:
                    return f"table {key.name} ({key.kind}) would be one more than {MAX_TABLES}"
            if not key.is_named:
                continue
            if key not in known:
                table = self.tables.get(key)
                # Not `if table`: one whose keys were all deleted is empty.
                known[key] = 0 if table is None else table.known_ids(chunk.node, chunk.incarnation)
            if isinstance(part, TableDefine):
                if part.first > known[key]:
                    return f"ids of {key.name} from {known[key]} to {part.first} are not defined"
                known[key] = max(known[key], part.first + len(part.keys)) if part.keys else 0
            elif (needed := _ids_needed(part)) > known[key]:
                return f"id {needed - 1} of {key.name} is not defined"
        return ""

    # -- the full state ---------------------------------------------------------------------------

    @classmethod
    @refuses
    def loaded(
        cls, fields: Mapping[str, bytes], offset: int, *, tracks: bool = False
    ) -> ShardTables:
        """Return the tables that a tables hash holds.

        Args:
            fields: all of them.
            offset: up to which the full state is complete; fields may be newer.
            tracks: as for the class.

        Raises:
            DecodeError: a field is damaged.
        """
        tables = cls(tracks=tracks)
        if not fields:
            return tables
        offsets, contents = unpack_fields(list(fields.values()))
        by_kind: dict[TableKey, dict[str, dict[str, tuple[int, Any]]]] = {}
        for name, at, content in zip(fields, offsets, contents, strict=True):
            table, kind, what, which = _parts(name)
            parts = by_kind.setdefault(TableKey(table, kind), {"k": {}, "v": {}, "d": {}})
            if what not in parts:
                raise DecodeError(f"a field of the tables hash is {shown(name)}")
            parts[what][which] = at, content
            tables.newest = max(tables.newest, at)
        try:
            for key, parts in by_kind.items():
                _load(tables.table(key), parts, offset)
        except (ValueError, TypeError, IndexError) as error:
            raise DecodeError(f"a field of the tables hash is damaged: {error}") from None
        return tables

    def changed_fields(self, offset: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each field that changed since `clean()`.

        Keys come in the order of their slots: a reader of a part must not miss one in between.
        """
        for table in self.tables.values():
            prefix = ":".join(table.key)
            for block in _new_key_blocks(table):
                first = block * BLOCK_SLOTS
                keys = table.index.packed(first, min(first + BLOCK_SLOTS, len(table.index)))
                yield f"{prefix}:k:{block}", pack_field(offset, keys)
            for node, incarnation, ids in table.producers():
                if ids.changed:
                    slots = ids.slots[: ids.known].astype("<u4").tobytes()
                    yield (
                        f"{prefix}:d:{incarnation}:{node}",
                        pack_field(offset, [slots, ids.ended]),
                    )
            assert table.dirty is not None  # noqa: S101 - a writer tracks
            for block in np.flatnonzero(table.dirty).tolist():
                yield f"{prefix}:v:{block}", pack_field(offset, _packed_block(table, block))

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
        """Mark all blocks as written; drop ids that ended at `offset`: their fields are deleted."""
        for table in self.tables.values():
            if table.dirty is not None:
                table.dirty[:] = False
            table.written_keys = len(table.index)
            table.forget_ids(offset)
            for _, _, ids in table.producers():
                ids.changed = False

    # -- comparing --------------------------------------------------------------------------------

    def differences(self, other: ShardTables) -> list[tuple[str, Any, Any]]:
        """Return (`table[key]`, value here, value there) for each key that differs; else nothing.

        Values are compared with their timestamps; a key that one side lacks is ABSENT there.
        """
        found = []
        for key in sorted({*self.tables, *other.tables}):
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


def _ids_needed(run: TableRun) -> int:
    if isinstance(run.keys, IdRange):
        return run.keys.first + run.keys.size
    return int(np.frombuffer(run.keys, dtype="<u4").max()) + 1


def _parts(name: str) -> list[str]:
    parts = name.split(":", 3)
    if len(parts) != 4 or parts[1] not in TABLE_KINDS:  # noqa: PLR2004 - as documented above
        raise DecodeError(f"a field of the tables hash is {shown(name)}")
    return parts


def _load(table: Table, parts: dict[str, dict[str, tuple[int, Any]]], offset: int) -> None:
    # The first block that is missing ends the keys that are certain: a scheduler may be writing.
    for block in count():
        if len(table.index) < block * BLOCK_SLOTS or str(block) not in parts["k"]:
            break
        _load_keys(table.index, parts["k"][str(block)][1])
    table.written_keys = len(table.index)
    table.reserve(len(table.index))
    floors = {}
    for name, (at, content) in parts["v"].items():
        _load_block(table, int(name), *content)
        if at > offset:
            floors[int(name)] = at
    for name, (_, (packed, ended)) in parts["d"].items():
        incarnation, node = name.split(":", 1)
        is_over = bool(ended) and ended <= offset
        # Ended ids are kept only where their fields still have to be deleted.
        if not is_over or table.dirty is not None:
            slots = np.frombuffer(packed, dtype="<u4").astype(np.int64)
            ids = NodeIds(slots[:0])
            ids.define(0, slots)
            ids.ended, ids.changed = ended if is_over else 0, False
            table.nodes.setdefault(node, {})[int(incarnation)] = ids
            table.reserve(int(slots.max(initial=-1)) + 1)
    if floors:
        table.floors = np.zeros(table.values.size // BLOCK_SLOTS, dtype=np.int64)
        table.floors[list(floors)] = list(floors.values())
    table.recount()


def _load_keys(index: NameIndex | NumberIndex, keys: Any) -> None:
    known = len(index)
    if isinstance(index, NameIndex):
        added = index.add(keys)
    else:
        added = index.add(np.frombuffer(keys, dtype="<u8"))
    if added.size != len(index) - known:
        raise ValueError("a key has two slots")


def _load_block(
    table: Table, block: int, present: bytes, values: bytes, stamps: bytes | None
) -> None:
    slots = slice(block * BLOCK_SLOTS, (block + 1) * BLOCK_SLOTS)
    table.reserve(slots.stop)
    table.present[slots] = np.unpackbits(np.frombuffer(present, np.uint8)).astype(np.bool_)
    table.values[slots] = _block(values, table.dtype)
    if stamps is not None:
        if table.timestamps is None:
            table.timestamps = np.zeros(table.values.size, dtype=np.int64)
        table.timestamps[slots] = _block(stamps, np.dtype("<i8"))


def _block(packed: bytes, kind: np.dtype[Any]) -> Column:
    column = np.frombuffer(packed, dtype=kind)
    if column.size != BLOCK_SLOTS:
        raise ValueError(f"{column.size} numbers in a block of {BLOCK_SLOTS}")
    return column


def _new_key_blocks(table: Table) -> range:
    if len(table.index) == table.written_keys:
        return range(0)
    return range(table.written_keys // BLOCK_SLOTS, -(-len(table.index) // BLOCK_SLOTS))


def _packed_block(table: Table, block: int) -> list[Any]:
    slots = slice(block * BLOCK_SLOTS, (block + 1) * BLOCK_SLOTS)
    values: Column = table.values[slots]
    if table.key.is_float:
        values = _plain(values)
    stamps = table.timestamps
    return [
        np.packbits(table.present[slots]).tobytes(),
        values.astype(table.dtype).tobytes(),
        None if stamps is None else stamps[slots].astype("<i8").tobytes(),
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
