"""The table of operations is whole, and nothing that goes by it knows an operation of its own."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from broker.protocol.operations import (
    NAMED,
    OPERATIONS,
    TABLE_PARTS,
    Column,
    Form,
    Op,
    Operation,
    op_of_part,
)

BEFORE = {"number": 5, "text": "x"}
GIVEN: dict[Column, Any] = {Column.NOTHING: None, Column.VALUES: ["v"], Column.AMOUNTS: [2]}

each_op = pytest.mark.parametrize("op", OPERATIONS.values(), ids=lambda op: str(op.name))


def test_every_name_has_a_row_and_every_row_a_code_of_its_own() -> None:
    """What `Change.operation` may be is what the table has."""
    assert tuple(NAMED) == get_args(Operation)
    assert [op.code for op in OPERATIONS.values()] == list(OPERATIONS)


def test_an_operation_on_a_table_has_the_code_and_name_that_it_has_elsewhere() -> None:
    """One number means one thing in a chunk; records are sets, laid out otherwise."""
    columns = [part for part in TABLE_PARTS.values() if part.form is Form.COLUMNS]
    assert [(part.code, part.name) for part in columns] == [
        (op.code, op.name) for op in OPERATIONS.values()
    ]
    assert all(op_of_part(part.code).name == part.name for part in columns)
    (records,) = [part for part in TABLE_PARTS.values() if part.form is Form.RECORDS]
    assert op_of_part(records.code).name == "set"


@each_op
def test_columns_of_the_table_agree_with_the_effect(op: Op) -> None:
    """`removes` and `overwrites` of each row agree with what its effect does to a value."""
    ends = []
    for before in BEFORE.values():
        values = {"k": before}
        after, unchanged = op.effect(values, ["k"], GIVEN[op.column])
        ends.append(values.get("k"))
        assert ("k" not in values) == op.removes
        if not unchanged:
            assert next(iter(after)) == values.get("k")
    assert op.overwrites == (ends[0] == ends[1])


@each_op
def test_an_effect_names_the_deltas_that_changed_nothing(op: Op) -> None:
    """They cause no change, and count as refused where the table says so."""
    values: dict[str, Any] = {"text": "x", "number": 5}
    before = dict(values)
    keys = ["number", "absent", "text"]
    given = None if op.column is Column.NOTHING else GIVEN[op.column] * len(keys)
    after, unchanged = op.effect(values, keys, given)
    reported = dict(zip(keys, after, strict=True))
    for n, key in enumerate(keys):
        if n in unchanged:
            assert values.get(key) == before.get(key)
        else:
            assert values.get(key) == reported[key]
            assert values.get(key, before) != before.get(key, values)
    assert op.refuses == (unchanged == [2])
