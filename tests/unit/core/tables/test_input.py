"""Input of tables is checked, and single keys are readable while batches are applied."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from broker.core.buffer import ProducerBuffer
from broker.core.tables.input import Keys, number_keys, record_runs
from broker.core.tables.shard import ShardTables
from broker.engine.table_input import TableInput
from broker.engine.table_view import TableView
from broker.errors import EncodeError
from broker.protocol.messages import IdRange, TableKey, TableRun
from broker.protocol.names import shard_of
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from tests.unit.table_model import packed, unpacked

NAMED, INTS = TableKey("t", "str-f64"), TableKey("t", "str-i64")
NUMBERED = TableKey("n", "u64-f64")


class Engine:
    """The part of a producer that a table needs."""

    def __init__(self, shards: int = 1) -> None:
        self.shards = shards
        self.buffer = ProducerBuffer(
            node="n1",
            shards=shards,
            max_bytes=1 << 30,
            max_count=1000,
            chunk_bytes=1 << 18,
            keep_s=1,
            keep_bytes=1,
        )


def looked_up(table: TableKey, keys: Any, engine: Engine | None = None) -> Keys:
    """Look keys up."""
    found: list[Keys] = []
    assert TableInput(engine or Engine(), table).find(keys, found)  # type: ignore[arg-type]
    return found[0]


def runs(table: TableKey, keys: Any, values: Any, stamps: Any = None, op: int = OP_SET) -> Any:
    """Return the runs of one call."""
    engine = Engine()
    given = TableInput(engine, table)  # type: ignore[arg-type]
    return given.runs(op, looked_up(table, keys, engine), values, stamps)


@pytest.mark.parametrize(
    ("table", "keys", "message"),
    [
        (NAMED, "abc", "'abc' is one text; give a list"),
        (NAMED, ["a", 5], "key 5 is a int; keys are str"),
        (NAMED, ["a", ""], "key is empty"),
        (NAMED, ["x" * 1025], "over the limit of 1024"),
        (NAMED, [["a"]], "not a list or column of str"),
        (NAMED, 7, "not a list or column of str"),
        (NAMED, np.array("a"), "'a' is one text; give a list"),
        (NAMED, np.array([["a"]]), "not a list or column of str"),
        (NUMBERED, ["a"], "keys are <U1; the table takes uint64"),
        (NUMBERED, [1.0], "keys are float64; the table takes uint64"),
        (NUMBERED, [True], "keys are bool; the table takes uint64"),
        (NUMBERED, [1, -1], "keys are not a column of uint64: Python integer -1"),
        (NUMBERED, np.array([1, -1]), "keys hold -1; the least is 0"),
        (NUMBERED, [1, 1 << 64], "keys are not a column of uint64"),
        (NUMBERED, [[1], [1, 2]], "not a column of uint64"),
        (NUMBERED, [[1, 2]], "keys have 2 dimensions; give one column"),
    ],
)
def test_keys_that_cannot_be_are_named_with_the_limit(
    table: TableKey, keys: Any, message: str
) -> None:
    """Any invalid key raises EncodeError, and no id is assigned."""
    engine = Engine()
    with pytest.raises(EncodeError) as caught:
        looked_up(table, keys, engine)
    assert message in str(caught.value)
    assert engine.buffer.bytes == 0


@pytest.mark.parametrize(
    ("table", "values", "stamps", "message"),
    [
        (NAMED, [1], None, "values have the shape (1,); there are 2 keys"),
        (NAMED, [[1, 2]], None, "values have 2 dimensions"),
        (NAMED, ["1", "2"], None, "values are <U1; the table takes float64"),
        (NAMED, [True, False], None, "values are bool; the table takes float64"),
        (NAMED, [None, 1.0], None, "values are object; the table takes float64"),
        (NAMED, [1j, 1], None, "values are complex128; the table takes float64"),
        (INTS, [1.0, 2.0], None, "values are float64; the table takes int64"),
        (INTS, [1, 1 << 63], None, "values are not a column of int64"),
        (INTS, np.array([1, 1 << 63], "<u8"), None, "the most is 9223372036854775807"),
        (NAMED, [1, 2], [1], "timestamps have the shape (1,); there are 2 keys"),
        (NAMED, [1, 2], [1.5, 2], "timestamps are float64; the table takes int64"),
    ],
)
def test_values_that_do_not_fit_are_named_with_the_fix(
    table: TableKey, values: Any, stamps: Any, message: str
) -> None:
    """Wrong type, shape or range of values and timestamps."""
    with pytest.raises(EncodeError) as caught:
        runs(table, ["a", "b"], values, stamps)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"x" * 25, "25 bytes are not whole records of 24"),
        (5, "records are a int; give a structured array"),
        ([1, 2], "records are a list; give a structured array"),
        (np.zeros(2, dtype=[("key", "<u8"), ("value", "<i8"), ("timestamp", "<i8")]), "layout"),
        (np.zeros(2, dtype=[("key", "<u8"), ("value", "<f8")]), "layout"),
    ],
)
def test_records_of_another_layout_are_refused(records: Any, message: str) -> None:
    """With the layout that the table takes."""
    with pytest.raises(EncodeError, match=message):
        record_runs(NUMBERED, records, 1)


def test_records_need_number_keys() -> None:
    """The error names the fix."""
    with pytest.raises(EncodeError, match="keys=int"):
        record_runs(NAMED, b"", 1)


@pytest.mark.parametrize("records", [b"", np.zeros(0), bytearray()])
def test_no_records_are_no_run(records: Any) -> None:
    """Nothing is written then."""
    assert record_runs(NUMBERED, records, 1) == []


def test_records_may_be_any_buffer_of_their_bytes() -> None:
    """Bytes, a view of them, or an array with the fields."""
    layout = [("key", "<u8"), ("value", "<f8"), ("timestamp", "<i8")]
    array = np.array([(1, 0.5, 2), (3, 4.0, 5)], dtype=layout)
    data = array.tobytes()
    for given in (data, bytearray(data), memoryview(data), array, np.frombuffer(data, np.uint8)):
        ((shard, run),) = record_runs(NUMBERED, given, 1)
        assert (shard, run.keys) == (0, data)
    ((_, one),) = record_runs(NUMBERED, array[::2], 1)
    assert one.keys == data[:24]


def test_too_much_for_one_chunk_is_refused_whole() -> None:
    """With count, limit and fix; nothing is cut in two."""
    with pytest.raises(EncodeError, match=r"600000 keys .* limit of 4194304 .*split them"):
        runs(NUMBERED, np.arange(600_000, dtype=np.uint64), 0.0)


def test_one_number_stands_for_all_and_nothing_for_none() -> None:
    """Columns are little-endian, whatever was given."""
    ((_, run),) = runs(NAMED, ["a", "b"], 2, 7)
    assert unpacked("d", run.values) == [2.0, 2.0]
    assert unpacked("q", run.timestamps) == [7, 7]
    ((_, run),) = runs(NAMED, ["a", "b"], np.array([1, 2], dtype=">f4"))
    assert unpacked("d", run.values) == [1.0, 2.0]
    assert run.timestamps is None
    ((_, run),) = runs(NAMED, ["a"], None, op=OP_DELETE)
    assert run.values is None
    assert runs(NAMED, [], []) == []
    assert runs(NUMBERED, [], 1.0, op=OP_INCREMENT) == []


def test_small_and_large_numbers_may_be_in_one_list() -> None:
    """Mixed small and large integers keep all digits; NumPy alone would make them floats."""
    keys = [1, (1 << 64) - 1, 1 << 63]
    ((_, run),) = runs(NUMBERED, keys, 0)
    assert unpacked("Q", run.keys) == keys


def test_a_series_of_ids_is_sent_as_a_range() -> None:
    """Where that is shorter."""
    engine = Engine()
    names = [f"k{n}" for n in range(20)]
    assert looked_up(NAMED, names, engine).parts[0].keys == IdRange(0, 20)
    assert looked_up(NAMED, names[5:], engine).parts[0].keys == IdRange(5, 15)
    assert looked_up(NAMED, names[:3], engine).parts[0].keys == packed("I", [0, 1, 2])
    assert looked_up(NAMED, [*names[:8], names[3]], engine).parts[0].keys != IdRange(0, 9)


def test_keys_are_looked_up_by_shard() -> None:
    """Each shard gets its part, in the caller's order, with the values that belong to it."""
    engine = Engine(shards=3)
    names = [f"k{n}" for n in range(50)]
    keys = looked_up(NAMED, names, engine)
    given = TableInput(engine, NAMED)  # type: ignore[arg-type]
    parts = given.runs(OP_SET, keys, np.arange(50.0), None)
    assert sorted(shard for shard, _ in parts) == [0, 1, 2]
    for shard, run in parts:
        expected = [n for n in range(50) if shard_of(names[n], 3) == shard]
        assert unpacked("d", run.values) == expected


