"""How deltas change the tables of a shard: examples, and a comparison with plain dicts."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from broker.core.fold import decode_chunks, fold
from broker.core.tables import shard
from broker.core.tables.shard import Outcome, ShardTables
from broker.core.tables.table import Table
from broker.model import ABSENT
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import MAX_TABLES
from broker.protocol.messages import (
    Batch,
    Chunk,
    IdRange,
    Run,
    TableDefine,
    TableKey,
    TableOp,
    TableRun,
)
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_RECORDS, OP_SET
from broker.protocol.table_fields import unpack_table_field
from tests.unit.exactness import exact
from tests.unit.table_model import HISTORIES, Act, Model, chunks_of, packed, told

NAN = float("nan")
INF = float("inf")
MOST, LEAST = (1 << 63) - 1, -(1 << 63)
F64, I64 = TableKey("t", "u64-f64"), TableKey("t", "u64-i64")
NAMED = TableKey("t", "str-f64")


def run(op: int, table: TableKey, keys: list[int], values: Any, stamps: Any = None) -> TableRun:
    """Return a run of a table with number keys."""
    return TableRun(
        *(op, table, packed("Q", keys)),
        None if values is None else packed("d" if table.is_float else "q", values),
        None if stamps is None else packed("q", stamps),
    )


def chunk_of(*parts: TableOp, node: str = "n1", incarnation: int = 1) -> Chunk:
    """Return a chunk that is for tables only."""
    return Chunk(node, incarnation, 1, 0, [], [*parts])


def applied(tables: ShardTables, *parts: TableOp, offset: int = 1, **whose: Any) -> Outcome:
    """Apply a chunk of parts."""
    return tables.apply(chunk_of(*parts, **whose), offset)


def held(tables: ShardTables, key: TableKey) -> dict[Any, Any]:
    """Return what a table holds: key -> (value, timestamp)."""
    table = tables.tables[key]
    stamps = table.timestamps
    return {
        one: (table.values[slot].item(), 0 if stamps is None else int(stamps[slot]))
        for slot, one in enumerate(table.index.keys)
        if table.present[slot]
    }


# -- against the model ----------------------------------------------------------------------------


@given(HISTORIES)
def test_tables_hold_what_plain_dicts_hold(history: list[list[Act]]) -> None:
    """Values, timestamps, slots, refusals and skipped parts, through the bytes of a chunk."""
    tables, model = ShardTables(), Model()
    for offset, chunks in enumerate(chunks_of(history), 1):
        for chunk in chunks:
            outcome = tables.apply(chunk, offset)
            refused = None if chunk.tables_fault else model.apply(chunk)
            assert bool(outcome.fault) == (refused is None)
            if refused is not None:
                deltas = sum(part.deltas for part in chunk.tables)
                assert outcome == Outcome(deltas - refused, 0, refused)
    assert told(tables) == model.told()


@given(HISTORIES)
def test_what_a_scheduler_writes_is_what_it_holds(history: list[list[Act]]) -> None:
    """Each write holds only changes; a replica that loads it continues as if it saw every batch."""
    writer, fields = ShardTables(tracks=True), dict[str, bytes]()
    loaded, offset = ShardTables(), 0
    for offset, chunks in enumerate(chunks_of(history), 1):
        for chunk in chunks:
            loaded.apply(chunk, offset)
            writer.apply(chunk, offset)
        fields |= writer.changed_fields(offset)
        writer.clean(0)
        assert not list(writer.changed_fields(offset))
        loaded = ShardTables.loaded(fields, offset)
        assert told(loaded) == told(writer)
        assert loaded.differences(writer) == []
    if offset:
        offsets = {unpack_table_field(*one)[0] for one in fields.items()}
        assert offsets <= {*range(1, offset + 1)}


# -- runs -----------------------------------------------------------------------------------------


def test_the_last_of_a_repeated_key_counts() -> None:
    """The last value of a repeated key wins; all amounts of a repeated key are added."""
    tables = ShardTables()
    keys = [n % 700 for n in range(5000)]
    applied(tables, run(OP_SET, F64, keys, [float(n) for n in range(5000)], [*range(5000)]))
    last = {key: n for n, key in enumerate(keys)}
    assert held(tables, F64) == {key: (float(n), n) for key, n in last.items()}
    applied(tables, run(OP_INCREMENT, F64, [3, 3, 3], [1.0, 2.0, 4.0], [7, 8, 9]))
    assert held(tables, F64)[3] == (last[3] + 7.0, 9)
    record = packed("Q", [5]) + packed("d", [1]) + packed("q", [1])
    again = packed("Q", [5]) + packed("d", [2]) + packed("q", [2])
    applied(tables, TableRun(OP_RECORDS, F64, record + again))
    assert held(tables, F64)[5] == (2.0, 2)


@pytest.mark.parametrize(
    ("base", "amounts", "total", "refused"),
    [
        (MOST, [1], MOST, 1),
        (LEAST, [-1], LEAST, 1),
        (MOST, [1, -1], MOST - 1, 1),
        (MOST - 1, [1, 1, -5, 5], MOST, 1),
        (1 << 62, [1 << 62, -1], (1 << 62) - 1, 1),
        (0, [LEAST, LEAST], LEAST, 1),
        (LEAST, [MOST, 1], 0, 0),
        (1 << 61, [1 << 61], 1 << 62, 0),
    ],
)
def test_int64_does_not_leave_its_range(
    base: int, amounts: list[int], total: int, refused: int
) -> None:
    """A delta beyond the range is refused and sets no timestamp; its neighbours count."""
    tables = ShardTables()
    applied(tables, run(OP_SET, I64, [1], [base], [50]))
    stamps = [*range(len(amounts))]
    outcome = applied(tables, run(OP_INCREMENT, I64, [1] * len(amounts), amounts, stamps))
    assert (outcome.refused, outcome.applied) == (refused, len(amounts) - refused)
    value, stamp = held(tables, I64)[1]
    assert value == total
    assert (stamp == 50) == (refused == len(amounts))


@pytest.mark.parametrize(
    ("base", "amounts", "total"),
    [
        (0.1, [0.2, 0.3], 0.1 + 0.2 + 0.3),
        (1e308, [1e308], INF),
        (INF, [-INF], NAN),
        (NAN, [1], NAN),
    ],
)
def test_floats_add_up_as_ieee_has_it_and_warn_nobody(
    base: float, amounts: list[float], total: float
) -> None:
    """Sums follow the order of the deltas and emit no NumPy warning."""
    tables = ShardTables()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        applied(tables, run(OP_SET, F64, [1], [base]))
        applied(tables, run(OP_INCREMENT, F64, [1] * len(amounts), amounts))
    assert exact(held(tables, F64)[1][0]) == exact(total)


def test_deltas_without_a_timestamp_leave_none() -> None:
    """The timestamp reads as 0, also where the key had one and where it was deleted."""
    tables = ShardTables()
    applied(tables, run(OP_SET, F64, [1, 2, 3], [1, 2, 3], [10, 20, 30]))
    applied(tables, run(OP_INCREMENT, F64, [1], [1]), run(OP_DELETE, F64, [2], None, [5]))
    assert held(tables, F64) == {1: (2.0, 0), 3: (3.0, 30)}
    applied(tables, run(OP_INCREMENT, F64, [2], [7]))
    assert held(tables, F64)[2] == (7.0, 0)


def test_tables_of_one_name_and_other_kinds_are_others() -> None:
    """The kind is a part of what names a table."""
    tables = ShardTables()
    applied(tables, run(OP_SET, F64, [1], [0.5]), run(OP_SET, I64, [1], [2]))
    assert (held(tables, F64), held(tables, I64)) == ({1: (0.5, 0)}, {1: (2, 0)})


# -- ids ------------------------------------------------------------------------------------------


def define(first: int, *names: str) -> TableDefine:
    """Return a define of the named table."""
    return TableDefine(NAMED, first, [*names])


def set_ids(ids: list[int] | IdRange, *values: float) -> TableRun:
    """Return a set of ids of the named table."""
    keys = ids if isinstance(ids, IdRange) else packed("I", ids)
    return TableRun(OP_SET, NAMED, keys, packed("d", values))


@pytest.fixture
def tables() -> ShardTables:
    """Give tables in which n1 has defined a and b."""
    tables = ShardTables(tracks=True)
    assert not applied(tables, define(0, "a", "b"), set_ids([0, 1], 1, 2)).fault
    return tables


def test_ids_stay_defined_where_no_key_holds_a_value() -> None:
    """Defined alone, as ids that need a chunk of their own are; or all deleted since."""
    tables = ShardTables()
    assert not applied(tables, define(0, "a")).fault
    assert not applied(tables, set_ids([0], 1)).fault
    assert not applied(tables, TableRun(OP_DELETE, NAMED, packed("I", [0]))).fault
    assert not applied(tables, set_ids([0], 2)).fault
    assert held(tables, NAMED) == {"a": (2, 0)}


def test_ids_belong_to_their_node_and_table(tables: ShardTables) -> None:
    """Equal ids of two nodes mean different keys."""
    applied(tables, define(0, "b", "c"), set_ids([0, 1], 20, 30), node="n2")
    assert held(tables, NAMED) == {"a": (1, 0), "b": (20, 0), "c": (30, 0)}
    other = TableKey("other", "str-f64")
    outcome = applied(tables, TableRun(OP_SET, other, packed("I", [0]), packed("d", [1])))
    assert outcome.fault


@pytest.mark.parametrize(
    "bad",
    [
        [set_ids([2], 9)],
        [set_ids(IdRange(1, 2), 9, 9)],
        [set_ids([0], 9), define(3, "far")],
        [define(2, "c"), set_ids([0, 3], 9, 9)],
        [define(0, "a", "c")],
        [define(1, "b", "c", "d"), define(0, "a", "b", "c", "c")],
        [define(2, "c"), define(2, "a")],
        [run(OP_SET, F64, [1], [9]), set_ids([1 << 31], 9)],
    ],
    ids=[
        *("id", "range", "hole", "behind the define", "another key", "another key of the chunk"),
        *("another key at once", "another table's part"),
    ],
)
def test_an_id_that_is_not_defined_spoils_the_whole_part(
    tables: ShardTables, bad: list[TableOp]
) -> None:
    """Nothing of it is applied, not even defines before it."""
    before, fields = told(tables), dict(tables.changed_fields(9))
    outcome = applied(tables, *bad, offset=2)
    assert (outcome.applied, outcome.refused) == (0, 0)
    assert outcome.fault
    assert told(tables) == before
    assert dict(tables.changed_fields(9)) == fields
    assert not applied(tables, set_ids([1], 5), offset=3).fault


def test_object_runs_of_a_chunk_stand_where_its_part_for_tables_is_skipped(
    tables: ShardTables,
) -> None:
    """The fault is recorded and the object deltas are applied."""
    chunk = Chunk("n1", 1, 1, 0, [Run(OP_SET, ["x"], [1])], [set_ids([7], 9)])
    faults: list[str] = []
    values: dict[str, Any] = {}
    batch = Batch(0, b"epoch--1", 2, b"2" * 8, b"1" * 8, 0, 0, 1, 0, 2, [encode_chunk(chunk)])
    chunks, bad = decode_chunks(batch)
    tally = fold(values, batch, chunks, tables=tables, note_fault=faults.append)
    assert (values, bad) == ({"x": 1}, [])
    assert faults == ["id 7 of t is not defined"]
    assert (tally.deltas, tally.applied, tally.skipped) == (2, 1, 1)


def test_without_numpy_what_is_for_tables_counts_as_skipped() -> None:
    """`fold` counts deltas of tables as skipped in a replica without numpy."""
    parts = [define(0, "a"), set_ids([0], 1)]
    chunk = Chunk("n1", 1, 1, 0, [Run(OP_SET, ["x"], [1])], parts)
    values: dict[str, Any] = {}
    batch = Batch(0, b"epoch--1", 2, b"2" * 8, b"1" * 8, 0, 0, 1, 0, 2, [encode_chunk(chunk)])
    tally = fold(values, batch, decode_chunks(batch)[0])
    assert (values, tally.applied, tally.skipped) == ({"x": 1}, 1, 1)


def test_a_new_incarnation_ends_the_ids_of_the_one_before(tables: ShardTables) -> None:
    """From its first define on, and only in that table."""
    again = {"node": "n1", "incarnation": 2}
    other = TableKey("other", "str-f64")
    write_other = TableRun(OP_SET, other, packed("I", [0]), packed("d", [1]))
    assert not applied(tables, TableDefine(other, 0, ["o"]), write_other).fault
    assert not applied(tables, define(0, "c"), set_ids([0], 30), **again).fault
    assert applied(tables, set_ids([1], 9)).fault
    assert not applied(tables, write_other).fault
    assert held(tables, NAMED) == {"a": (1, 0), "b": (2, 0), "c": (30, 0)}


def test_defining_again_changes_nothing(tables: ShardTables) -> None:
    """Repeated defines, of all ids or of some, have no effect."""
    before = told(tables)
    assert not applied(tables, define(0, "a", "b")).fault
    assert not applied(tables, define(1, "b")).fault
    assert told(tables) == before
    assert not applied(tables, define(2, "c"), set_ids([0, 2], 5, 6)).fault
    assert held(tables, NAMED) == {"a": (5, 0), "b": (2, 0), "c": (6, 0)}


# -- the full state -------------------------------------------------------------------------------


def test_blocks_hold_512_slots_and_only_those_that_changed_are_written() -> None:
    """A change of one number costs one block, a new key its block of keys too."""
    tables = ShardTables(tracks=True)
    applied(tables, run(OP_SET, I64, [*range(1100)], [*range(1100)]))
    assert sorted(dict(tables.changed_fields(1))) == [
        f"t:u64-i64:{f}:{n}" for f in "kv" for n in range(3)
    ]
    tables.clean(0)
    applied(tables, run(OP_INCREMENT, I64, [600], [1]))
    assert list(dict(tables.changed_fields(2))) == ["t:u64-i64:v:1"]
    tables.clean(0)
    applied(tables, run(OP_SET, I64, [5000], [1]))
    assert list(dict(tables.changed_fields(3))) == ["t:u64-i64:k:2", "t:u64-i64:v:2"]


def test_floors_last_as_long_as_something_below_them_may_come() -> None:
    """A block that was loaded early is superseded by deltas up to its floor, and no further."""
    writer = ShardTables(tracks=True)
    applied(writer, run(OP_SET, I64, [1], [10]), offset=7)
    loaded = ShardTables.loaded(dict(writer.changed_fields(7)), 5)
    table = loaded.tables[I64]
    for offset in (6, 7):
        outcome = applied(loaded, run(OP_INCREMENT, I64, [1], [1]), offset=offset)
        assert (outcome.applied, outcome.superseded) == (0, 1)
        assert table.floors is not None
    assert applied(loaded, run(OP_INCREMENT, I64, [1], [1]), offset=8).applied == 1
    assert table.floors is None
    assert held(loaded, I64)[1][0] == 11


def test_keys_are_written_in_the_order_of_their_slots() -> None:
    """A reader of the first fields of a page finds no gap."""
    tables = ShardTables(tracks=True)
    applied(tables, run(OP_SET, I64, [*range(2000)], [0] * 2000))
    names = [name for name, _ in tables.changed_fields(1)]
    assert names[:4] == [f"t:u64-i64:k:{block}" for block in range(4)]


def test_a_nan_is_written_as_one() -> None:
    """Processors produce different NaNs; the full state holds one canonical NaN."""
    fields = []
    for bits in (0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000009):
        tables = ShardTables(tracks=True)
        applied(tables, TableRun(OP_SET, F64, packed("Q", [1]), packed("Q", [bits])))
        fields.append(dict(tables.changed_fields(1)))
    assert fields[0] == fields[1] == fields[2]
    assert ShardTables.loaded(fields[0], 1).differences(tables) == []


def test_ids_that_were_ended_are_not_loaded_and_their_field_goes() -> None:
    """Ended ids are dropped once no reader needs them; earlier readers still use them."""
    tables = ShardTables(tracks=True)
    applied(tables, define(0, "a", "b"), set_ids([0, 1], 1, 2), offset=1)
    fields = dict(tables.changed_fields(1))
    tables.clean(0)
    applied(tables, define(0, "a"), incarnation=2, offset=5)
    fields |= tables.changed_fields(6)
    use = chunk_of(set_ids([1], 5))
    assert not ShardTables.loaded(fields, 4).apply(use, 5).fault
    assert ShardTables.loaded(fields, 5).apply(use, 6).fault
    writers = [tables, ShardTables.loaded(fields, 6, tracks=True)]
    for writer in writers:
        assert writer.over(4) == []
        assert writer.over(5) == ["t:str-f64:d:1:n1"]
        writer.clean(5)
        assert writer.over(9) == []


# -- comparing ------------------------------------------------------------------------------------


def spoilt() -> Iterator[Any]:
    """Return ways to alter a table whose key 1 holds 1.0 at 10, with the expected difference."""
    yield lambda table: table.values.__setitem__(0, 2.0), [((1.0, 10), (2.0, 10))]
    yield lambda table: table.timestamps.__setitem__(0, 11), [((1.0, 10), (1.0, 11))]
    yield lambda table: table.present.__setitem__(0, False), [((1.0, 10), ABSENT)]
    yield lambda table: table.values.__setitem__(0, NAN), [((1.0, 10), (NAN, 10))]


@pytest.mark.parametrize(("spoil", "differs"), [*spoilt()])
def test_differences_are_reported_key_by_key(spoil: Any, differs: Any) -> None:
    """Differences name values, timestamps and missing keys; equal keys are left out."""
    mine, theirs = ShardTables(), ShardTables()
    for one in (mine, theirs):
        applied(one, run(OP_SET, F64, [1, 2], [1, NAN], [10, 20]))
    assert mine.differences(theirs) == []
    spoil(theirs.tables[F64])
    expected = [("t[1]", *pair) for pair in differs]
    assert repr(mine.differences(theirs)) == repr(expected)


def test_a_zero_of_the_other_sign_differs() -> None:
    """Zeros of different sign differ, as they do for objects."""
    mine, theirs = ShardTables(), ShardTables()
    applied(mine, run(OP_SET, F64, [1], [0.0]))
    applied(theirs, run(OP_SET, F64, [1], [-0.0]))
    assert len(mine.differences(theirs)) == 1


def test_a_revision_grows_with_each_chunk_that_changed_the_table_also_over_a_load() -> None:
    """Two different contents never have the same revision."""
    tables = ShardTables(tracks=True)
    seen = [0]

    def grows(revision: int) -> None:
        assert revision > max(seen)
        seen.append(revision)

    for offset in range(1, 4):
        applied(tables, run(OP_SET, F64, [1], [offset]), offset=offset)
        grows(tables.tables[F64].revision)
    before = tables.tables[F64].revision
    applied(tables, run(OP_SET, I64, [1], [1]), offset=4)
    assert tables.tables[F64].revision == before
    loaded = ShardTables.loaded(dict(tables.changed_fields(4)), 4)
    grows(loaded.tables[F64].revision)


def test_arrays_grow_without_losing_anything() -> None:
    """Values, timestamps and what is present, over many blocks."""
    tables = ShardTables()
    for first in range(0, 5000, 333):
        keys = [*range(first, first + 333)]
        applied(tables, run(OP_SET, I64, keys, keys, keys))
    table = tables.tables[I64]
    count = len(table.index)
    assert np.array_equal(table.values[:count], np.arange(count))
    assert table.timestamps is not None
    assert np.array_equal(table.timestamps[:count], np.arange(count))
    assert table.present[:count].all()
    assert not table.present[count:].any()


# -- budgets --------------------------------------------------------------------------------------


def one_row(number: int) -> TableRun:
    """Return one row of the table of a number."""
    return run(OP_SET, TableKey(f"t{number}", "u64-f64"), [number], [1.0])


def test_a_shard_has_no_more_tables_than_its_limit() -> None:
    """A chunk that would make one more is refused whole; those that are there go on."""
    tables = ShardTables()
    for number in range(MAX_TABLES - 1):
        applied(tables, one_row(number))
    outcome = applied(tables, one_row(9001), one_row(9002))
    assert outcome.fault == f"table t9002 (u64-f64) would be one more than {MAX_TABLES}"
    assert not applied(tables, one_row(9003)).fault
    assert applied(tables, one_row(9001)).fault
    assert not applied(tables, one_row(0), one_row(9003)).fault
    assert len(tables.tables) == MAX_TABLES


def test_readers_that_loaded_refuse_the_same_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the full state is ahead of its position."""
    limit = 24
    monkeypatch.setattr(shard, "MAX_TABLES", limit)
    writer, fields = ShardTables(tracks=True), dict[str, bytes]()
    history = [
        *([one_row(number)] for number in range(limit - 1)),
        [one_row(9001), one_row(9002)],
        [one_row(9001)],
        [one_row(9004)],
    ]
    loaded = []
    for offset, parts in enumerate(history, 1):
        applied(writer, *parts, offset=offset)
        fields |= writer.changed_fields(offset)
        writer.clean(0)
        loaded.append(dict(fields))
    for at in range(1, len(history) + 1):
        for read in loaded[at - 1 :]:
            reader = ShardTables.loaded(read, at)
            for offset in range(at + 1, len(history) + 1):
                applied(reader, *history[offset - 1], offset=offset)
            assert reader.tables.keys() == writer.tables.keys()


