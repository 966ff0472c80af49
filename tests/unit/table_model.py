"""A reference model of tables in plain dicts and lists, independent of the product.

Also producers that keep the rules, to make histories of: each call becomes a part of a chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import hypothesis.strategies as st

from broker.core.tables.shard import ShardTables
from broker.protocol.constants import TABLE_KINDS
from broker.protocol.messages import Chunk, IdRange, TableDefine, TableKey, TableOp, TableRun
from broker.protocol.operations import OP_DEFINE, OP_DELETE, OP_INCREMENT, OP_RECORDS, OP_SET
from tests.unit.exactness import exact

Who: TypeAlias = tuple[str, int]

KEYS = [TableKey("t", kind) for kind in TABLE_KINDS]
NAMED = TableKey("t", "str-f64")
NODES = ["n1", "n2"]
INT64 = range(-(1 << 63), 1 << 63)


def packed(kind: str, numbers: Sequence[float]) -> bytes:
    """Return a column of little-endian numbers: I ids, Q keys, d or q values, q timestamps."""
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)


def unpacked(kind: str, column: bytes) -> list[Any]:
    """Read such a column."""
    return [number for (number,) in struct.iter_unpack(f"<{kind}", column)]


def value_kind(table: TableKey) -> str:
    """The struct letter of a table's values."""
    return "d" if table.is_float else "q"


# -- the meaning ----------------------------------------------------------------------------------


@dataclass
class OneTable:
    """One table: keys in the order in which they first occurred, and what those hold that do."""

    keys: dict[Any, None] = field(default_factory=dict)
    held: dict[Any, tuple[float, int]] = field(default_factory=dict)
    ids: dict[Who, list[str]] = field(default_factory=dict)


class Model:
    """All tables of a shard, updated one delta at a time."""

    def __init__(self) -> None:
        self.tables: dict[TableKey, OneTable] = {}

    def apply(self, chunk: Chunk) -> int | None:
        """Apply a chunk; return how many deltas were refused, or None if it broke a rule."""
        before = deepcopy(self.tables)
        try:
            return sum(self._apply(part, chunk.node, chunk.incarnation) for part in chunk.tables)
        except LookupError:
            self.tables = before
            return None

    def _apply(self, part: TableOp, node: str, incarnation: int) -> int:
        table = self.tables.setdefault(part.table, OneTable())
        if isinstance(part, TableDefine):
            self._define(table, part, node, incarnation)
            return 0
        return sum(
            not self._do(table, part, *delta)
            for delta in self._deltas(table, part, node, incarnation)
        )

    @staticmethod
    def _define(table: OneTable, part: TableDefine, node: str, incarnation: int) -> None:
        ids = table.ids.setdefault((node, incarnation), [])
        if part.first > len(ids):
            raise LookupError
        known = ids[part.first : part.first + len(part.keys)]
        if known != part.keys[: len(known)]:
            raise LookupError
        if not part.first:
            for who in [one for one in table.ids if one[0] == node]:
                if who[1] != incarnation:
                    table.ids[who].clear()
        ids[part.first : part.first + len(part.keys)] = part.keys
        table.keys |= dict.fromkeys(part.keys)

    @staticmethod
    def _deltas(
        table: OneTable, run: TableRun, node: str, incarnation: int
    ) -> list[tuple[Any, Any, int]]:
        kind = value_kind(run.table)
        if run.op == OP_RECORDS:
            assert isinstance(run.keys, bytes)
            return list(struct.iter_unpack(f"<Q{kind}q", run.keys))
        if isinstance(run.keys, IdRange):
            numbers = list(range(run.keys.first, run.keys.first + run.keys.size))
        else:
            numbers = unpacked("I" if run.table.is_named else "Q", run.keys)
        ids = table.ids.get((node, incarnation), [])
        keys = [ids[number] for number in numbers] if run.table.is_named else numbers
        values = [None] * len(keys) if run.values is None else unpacked(kind, run.values)
        stamps = [0] * len(keys) if run.timestamps is None else unpacked("q", run.timestamps)
        return list(zip(keys, values, stamps, strict=True))

    @staticmethod
    def _do(table: OneTable, run: TableRun, key: Any, value: Any, stamp: int) -> bool:
        table.keys.setdefault(key)
        if run.op == OP_DELETE:
            table.held.pop(key, None)
        elif run.op == OP_INCREMENT:
            total = table.held.get(key, (0, 0))[0] + value
            if isinstance(total, int) and total not in INT64:
                return False
            table.held[key] = total, stamp
        else:
            table.held[key] = value, stamp
        return True

    def told(self) -> Any:
        """What `told` returns for a table with this content."""
        return {
            key: (list(table.keys), exact({str(one): list(table.held[one]) for one in table.held}))
            for key, table in self.tables.items()
        }


def told(tables: ShardTables) -> Any:
    """Return what tables hold, in a form that compares value for value: slots, values, stamps."""
    found = {}
    for key, table in tables.tables.items():
        keys = table.index.keys
        names = keys if isinstance(keys, list) else keys.tolist()
        held = {
            str(name): [
                table.values[slot].item(),
                0 if table.timestamps is None else int(table.timestamps[slot]),
            ]
            for slot, name in enumerate(names)
            if table.present[slot]
        }
        assert len(table) == len(held)
        found[key] = names, exact(held)
    return found


# -- producers ------------------------------------------------------------------------------------