def test_keys_of_another_table_or_producer_are_refused() -> None:
    """Ids of another table or producer are refused: they would change other keys."""
    engine = Engine()
    keys = looked_up(NAMED, ["a"], engine)
    assert looked_up(NAMED, keys, engine) is keys
    with pytest.raises(EncodeError, match="look them up with its own keys"):
        looked_up(INTS, keys, engine)
    with pytest.raises(EncodeError, match="another producer"):
        looked_up(NAMED, keys, Engine())


# -- reading single keys from other threads -------------------------------------------------------


def test_single_keys_are_right_at_any_moment_of_a_growing_table() -> None:
    """Existing keys stay readable with a value that they had; nothing else is raised."""
    tables = ShardTables()
    view = TableView(NUMBERED, lambda: [tables], lambda look: look(), lambda: None)
    stop = threading.Event()
    faults: list[object] = []

    def look() -> None:
        try:
            while not stop.is_set():
                if view[3] != 3.5:
                    faults.append(view[3])
                if view.get(1 << 63, 1.5) != 1.5:
                    faults.append("deleted")
                view.get(newest, None)
                view.timestamp(3)
        except Exception as error:  # noqa: BLE001 - whatever a reader would be hit by
            faults.append(error)

    def apply(op: int, numbers: Any, value: float) -> None:
        found = number_keys(NUMBERED, numbers, 1).parts[0]
        values = None if op == OP_DELETE else np.full(found.count, value).tobytes()
        stamps = np.ones(found.count, dtype=np.int64).tobytes()
        from broker.protocol.messages import Chunk  # noqa: PLC0415

        run = TableRun(op, NUMBERED, found.keys, values, stamps)
        assert not tables.apply(Chunk("n1", 1, 1, 0, [], [run]), 1).fault

    newest = 0
    apply(OP_SET, [3], 3.5)
    reader = threading.Thread(target=look)
    reader.start()
    for first in range(10, 40_000, 97):
        newest = first
        apply(OP_SET, np.arange(first, first + 97, dtype=np.uint64), 1.0)
        apply(OP_SET, np.array([1 << 63], dtype=np.uint64), 1.5)
        apply(OP_DELETE, np.array([1 << 63], dtype=np.uint64), 0)
    stop.set()
    reader.join()
    assert faults == []


def test_a_single_key_is_read_between_two_steps_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key has its slot before the arrays grow; a deletion may come after the look-up."""
    tables = ShardTables()
    table = tables.table(NUMBERED)
    table.index.add(np.arange(5000, dtype=np.uint64))  # type: ignore[arg-type]
    view = TableView(NUMBERED, lambda: [tables], lambda look: look(), lambda: None)
    assert 4999 not in view
    table.reserve(5000)
    table.values[7], table.present[7] = 7.5, True
    assert view[7] == 7.5
    found = view._slot(7)
    monkeypatch.setattr(view, "_slot", lambda _key: found)
    table._delete(np.array([7]), None, None)
    assert 7 not in view


def test_what_is_no_key_of_a_view_is_absent() -> None:
    """As in a dict, any other object is absent without an error."""
    tables = ShardTables()
    for table, odd in ((NUMBERED, ["a", -1, 1 << 64, True, 1.0, None]), (NAMED, [1, None, b"a"])):
        view = TableView(table, lambda: [tables], lambda look: look(), lambda: None)
        for key in odd:
            assert key not in view
        with pytest.raises(KeyError):
            view.timestamp("a")
