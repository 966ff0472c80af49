"""What a chunk has for tables: which parts are refused, what sizes promise, what merging keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given

from broker.core.chunk_size import CHUNK_HEAD_BYTES
from broker.core.tables.conflate import conflated
from broker.errors import DecodeError
from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.messages import Chunk, IdRange, Run, TableDefine, TableKey, TableRun
from broker.protocol.operations import OP_SET
from broker.protocol.table_codec import merged, table_run_size
from tests.check_sums import with_check
from tests.unit.table_model import HISTORIES, Act, Model, chunks_of, packed

TABLES = 6
NAMED, NUMBERED = ("t", "str-f64"), ("t", "u64-i64")
ONE, TWO = packed("q", [1]), packed("q", [1, 2])
IDS = packed("I", [0])
KEY = packed("Q", [7])

GOOD: dict[str, list[Any]] = {
    "define": [4, *NAMED, ["a", "b"], 0, None],
    "define from 5": [4, *NAMED, ["a"], 5, None],
    "set of ids": [1, *NAMED, IDS, ONE, None],
    "set of a range": [1, *NAMED, [0, 2], TWO, TWO],
    "set of the last ids": [1, *NAMED, [(1 << 32) - 2, 2], TWO, None],
    "delete": [2, *NUMBERED, KEY, None, ONE],
    "increment": [3, *NUMBERED, KEY, ONE, None],
    "records": [5, *NUMBERED, KEY + ONE + ONE, None, None],
    "later elements": [3, *NUMBERED, KEY, ONE, None, "later"],
    "longest name": [3, "x" * 64, "u64-i64", KEY, ONE, None],
    "longest key": [4, *NAMED, ["ü" * 512], 0, None],
}

BAD: dict[str, Any] = {
    "no array": {"op": 1},
    "five elements": [1, *NAMED, IDS, ONE],
    "nil": None,
    "operation 0": [0, *NUMBERED, KEY, ONE, None],
    "operation 6": [6, *NUMBERED, KEY, ONE, None],
    "operation true": [True, *NUMBERED, KEY, ONE, None],
    "operation 1.0": [1.0, *NUMBERED, KEY, ONE, None],
    "operation in an array": [[1], *NUMBERED, KEY, ONE, None],
    "define of true": [4, *NAMED, ["a"], True, None],
    "name of 65": [1, "x" * 65, "u64-i64", KEY, ONE, None],
    "empty name": [1, "", "u64-i64", KEY, ONE, None],
    "name with a colon": [1, "a:b", "u64-i64", KEY, ONE, None],
    "name with a newline": [1, "a\n", "u64-i64", KEY, ONE, None],
    "name as bin": [1, b"t", "u64-i64", KEY, ONE, None],
    "kind unknown": [1, "t", "u64-f32", KEY, ONE, None],
    "kind as bin": [1, "t", b"u64-i64", KEY, ONE, None],
    "kind as array": [1, "t", ["u64-i64"], KEY, ONE, None],
    "no keys": [1, *NUMBERED, b"", b"", None],
    "part of a key": [1, *NUMBERED, KEY[:7], ONE, None],
    "ids of 8 bytes and a half": [1, *NAMED, IDS + b"12", ONE, None],
    "keys as text": [1, *NUMBERED, "12345678", ONE, None],
    "keys as array of number keys": [1, *NUMBERED, [0, 1], ONE, None],
    "range of three": [1, *NAMED, [0, 1, 2], ONE, None],
    "range of one": [1, *NAMED, [0], ONE, None],
    "range of nothing": [1, *NAMED, [0, 0], b"", None],
    "range from -1": [1, *NAMED, [-1, 1], ONE, None],
    "range of bools": [1, *NAMED, [False, True], ONE, None],
    "range beyond the ids": [1, *NAMED, [(1 << 32) - 1, 2], TWO, None],
    "values missing": [1, *NUMBERED, KEY, None, None],
    "amounts missing": [3, *NUMBERED, KEY, None, None],
    "values too few": [1, *NAMED, [0, 2], ONE, None],
    "values too many": [1, *NUMBERED, KEY, TWO, None],
    "values as array": [1, *NUMBERED, KEY, [1], None],
    "values of a delete": [2, *NUMBERED, KEY, ONE, None],
    "timestamps too few": [1, *NAMED, [0, 2], TWO, ONE],
    "timestamps as array": [1, *NUMBERED, KEY, ONE, [1]],
    "timestamps empty": [1, *NUMBERED, KEY, ONE, b""],
    "records of text keys": [5, *NAMED, KEY + ONE + ONE, None, None],
    "half a record": [5, *NUMBERED, KEY + ONE, None, None],
    "no records": [5, *NUMBERED, b"", None, None],
    "records with values": [5, *NUMBERED, KEY + ONE + ONE, ONE, None],
    "records with timestamps": [5, *NUMBERED, KEY + ONE + ONE, None, ONE],
    "records as a range": [5, *NUMBERED, [0, 1], None, None],
    "define of number keys": [4, *NUMBERED, ["a"], 0, None],
    "define from -1": [4, *NAMED, ["a"], -1, None],
    "define without first": [4, *NAMED, ["a"], None, None],
    "define of nothing": [4, *NAMED, [], 0, None],
    "define of nothing from 1": [4, *NAMED, [], 1, None],
    "define of an empty key": [4, *NAMED, ["a", ""], 0, None],
    "define of a long key": [4, *NAMED, ["x" * 1025], 0, None],
    "define of a bin": [4, *NAMED, [b"a"], 0, None],
    "define of a text": [4, *NAMED, "ab", 0, None],
    "define beyond the ids": [4, *NAMED, ["a", "b"], (1 << 32) - 1, None],
}


def chunk(tables: Any) -> bytes:
    """Return a chunk with an object delta and something for tables."""
    runs = [[OP_SET, ["x"], [1], None]]
    return with_check(msgpack.packb([PROTOCOL_VERSION, "n1", 1, 1, 0, runs, tables]))


@pytest.mark.parametrize("name", GOOD)
def test_a_part_that_keeps_the_rules_is_read(name: str) -> None:
    """And is written again as it was, but for what a later release may add."""
    read = decode_chunk(chunk([GOOD[name]]))
    assert (read.tables_fault, len(read.tables)) == ("", 1)
    assert msgpack.unpackb(encode_chunk(read))[TABLES] == [GOOD[name][:6]]


@pytest.mark.parametrize("name", BAD)
def test_a_part_that_breaks_a_rule_spoils_all_parts_and_no_run(name: str) -> None:
    """The runs on objects stand, good parts before and after do not."""
    good = GOOD["define"]
    read = decode_chunk(chunk([good, BAD[name], good]))
    assert read.tables == []
    assert read.tables_fault
    assert read.runs == [Run(OP_SET, ["x"], [1])]


@pytest.mark.parametrize("tables", [None, 5, "text", {}, b""])
def test_what_is_no_array_of_parts_is_a_fault(tables: Any) -> None:
    """Again only for tables."""
    read = decode_chunk(chunk(tables))
    assert (read.tables, read.deltas) == ([], 1)
    assert read.tables_fault


def test_a_chunk_that_is_no_messagepack_inside_its_tables_is_refused_whole() -> None:
    """Rules 1 to 3 are about all of a chunk."""
    with pytest.raises(DecodeError):
        decode_chunk(chunk([msgpack.ExtType(5, b"")]))


@given(HISTORIES)
def test_what_is_written_is_read_and_is_not_larger_than_said(history: list[list[Act]]) -> None:
    """Every part comes back equal; the sizes that a buffer counts are upper bounds."""
    for one in (one for batch in chunks_of(history) for one in batch if not one.tables_fault):
        data = encode_chunk(one)
        assert decode_chunk(data) == one
        runs = [part for part in one.tables if isinstance(part, TableRun)]
        without = Chunk(one.node, one.incarnation, 1, 0, [], [*runs])
        assert len(encode_chunk(without)) <= CHUNK_HEAD_BYTES + sum(map(table_run_size, runs))


def outcome(define: list[TableDefine], runs: list[TableRun]) -> Any:
    """Return what runs leave behind, after definitions."""
    model = Model()
    assert model.apply(Chunk("n1", 1, 1, 0, [], [*define, *runs])) is not None
    return {key: table for key, (_, table) in model.told().items() if table != ("map", [])}


def of_one_node(history: list[list[Act]]) -> tuple[list[TableDefine], list[TableRun]]:
    """Return all runs of one node's first incarnation, and what its ids mean."""
    valid = [[replace(act, breaks="") for act in acts] for acts in history]
    parts = [
        part
        for batch in chunks_of(valid)
        for one in batch
        if (one.node, one.incarnation) == ("n1", 1)
        for part in one.tables
    ]
    names: dict[TableKey, list[str]] = {}
    for part in parts:
        if isinstance(part, TableDefine):
            names.setdefault(part.table, [])[part.first :] = part.keys
    defines = [TableDefine(table, 0, keys) for table, keys in names.items()]
    return defines, [part for part in parts if isinstance(part, TableRun)]


