"""Tables written from section 6.9 of PROTOCOL.md alone: in plain Python, a number at a time.

As `foreign.py` it knows nothing of the package, and needs no numpy.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgpack

SET, DELETE, INCREMENT, DEFINE, RECORDS = 1, 2, 3, 4, 5
KINDS = ("str-f64", "str-i64", "u64-f64", "u64-i64")
BLOCK = 512

Name = tuple[str, str]


def column(letter: str, numbers: list[Any]) -> bytes:
    """Numbers as a bin: Q keys, I ids, d or q values, q timestamps."""
    return struct.pack(f"<{len(numbers)}{letter}", *numbers)


def numbers(letter: str, data: Any) -> list[Any]:
    """Such a bin as numbers; it must hold one at least, and nothing else."""
    assert type(data) is bytes
    assert data
    assert len(data) % struct.calcsize(letter) == 0
    return [number for (number,) in struct.iter_unpack(f"<{letter}", data)]


def shard_of_number(key: int, shards: int) -> int:
    """The shard of a u64 key, by section 3."""
    return (key * 0x9E3779B97F4A7C15 % (1 << 64) >> 32) % shards


@dataclass
class Table:
    """A table of one shard."""

    slots: dict[Any, int] = field(default_factory=dict)
    held: dict[int, tuple[float, int]] = field(default_factory=dict)
    ids: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    floors: dict[int, int] = field(default_factory=dict)

    def slot(self, key: Any) -> int:
        """The key's slot; the next free one for a new key."""
        return self.slots.setdefault(key, len(self.slots))

    def content(self) -> dict[Any, tuple[float, int]]:
        """Key -> (value, timestamp)."""
        return {key: self.held[slot] for key, slot in self.slots.items() if slot in self.held}


