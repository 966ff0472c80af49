"""Tables whose full state others damaged: what is lost or altered is named, and hides no other."""

from __future__ import annotations

import struct
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.core.tables.full_state import table_of_field
from broker.core.tables.shard import ShardTables
from broker.errors import DecodeError
from broker.protocol.constants import BLOCK_SLOTS
from broker.protocol.messages import Chunk, TableDefine, TableKey, TableRun
from broker.protocol.operations import OP_DELETE, OP_SET
from broker.protocol.sums import with_head, without_head
from broker.protocol.table_fields import pack_table_field, unpack_table_field

NAMED, NUMBERS = TableKey("t", "str-i64"), TableKey("u", "u64-f64")
ROWS = 700  # two blocks
AT = 3


def numbers(letter: str, *values: float) -> bytes:
    """Pack numbers."""
    return struct.pack(f"<{len(values)}{letter}", *values)


def history() -> list[Chunk]:
    """Return three batches that fill two tables."""
    names = [f"k{n}" for n in range(ROWS)]
    keys = numbers("Q", *range(ROWS))
    return [
        Chunk("n", 1, 1, 0, [], [TableDefine(NAMED, 0, names)]),
        Chunk(
            *("n", 1, 2, 0, []),
            [TableRun(OP_SET, NAMED, numbers("I", *range(ROWS)), numbers("q", *range(ROWS)))],
        ),
        Chunk("n", 1, 3, 0, [], [TableRun(OP_SET, NUMBERS, keys, numbers("d", *range(ROWS)))]),
    ]


def written() -> tuple[ShardTables, dict[str, bytes]]:
    """Return the tables of the history, and their full state."""
    tables = ShardTables(tracks=True)
    for offset, chunk in enumerate(history(), 1):
        tables.apply(chunk, offset)
    fields = dict(tables.changed_fields(AT))
    tables.clean(0)
    return tables, fields


RIGHT, FIELDS = written()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_field_that_is_lost_is_noticed(name: str) -> None:
    """The table that lacks it is named and not shown with fewer rows; the other one is whole."""
    fields = {key: one for key, one in FIELDS.items() if key != name}
    loaded = ShardTables.loaded(fields, AT)
    if ":d:" in name:
        # Nothing else of the full state says that a producer had ids.
        assert not loaded.damaged
        return
    table = table_of_field(name)
    assert [*loaded.damaged] == [table]
    assert [*loaded.tables] == [{NAMED: NUMBERS, NUMBERS: NAMED}[table or NAMED]]
    with pytest.raises(DecodeError, match=r"table . \(.*\) of the full state is damaged: field .:"):
        loaded.get(table or NAMED)


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_a_field_that_is_altered_is_named_and_not_read(name: str, data: st.DataObject) -> None:
    """One bit anywhere, the offset included: nothing of it is applied, other tables are whole."""
    bad = bytearray(FIELDS[name])
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    loaded = ShardTables.loaded(FIELDS | {name: bytes(bad)}, AT)
    table = table_of_field(name)
    which = name.split(":", 2)[2]
    assert loaded.damaged == {table: f"field '{which}' cannot be read"}
    (other,) = {NAMED, NUMBERS} - {table}
    assert [*loaded.tables] == [other]
    assert not [one for one in loaded.differences(RIGHT) if one[0].startswith(f"{other.name}[")]


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_a_field_that_others_wrote_is_named_or_read_as_it_is(
    name: str, data: st.DataObject
) -> None:
    """Whatever they put under a right check sum: as above, and no reader takes much memory."""
    content = bytearray(without_head(name.encode(), FIELDS[name])[1])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    offset = data.draw(st.sampled_from([0, AT, AT + 1, (1 << 64) - 1]))
    bad = with_head(name.encode(), offset, bytes(content))
    loaded = ShardTables.loaded(FIELDS | {name: bad}, AT)
    table = table_of_field(name)
    assert loaded.damaged.keys() <= {table}
    (other,) = {NAMED, NUMBERS} - {table}
    assert not [one for one in loaded.differences(RIGHT) if one[0].startswith(f"{other.name}[")]
    for one in loaded.tables.values():
        assert one.values.size <= 2 * BLOCK_SLOTS