class Writer:
    """One node: its incarnation and the keys of its ids, by table."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.incarnation = 1
        self.ids: dict[TableKey, dict[str, int]] = {}

    def restart(self) -> None:
        """Start a new incarnation of the name."""
        self.incarnation += 1
        self.ids = {}

    def parts(self, call: Call) -> Iterator[TableOp]:
        """Return the parts of a chunk for one call: a define if needed, then the run."""
        table, kind = call.table, value_kind(call.table)
        values = None if call.op == OP_DELETE else packed(kind, call.values)
        stamps = None if call.stamps is None else packed("q", call.stamps)
        if not table.is_named:
            if call.op == OP_RECORDS:
                columns = zip(call.keys, call.values, call.stamps or call.keys, strict=True)
                record = struct.Struct(f"<Q{kind}q")
                data = b"".join(
                    record.pack(key, value, stamp % 99) for key, value, stamp in columns
                )
                yield TableRun(OP_RECORDS, table, data)
            elif call.op != OP_DEFINE:
                yield TableRun(call.op, table, packed("Q", call.keys), values, stamps)
            return
        ids = self.ids.setdefault(table, {})
        names = [f"k{key}" for key in call.keys]
        new = [name for name in dict.fromkeys(names) if name not in ids]
        first = len(ids)
        ids |= {name: first + n for n, name in enumerate(new)}
        if call.again:
            yield TableDefine(table, 0, list(ids))
        elif new:
            yield TableDefine(table, first, new)
        if call.op == OP_DEFINE:
            return
        numbers = [ids[name] for name in names]
        op = OP_SET if call.op == OP_RECORDS else call.op
        if numbers == [*range(numbers[0], numbers[0] + len(numbers))]:
            yield TableRun(op, table, IdRange(numbers[0], len(numbers)), values, stamps)
        else:
            yield TableRun(op, table, packed("I", numbers), values, stamps)


@dataclass(frozen=True)
class Call:
    """One operation of a caller on some keys of a table: numbers or `k<number>`.

    `OP_DEFINE` only says that they are there; where it is `again`, every id is defined anew.
    """

    op: int
    table: TableKey
    keys: list[int]
    values: list[Any]
    stamps: list[int] | None
    again: bool


FLOATS = st.sampled_from([0.0, -0.0, 1.0, 0.1, -2.5, 1e308, float("inf"), float("nan")])
INTS = st.sampled_from([0, 1, -1, 7, 1 << 62, (1 << 63) - 1, -(1 << 63)])


@st.composite
def calls(draw: st.DrawFn, most_keys: int = 20) -> Call:
    """Return calls; neighbouring keys, and keys that occur again, are likely."""
    table = draw(st.sampled_from(KEYS))
    first = draw(st.integers(0, most_keys))
    keys = draw(
        st.one_of(
            st.integers(1, 12).map(lambda count: [*range(first, first + count)]),
            st.lists(st.integers(0, most_keys), min_size=1, max_size=6),
        )
    )
    count = len(keys)
    column = st.lists(FLOATS if table.is_float else INTS, min_size=count, max_size=count)
    stamps = st.none() | st.lists(st.integers(-1, 5), min_size=count, max_size=count)
    op = st.sampled_from([OP_SET, OP_INCREMENT, OP_DELETE, OP_RECORDS, OP_DEFINE])
    return Call(draw(op), table, keys, draw(column), draw(stamps), draw(st.booleans()))


@dataclass(frozen=True)
class Act:
    """What one node does in a batch: calls of one chunk; or it begins anew before."""

    node: str
    calls: list[Call]
    restarts: bool = False
    breaks: str = ""


ACTS = st.builds(
    Act,
    st.sampled_from(NODES),
    st.lists(calls(), min_size=1, max_size=3),
    st.sampled_from([False, False, False, True]),
    st.sampled_from(["", "", "", "", "form", "id", "early", "hole", "another"]),
)
HISTORIES = st.lists(st.lists(ACTS, max_size=3), max_size=8)


def chunks_of(history: list[list[Act]]) -> list[list[Chunk]]:
    """Return the chunks of each batch; those that break a rule leave the producer's ids alone."""
    writers = {node: Writer(node) for node in NODES}
    batches = []
    for acts in history:
        chunks = []
        for act in acts:
            writer = writers[act.node]
            if act.restarts:
                writer.restart()
            ids = deepcopy(writer.ids)
            parts = [part for call in act.calls for part in writer.parts(call)]
            fault = ""
            if act.breaks:
                named = next((one.table for one in act.calls if one.table.is_named), NAMED)
                following = len(writer.ids.get(named, {}))
                writer.ids = ids
                if act.breaks == "form":
                    parts, fault = [], "broken"
                elif act.breaks == "another":
                    # Id 0 cannot be both, whatever it was before.
                    parts += [TableDefine(named, 0, [key]) for key in ("one", "another")]
                elif act.breaks == "early":
                    # A later batch may define it.
                    parts.append(TableRun(OP_DELETE, named, packed("I", [following])))
                elif act.breaks == "id":
                    parts.append(TableRun(OP_DELETE, named, packed("I", [999])))
                else:
                    parts.append(TableDefine(named, 999, ["far"]))
            chunks.append(Chunk(act.node, writer.incarnation, 1, 0, [], parts, fault))
        batches.append(chunks)
    return batches
