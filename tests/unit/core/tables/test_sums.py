"""The digest of the tables: the same from fields, from arrays, and carried along as they change."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
from hypothesis import given

from broker.core.tables.shard import ShardTables
from broker.protocol.digest import Digest
from broker.protocol.messages import Chunk, TableDefine, TableKey, TableRun
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET

NAMED, NUMBERS = TableKey("t", "str-i64"), TableKey("u", "u64-f64")
KEYS = 1200


def numbers(letter: str, *values: float) -> bytes:
    """Pack numbers."""
    return struct.pack(f"<{len(values)}{letter}", *values)


def definition() -> Chunk:
    """Return what gives each text key an id."""
    return Chunk("n", 1, 1, 0, [], [TableDefine(NAMED, 0, [f"k{n}" for n in range(KEYS)])])


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """Return a chunk with sets, deletes and increments of both tables, some with timestamps."""
    parts = []
    for table, ids, values in ((NAMED, "I", "q"), (NUMBERS, "Q", "d")):
        keys = draw(st.lists(st.integers(0, KEYS - 1), min_size=1, max_size=20))
        op = draw(st.sampled_from((OP_SET, OP_DELETE, OP_INCREMENT)))
        numbered = [draw(st.integers(-5, 5)) for _ in keys]
        column = None if op == OP_DELETE else numbers(values, *numbered)
        stamps = draw(st.none() | st.just(numbers("q", *numbered)))
        parts.append(TableRun(op, table, numbers(ids, *keys), column, stamps))
    return Chunk("n", 1, 2, 0, [], parts)


@given(st.lists(chunks(), min_size=1, max_size=5))
def test_who_writes_and_who_reads_compute_the_same(history: list[Chunk]) -> None:
    """After each full state, also when a scheduler goes on from the fields of another."""
    writer, reader = ShardTables(tracks=True), ShardTables()
    digest, fields = Digest(), dict[str, bytes]()
    for offset, chunk in enumerate([definition(), *history], 1):
        writer.apply(chunk, offset)
        reader.apply(chunk, offset)
        page = [*writer.changed_fields(offset)]
        writer.count(page, digest)
        fields.update(page)
        writer.clean(0)
        assert reader.digest() == digest == writer.digest_of_fields()
        assert reader.altered(fields, digest) == ()
        if offset % 2:
            writer = ShardTables.loaded(fields, offset, tracks=True)
            assert writer.digest_of_fields() == digest


def test_ids_are_not_counted() -> None:
    """Readers forget when they ended, so they could not compute the same."""
    tables = ShardTables(tracks=True)
    tables.apply(definition(), 1)
    fields = dict(tables.changed_fields(1))
    ids = [name for name in fields if ":d:" in name]
    assert len(ids) == 1
    without = {name: one for name, one in fields.items() if name not in ids}
    loaded = [ShardTables.loaded(one, 1, tracks=True) for one in (fields, without)]
    assert loaded[0].digest_of_fields() == loaded[1].digest_of_fields() == tables.digest()


def test_rows_that_may_be_altered_are_named() -> None:
    """By table and keys; without a field there is only the fact."""
    tables = ShardTables(tracks=True)
    tables.apply(definition(), 1)
    fields = dict(tables.changed_fields(1))
    loaded = ShardTables.loaded(fields, 1)
    known = Digest(tables.digest().sums)
    name = "t:str-i64:v:1"
    altered = fields | {name: fields[name] + b"\0"}
    told = loaded.altered(altered, known)
    assert "table t (str-i64) rows 'k512', 'k513', 'k514', 'k515', 'k516' and 507 more" in told
    assert len(told) <= 2
    # A damaged one is named for that.
    assert ShardTables.loaded(altered, 1).altered(altered, known) == ()
    assert ShardTables().altered({}, known) == ("tables that are gone",)