# Content of two tables of one row, by field.
ONE_ROW = {
    f"t:{kind}:{what}:0": content
    for kind, keys in (("u64-f64", numbers("Q", 7)), ("str-f64", ["a"]))
    for what, content in (
        ("k", keys),
        ("v", [b"\x80" + bytes(63), numbers("d", 1.5) + bytes(4088), None]),
    )
}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t:u64-f64:v:0", [bytes(64), bytes(4088) + numbers("d", 1.0), None]),
        ("t:u64-f64:v:0", [bytes(64), bytes(4095) + b"\x80", None]),
        ("t:u64-f64:v:0", [bytes(64), bytes(4096), numbers("q", 1) + bytes(4088)]),
        ("t:str-f64:d:1:n1", [b"", 0]),
        ("t:str-f64:d:1:n1", [b"", 0, []]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, 5]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, {}]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, [1]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, [True, 1]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, [0, 1, 1, 2]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, [1, 0]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0, 1), 0, [1, 1, 2, 1]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0, 1), 0, [1, 1]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, [1, 2]]),
        ("t:str-f64:d:1:n1", [numbers("I", 0), 0, [2, 1]]),
        ("t:u64-f64:k:0", b"1234567"),
        ("t:u64-f64:k:0", b""),
        ("t:u64-f64:k:0", bytes(16)),
        ("t:u64-f64:k:0", 5),
        ("t:u64-f64:v:0", [bytes(64), bytes(8), None]),
        ("t:u64-f64:v:0", [bytes(1), bytes(4096), None]),
        ("t:u64-f64:v:0", [bytes(64), bytes(4096)]),
        ("t:u64-f64:v:99999999999999", [bytes(64), bytes(4096), None]),
        ("t:u64-f64:v:0", 5),
        ("t:str-f64:k:0", ["a", "a"]),
        ("t:str-f64:k:0", "ab"),
        ("t:str-f64:k:0", ["a", 1]),
        ("t:str-f64:k:0", [["a"]]),
        ("t:str-f64:d:1:n1", [b"123", 0, [1, 1]]),
        ("t:str-f64:d:1:n1", [numbers("I", 4_000_000_000), 0, [1, 1]]),
        ("t:str-f64:d:1", [numbers("I", 0), 0, [1, 1]]),
    ],
)
def test_what_a_field_may_not_hold_damages_its_table(name: str, content: Any) -> None:
    """The fault names the field."""
    whole = {one: pack_table_field(one, 1, packed) for one, packed in ONE_ROW.items()}
    assert not ShardTables.loaded(whole, 1).damaged
    loaded = ShardTables.loaded(whole | {name: pack_table_field(name, 1, content)}, 1)
    (fault,) = loaded.damaged.values()
    assert "cannot be read" not in fault
    assert "field " in fault or "cannot be decoded" in fault


@pytest.mark.parametrize(
    "name", ["t:u64-f64", "t:u64-f32:k:0", "t:u64-f64:x:0", "t:u64-f64:v:zero", "t:str-f64:d:one:n"]
)
def test_a_field_of_another_name_is_ignored(name: str) -> None:
    """Unknown fields may come with a later version."""
    loaded = ShardTables.loaded(FIELDS | {name: b"anything"}, AT)
    assert loaded.differences(RIGHT) == []
    assert not loaded.damaged
    assert loaded.digest_of_fields() == ShardTables.loaded(FIELDS, AT).digest_of_fields()


def test_deltas_of_a_damaged_table_are_left_out() -> None:
    """A scheduler goes on with the other tables of the same chunk, and leaves its fields alone."""
    fields = {key: one for key, one in FIELDS.items() if key != "t:str-i64:k:0"}
    loaded = ShardTables.loaded(fields, AT, tracks=True)
    parts = [
        TableRun(OP_SET, NAMED, numbers("I", 1), numbers("q", 5)),
        TableRun(OP_SET, NUMBERS, numbers("Q", 1), numbers("d", 5)),
    ]
    outcome = loaded.apply(Chunk("n", 1, 4, 0, [], [*parts]), AT + 1)
    assert (outcome.fault, outcome.applied) == ("", 1)
    assert [name for name, _ in loaded.changed_fields(AT + 1)] == ["u:u64-f64:v:0"]


def test_a_scheduler_writes_all_of_a_table_again() -> None:
    """What was lost or altered comes back as it was; what does not belong to it is named to go."""
    tables, fields = written()
    del fields["t:str-i64:v:0"]
    fields["u:u64-f64:v:1"] = fields["u:u64-f64:v:0"]
    fields["gone:u64-f64:v:0"] = b""
    fields["unknown"] = b""
    assert tables.mark_damage(fields, AT) == ["gone:u64-f64:v:0"]
    assert dict(tables.changed_fields(AT)) == FIELDS
    tables.clean(0)
    assert tables.mark_damage(FIELDS, AT) is None
    assert not [*tables.changed_fields(AT)]


def test_content_has_one_form() -> None:
    """It does not depend on what a block held before, nor on what other blocks hold."""
    tables = ShardTables(tracks=True)
    run = TableRun(OP_SET, NUMBERS, numbers("Q", 1, 600), numbers("d", 1.5, 2.5))
    stamped = TableRun(OP_SET, NUMBERS, numbers("Q", 1), numbers("d", 3.5), numbers("q", 5))
    deleted = TableRun(OP_DELETE, NUMBERS, numbers("Q", 1))
    keys = TableRun(OP_DELETE, NUMBERS, numbers("Q", *range(BLOCK_SLOTS)))
    tables.apply(Chunk("n", 1, 1, 0, [], [keys, run, stamped, deleted]), 1)
    fields = dict(tables.changed_fields(1))
    first = unpack_table_field("u:u64-f64:v:0", fields["u:u64-f64:v:0"])[1]
    second = unpack_table_field("u:u64-f64:v:1", fields["u:u64-f64:v:1"])[1]
    assert first == [bytes(64), bytes(4096), None]
    assert second == [b"\x80" + bytes(63), numbers("d", 2.5) + bytes(4088), None]


@pytest.mark.parametrize("what", ["k", "v", "d"])
def test_a_number_without_bound_is_no_field(what: str) -> None:
    """Python converts no text of thousands of digits; a name that others wrote stops no load."""
    name = f"t:u64-f64:{what}:" + "9" * 5000
    assert table_of_field(name) is None
    loaded = ShardTables.loaded(FIELDS | {name: b"x"}, AT)
    assert not loaded.damaged
    assert loaded.altered(FIELDS | {name: b"x"}, loaded.digest()) == ()