def test_a_table_of_one_row_costs_little() -> None:
    """Less than 10 KB, whatever a table of numbers needs later."""
    tables = ShardTables()
    tracemalloc.start()
    try:
        for number in range(100):
            applied(tables, one_row(number))
        assert tracemalloc.get_traced_memory()[0] < 100 * 10_000
    finally:
        tracemalloc.stop()


def test_a_delta_costs_the_same_in_a_long_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether keys hold a value is counted where a run changes it, not over the whole table."""
    tables = ShardTables()
    applied(tables, run(OP_SET, F64, [*range(5000)], [1.0] * 5000))
    applied(tables, run(OP_DELETE, F64, [7, 7, 8], None))
    monkeypatch.setattr(Table, "recount", None)
    assert len(tables.tables[F64]) == 4998
    applied(tables, run(OP_SET, F64, [7, 7], [1.0, 2.0]))
    applied(tables, run(OP_INCREMENT, F64, [8, 8, 9000, 9000], [1.0] * 4))
    applied(tables, run(OP_DELETE, F64, [1, 9999], None))
    assert len(tables.tables[F64]) == len(held(tables, F64)) == 5000


def test_many_nodes_that_define_ids_cost_each_chunk_the_same() -> None:
    """A chunk looks only at the ids of its own node; ended ids of others are left alone."""
    tables = ShardTables()
    for number in range(1, 4):
        for node in ("a", "b"):
            applied(tables, TableDefine(NAMED, 0, ["x"]), node=node, incarnation=number)
    producers = [(node, number) for node, number, _ in tables.tables[NAMED].producers()]
    assert producers == [("a", 3), ("b", 3)]