class Tables:
    """All tables of one shard."""

    def __init__(self) -> None:
        self.tables: dict[Name, Table] = {}
        self.newest = 0
        self.refused = self.superseded = 0

    # -- the history ------------------------------------------------------------------------------

    def apply(self, node: str, incarnation: int, parts: Any, offset: int) -> bool:
        """Apply a chunk's seventh element; false if it is refused as a whole."""
        try:
            assert type(parts) is list
            known: dict[Name, list[str]] = {}
            for part in parts:
                check(part)
                name = part[1], part[2]
                if name not in known:
                    known[name] = self.keys_of_ids(name, node, incarnation)
                check_ids(part, known[name])
        except (AssertionError, ValueError, TypeError, struct.error):
            return False
        for part in parts:
            table = self.tables.setdefault((part[1], part[2]), Table())
            if part[0] == DEFINE:
                define(table, node, incarnation, part[3], part[4])
            else:
                self.change(table, part, table.ids.get((node, incarnation), []), offset)
        return True

    def keys_of_ids(self, name: Name, node: str, incarnation: int) -> list[str]:
        """The keys of the ids that an incarnation has in a table."""
        table = self.tables.get(name, Table())
        keys = list(table.slots)
        return [keys[slot] for slot in table.ids.get((node, incarnation), ())]

    def change(self, table: Table, part: list[Any], ids: list[int], offset: int) -> None:
        """Apply a run."""
        for slot, value, stamp in deltas(table, part, ids):
            if table.floors.get(slot // BLOCK, 0) >= offset:
                self.superseded += 1
            elif part[0] == DELETE:
                table.held.pop(slot, None)
            elif part[0] == INCREMENT:
                total = table.held.get(slot, (0, 0))[0] + value
                if isinstance(total, int) and not -(1 << 63) <= total < 1 << 63:
                    self.refused += 1
                else:
                    table.held[slot] = total, stamp
            else:
                table.held[slot] = value, stamp

    # -- the full state ---------------------------------------------------------------------------

    @classmethod
    def loaded(cls, fields: dict[str, bytes], position: int) -> Tables:
        """Read the tables hash; the full state is complete up to this offset."""
        tables = cls()
        read: dict[Name, dict[str, dict[str, tuple[int, Any]]]] = {}
        for field_name, packed in fields.items():
            name, kind, what, rest = field_name.split(":", 3)
            check_sum, offset, flags = struct.unpack(">IQB", packed[:13])
            assert check_sum == crc32(field_name.encode() + packed[4:])
            assert flags == 0
            tables.newest = max(tables.newest, offset)
            content = msgpack.unpackb(packed[13:])
            read.setdefault((name, kind), {"k": {}, "v": {}, "d": {}})[what][rest] = offset, content
        for (name, kind), parts in read.items():
            tables.tables[name, kind] = load(kind, parts, position)
        return tables


def load(kind: str, parts: dict[str, dict[str, tuple[int, Any]]], position: int) -> Table:
    """Read the fields of one table."""
    table, block = Table(), 0
    while str(block) in parts["k"] and len(table.slots) == block * BLOCK:
        keys = parts["k"][str(block)][1]
        for key in keys if kind.startswith("str") else numbers("Q", keys):
            table.slot(key)
        block += 1
    letter = "d" if kind.endswith("f64") else "q"
    for which, (offset, (bits, values, stamps)) in parts["v"].items():
        first = int(which) * BLOCK
        if offset > position:
            table.floors[int(which)] = offset
        times = [0] * BLOCK if stamps is None else numbers("q", stamps)
        for n, pair in enumerate(zip(numbers(letter, values), times, strict=True)):
            if bits[n // 8] << n % 8 & 0x80:
                table.held[first + n] = pair
    for who, (_, (slots, ended, counts)) in parts["d"].items():
        incarnation, node = who.split(":", 1)
        # The others are defined in the log.
        known = [ids for ids, at in zip(counts[::2], counts[1::2], strict=True) if at <= position]
        if known and (not ended or ended > position):
            table.ids[node, int(incarnation)] = numbers("I", slots)[: known[-1]]
    return table


def check(part: Any) -> None:
    """Check a part as far as possible without the history."""
    assert type(part) is list
    op, name, kind, keys, values, stamps = part[:6]
    assert type(name) is str
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)
    assert kind in KINDS
    assert type(op) is int
    assert SET <= op <= RECORDS
    named = kind.startswith("str")
    if op == DEFINE:
        assert named
        assert type(values) is int
        assert values >= 0
        assert type(keys) is list
        assert keys
        assert all(type(key) is str and 1 <= len(key.encode()) <= 1024 for key in keys)
        return
    if op == RECORDS:
        assert not named
        assert values is stamps is None
        assert len(numbers("Q", keys)) % 3 == 0
        return
    if type(keys) is list:
        assert named
        first, count = keys
        assert type(first) is type(count) is int
        assert first >= 0
        assert count >= 1
    else:
        count = len(numbers("I" if named else "Q", keys))
    for given in (values, stamps):
        if given is not None:
            assert len(numbers("q", given)) == count
    assert (values is None) == (op == DELETE)


def check_ids(part: list[Any], known: list[str]) -> None:
    """Check the ids of a part against the keys of those there are, and add what it defines."""
    op, _, kind, keys, first, _ = part[:6]
    if op == DEFINE:
        assert first <= len(known)
        again = known[first : first + len(keys)]
        assert again == keys[: len(again)]
        known += keys[len(again) :]
    elif kind.startswith("str"):
        assert max(sum(keys) - 1 if type(keys) is list else max(numbers("I", keys)), 0) < len(known)


def define(table: Table, node: str, incarnation: int, keys: list[str], first: int) -> None:
    """Assign ids to keys, and end the ids that this replaces."""
    if first == 0:
        for who in [who for who in table.ids if who[0] == node]:
            if who[1] != incarnation:
                del table.ids[who]
    ids = table.ids.setdefault((node, incarnation), [])
    ids[first : first + len(keys)] = [table.slot(key) for key in keys]


def deltas(table: Table, part: list[Any], ids: list[int]) -> list[tuple[int, Any, int]]:
    """Slot, value and timestamp of each delta of a run."""
    op, _, kind, keys, values, stamps = part[:6]
    letter = "d" if kind.endswith("f64") else "q"
    if op == RECORDS:
        records = struct.iter_unpack(f"<Q{letter}q", keys)
        return [(table.slot(key), value, stamp) for key, value, stamp in records]
    if type(keys) is list:
        slots = ids[keys[0] : sum(keys)]
    elif kind.startswith("str"):
        slots = [ids[one] for one in numbers("I", keys)]
    else:
        slots = [table.slot(key) for key in numbers("Q", keys)]
    given = [None] * len(slots) if values is None else numbers(letter, values)
    times = [0] * len(slots) if stamps is None else numbers("q", stamps)
    return list(zip(slots, given, times, strict=True))
