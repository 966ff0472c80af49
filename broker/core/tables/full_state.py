"""Tables out of the full state: what its fields say, and whether they fit together. No I/O.

A scheduler may be writing while the hash is read, so fields may be newer than the position of the
full state. A field at or below that position was committed with all that belongs to it; what it
needs and is not there was lost, or altered by others.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, pairwise
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from broker.core.tables.index import NameIndex, NumberIndex
from broker.core.tables.table import Column, Count, NodeIds, Table
from broker.errors import DecodeError
from broker.protocol.constants import BLOCK_SLOTS, TABLE_KINDS
from broker.protocol.messages import TableKey
from broker.protocol.names import is_name
from broker.protocol.refusal import refuses, shown
from broker.protocol.table_fields import unpack_table_field

_KEYS: Final = "k"
_VALUES: Final = "v"
_IDS: Final = "d"
_NAME_PARTS: Final = 4
MAX_DIGITS: Final = 20  # of a number in a name: those of 64 bits


class Field(NamedTuple):
    """The offset of a field, and what it holds."""

    offset: int
    content: Any


# By the letter of a field's kind and by block, or by incarnation and node.
Parts: TypeAlias = "dict[str, dict[str, Field | None]]"


def table_of_field(name: str) -> TableKey | None:
    """Return the table that a field of the tables hash belongs to; None if it is no such field."""
    parts = name.split(":", _NAME_PARTS - 1)
    if len(parts) != _NAME_PARTS:
        return None
    table, kind, what, which = parts
    if not is_name(table) or kind not in TABLE_KINDS or what not in (_KEYS, _VALUES, _IDS):
        return None
    number = which.partition(":")[0] if what == _IDS else which
    is_number = number.isascii() and number.isdecimal() and len(number) <= MAX_DIGITS
    return TableKey(table, kind) if is_number else None


def is_counted(name: str) -> bool:
    """Whether the digest of the tables counts a field: its keys and values, not what ids mean."""
    return table_of_field(name) is not None and name.split(":")[2] != _IDS


def block_of_field(name: str) -> tuple[TableKey, int]:
    """Return the table and the block that a field of keys or values is about."""
    table, kind, _, block = name.split(":")
    return TableKey(table, kind), int(block)


def read_tables(fields: Mapping[str, bytes]) -> dict[TableKey, Parts]:
    """Return the fields of each table; None for one that cannot be read."""
    found: dict[TableKey, Parts] = {}
    for name, data in fields.items():
        key = table_of_field(name)
        if key is None:
            continue
        _, _, what, which = name.split(":", _NAME_PARTS - 1)
        try:
            one: Field | None = Field(*unpack_table_field(name, data))
        except DecodeError:
            one = None
        found.setdefault(key, {_KEYS: {}, _VALUES: {}, _IDS: {}})[what][which] = one
    return found


@refuses
def load_table(table: Table, parts: Parts, offset: int) -> int:
    """Fill an empty table with its fields; return the largest of their offsets.

    Args:
        table: the table.
        parts: of `read_tables`.
        offset: up to which the full state is complete.

    Raises:
        DecodeError: a field cannot be read, is missing, or does not fit to the others.
    """
    for what, named in parts.items():
        for which, one in named.items():
            if one is None:
                raise DecodeError(f"field {shown(f'{what}:{which}')} cannot be read")
    whole: dict[str, dict[str, Field]] = parts  # type: ignore[assignment] # checked above
    _load_keys(table, whole[_KEYS], offset)
    _load_values(table, whole[_VALUES], offset)
    _check_values_are_there(table, whole, offset)
    for name, one in whole[_IDS].items():
        _load_ids(table, name, one, offset)
    table.recount()
    return max(one.offset for named in whole.values() for one in named.values())


def _load_keys(table: Table, fields: Mapping[str, Field], offset: int) -> None:
    # The first block that is missing ends the keys that are certain: a scheduler may be writing.
    for block in count():
        if len(table.index) < block * BLOCK_SLOTS or str(block) not in fields:
            break
        _add_keys(table.index, block, fields[str(block)].content)
    for name, one in fields.items():
        if int(name) >= block and one.offset <= offset:
            raise DecodeError(f"field k:{block} or a key of the one before it is missing")
    table.written_keys = len(table.index)
    table.reserve(len(table.index))


def _add_keys(index: NameIndex | NumberIndex, block: int, keys: Any) -> None:
    known = len(index)
    try:
        if isinstance(index, NameIndex):
            # Any text, and an array of anything, could be taken for keys.
            added = index.add(keys if _are_texts(keys) else [])
        else:
            added = index.add(np.frombuffer(keys, dtype="<u8"))
    except (ValueError, TypeError):
        raise DecodeError(f"field k:{block} does not hold keys") from None
    if not 0 < added.size <= BLOCK_SLOTS or added.size != len(index) - known:
        raise DecodeError(f"field k:{block} holds no key, a key twice, or too many")


def _are_texts(keys: Any) -> bool:
    return type(keys) is list and set(map(type, keys)) <= {str}


def _load_values(table: Table, fields: Mapping[str, Field], offset: int) -> None:
    blocks = -(-len(table.index) // BLOCK_SLOTS)
    floors = {}
    for name, (at, content) in fields.items():
        block = int(name)
        if block >= blocks:
            # The log adds these keys, and all their values: they are from beyond the position.
            if at <= offset:
                raise DecodeError(f"field k:{block} is missing, v:{block} is there")
            continue
        try:
            present = _load_block(table, block, *content)
        except (ValueError, TypeError):
            raise DecodeError(f"field v:{block} does not hold a block") from None
        if at > offset:
            floors[block] = at
        elif block * BLOCK_SLOTS + present > len(table.index):
            raise DecodeError(f"field v:{block} has values of keys that k:{block} lacks")
    if floors:
        table.floors = np.zeros(table.values.size // BLOCK_SLOTS, dtype=np.int64)
        table.floors[list(floors)] = list(floors.values())


def _load_block(
    table: Table, block: int, present: bytes, values: bytes, stamps: bytes | None
) -> int:
    """Load a block; return up to where in it slots hold values."""
    slots = slice(block * BLOCK_SLOTS, (block + 1) * BLOCK_SLOTS)
    table.reserve(slots.stop)
    held = np.unpackbits(np.frombuffer(present, np.uint8)).astype(np.bool_)
    table.present[slots] = held
    table.values[slots] = _column(values, table.dtype, held)
    if stamps is not None:
        if table.timestamps is None:
            table.timestamps = np.zeros(table.values.size, dtype=np.int64)
        table.timestamps[slots] = _column(stamps, np.dtype("<i8"), held)
    return int(np.flatnonzero(held).max(initial=-1)) + 1


def _column(packed: bytes, kind: np.dtype[Any], held: Column) -> Column:
    column = np.frombuffer(packed, dtype=kind)
    if column.size != BLOCK_SLOTS:
        raise ValueError(f"{column.size} numbers in a block of {BLOCK_SLOTS}")
    # Increments add to what an absent key holds.
    if column.view(np.int64)[~held].any():
        raise ValueError("a slot that holds nothing has a number")
    return column


def _check_values_are_there(
    table: Table, parts: Mapping[str, Mapping[str, Field]], offset: int
) -> None:
    for block in range(-(-len(table.index) // BLOCK_SLOTS)):
        if str(block) not in parts[_VALUES]:
            if parts[_KEYS][str(block)].offset <= offset:
                raise DecodeError(f"field v:{block} is missing, k:{block} is there")
            if table.dirty is not None:
                # A scheduler that was killed wrote the keys only.
                table.dirty[block] = True


def _load_ids(table: Table, name: str, field: Field, offset: int) -> None:
    incarnation, node = name.split(":", 1)
    try:
        packed, ended, marks = field.content
        slots = np.frombuffer(packed, dtype="<u4").astype(np.int64)
        counts = _counts(marks, slots.size, field.offset)
        is_over = bool(ended) and ended <= offset
    except (ValueError, TypeError):
        raise DecodeError(f"field {shown(f'd:{name}')} does not hold ids") from None
    # The log defines the others: before that, a chunk that uses one is refused by all readers.
    counts = [one for one in counts if one.offset <= offset]
    slots = slots[: counts[-1].ids] if counts else slots[:0]
    if (slots >= len(table.index)).any():
        raise DecodeError(f"field {shown(f'd:{name}')} has ids of keys that are missing")
    # Ended ids are kept only where their fields still have to be deleted.
    if counts and (not is_over or table.dirty is not None):
        ids = NodeIds(slots[:0])
        ids.define(0, slots)
        ids.counts = counts if table.dirty is not None else []
        ids.ended, ids.changed = ended if is_over else 0, False
        table.nodes.setdefault(node, {})[int(incarnation)] = ids


def _counts(marks: Any, ids: int, at: int) -> list[Count]:
    """Return how many ids there were after which batches: increasing, and all of them by `at`."""
    if type(marks) is not list or set(map(type, marks)) != {int}:
        raise TypeError("no array of integers")
    counts = [Count(*pair) for pair in zip(marks[::2], marks[1::2], strict=True)]
    for before, one in pairwise([Count(0, 0), *counts]):
        if one.ids <= before.ids or one.offset <= before.offset:
            raise ValueError("counts of ids do not increase")
    if counts[-1].ids != ids or counts[-1].offset > at:
        raise ValueError("counts do not end with all ids")
    return counts