@given(HISTORIES)
def test_merged_runs_mean_the_same_and_are_not_larger(history: list[list[Act]]) -> None:
    """Refusals too: nothing is left out and nothing changes places within a table."""
    defines, runs = of_one_node(history)
    less = merged(runs)
    assert outcome(defines, less) == outcome(defines, runs)
    assert sum(run.deltas for run in less) == sum(run.deltas for run in runs)
    assert sum(map(table_run_size, less)) <= sum(map(table_run_size, runs))


def test_neighbours_of_one_form_are_merged() -> None:
    """Ranges are merged only if one continues the other; other tables in between do not matter."""
    table, other = TableKey(*NAMED), TableKey(*NUMBERED)

    def of_range(first: int, size: int) -> TableRun:
        return TableRun(OP_SET, table, IdRange(first, size), packed("d", [0.0] * size))

    between = TableRun(OP_SET, other, KEY, ONE)
    runs = [of_range(0, 2), between, of_range(2, 3), of_range(6, 1), between]
    assert merged(runs) == [
        *(of_range(0, 5), of_range(6, 1)),
        TableRun(OP_SET, other, KEY + KEY, ONE + ONE),
    ]


@given(HISTORIES)
def test_conflated_runs_leave_the_same_behind(history: list[list[Act]]) -> None:
    """Conflated float runs have the same outcome and are not larger."""
    defines, runs = of_one_node(history)
    runs = merged([run for run in runs if run.table.is_float])
    less = conflated(runs)
    assert outcome(defines, less) == outcome(defines, runs)
    assert sum(map(table_run_size, less)) <= sum(map(table_run_size, runs))


@st.composite
def _sets(draw: st.DrawFn) -> list[TableRun]:
    table = TableKey(*NUMBERED)
    return [
        TableRun(
            OP_SET, table, packed("Q", keys), packed("q", [draw(st.integers(0, 9))] * len(keys))
        )
        for keys in draw(st.lists(st.lists(st.integers(0, 5), min_size=1), min_size=1))
    ]


@given(_sets())
def test_conflated_sets_set_each_key_once(runs: list[TableRun]) -> None:
    """To the value that it has in the end."""
    less = conflated(merged(runs))
    keys = b"".join(run.keys for run in less if isinstance(run.keys, bytes))
    assert len(keys) == 8 * len({keys[n : n + 8] for n in range(0, len(keys), 8)})
    assert outcome([], less) == outcome([], runs)
