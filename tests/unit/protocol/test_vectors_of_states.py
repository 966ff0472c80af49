"""Every vector of states in PROTOCOL.json: digests, tables, and logs with what they fold to."""

from __future__ import annotations

import re
from typing import Any

import pytest

from broker.core.content import Content
from broker.core.fold import decode_chunks
from broker.core.tables.full_state import table_of_field
from broker.core.tables.index import NameIndex
from broker.core.tables.shard import ShardTables
from broker.core.tables.table import Table
from broker.errors import DecodeError
from broker.protocol.cells import value_of as cell_value
from broker.protocol.codec import decode_following
from broker.protocol.constants import NO_ID
from broker.protocol.digest import DIGEST_BYTES, Digest
from broker.protocol.messages import Batch, LogEntry, Position, TableKey
from tests.unit.exactness import exact
from tests.unit.protocol.vectors import chosen, raw, rules_of, value_of, vectors

# By rule of 6.9 about damaged tables: how the Python program says that a table breaks it.
DAMAGES = {
    1: "cannot be read|does not hold|holds no key, a key twice, or too many",
    2: r"field v:\d is missing, k:\d is there",
    3: "or a key of the one before it is missing",
    4: r"field k:\d is missing, v:\d is there|that k:\d lacks|of keys that are missing",
}
# By rule of 6.9 about the part of a chunk for tables, those that logs break.
TABLE_FAULTS = {
    4: "column of keys",
    6: "not defined|is given another key",
    8: "would be one more than 1024",
}


# -- digests --------------------------------------------------------------------------------------


def sums_of(form: dict[str, str]) -> bytes:
    """Return 256 sums of which an entry has those that are not 0."""
    sums = bytearray(DIGEST_BYTES)
    for at, one in form.items():
        sums[8 * int(at) : 8 * int(at) + 8] = bytes.fromhex(one)
    return bytes(sums)


@pytest.mark.parametrize("name", vectors("digests"))
def test_digests_are_those_of_the_vectors(name: str) -> None:
    """Field by field, in a column, and over the keys that begin with a text."""
    entry = vectors("digests")[name]
    fields = {field["key"]: raw(field["hex"]) for field in entry["fields"]}
    for prefix, sums in {"": entry["sums"], **entry.get("prefixes", {})}.items():
        held = {key: packed for key, packed in fields.items() if key.startswith(prefix)}
        one_by_one, column = Digest(), Digest()
        for key, packed in held.items():
            one_by_one.add(key, packed)
        column.add_all([key.encode() for key in held], held.values())
        assert bytes(one_by_one) == bytes(column) == sums_of(sums)


# -- tables ---------------------------------------------------------------------------------------


def rows_of(table: Table) -> dict[str, Any]:
    """Return a table as an entry has it, with values instead of forms."""
    keys: list[Any] = (
        table.index.keys if isinstance(table.index, NameIndex) else table.index.keys.tolist()
    )
    stamps = table.timestamps
    rows = [
        [key, table.values[slot].item(), 0 if stamps is None else int(stamps[slot])]
        for slot, key in enumerate(keys)
        if table.present[slot]
    ]
    assert len(table) == len(rows)
    return {"table": table.key.name, "kind": table.key.kind, "rows": rows}


def ids_of(table: Table) -> list[dict[str, Any]]:
    """Return the ids of a table's producers as an entry has them."""
    return [
        {"node": node, "incarnation": incarnation, "slots": ids.slots[: ids.known].tolist()}
        | ({"ended": ids.ended} if ids.ended else {})
        for node, incarnation, ids in table.producers()
    ]


def floors_of(table: Table) -> dict[str, int]:
    """Return the floors of a table's blocks as an entry has them."""
    floors = [] if table.floors is None else table.floors.tolist()
    return {str(block): floor for block, floor in enumerate(floors) if floor}


def shown(tables: ShardTables | None) -> list[Any]:
    """Return tables by name and kind, comparable to `told`."""
    assert tables is not None
    return sorted((exact(rows_of(table)) for table in tables.tables.values()), key=repr)


def told(form: list[dict[str, Any]]) -> list[Any]:
    """Return what an entry says of tables, comparable to `shown`."""
    members = ("table", "kind", "rows")
    return sorted(
        (exact({one: value_of(table[one]) for one in members}) for table in form), key=repr
    )


def fields_of(form: dict[str, Any]) -> dict[str, bytes]:
    """Return the fields of a tables hash."""
    return {name: raw(one) for name, one in form.items()}


@pytest.mark.parametrize("name", vectors("tables"))
def test_tables_are_loaded_as_described(name: str) -> None:
    """Rows, ids and floors of the whole ones; the damaged ones are not shown."""
    entry = vectors("tables")[name]
    loaded = ShardTables.loaded(fields_of(entry["fields"]), entry["offset"], tracks=True)
    assert shown(loaded) == told(entry["tables"])
    for one in entry["tables"]:
        (table,) = (t for key, t in loaded.tables.items() if key == (one["table"], one["kind"]))
        assert (ids_of(table), floors_of(table)) == (one.get("ids", []), one.get("floors", {}))
    damaged = {(one["table"], one["kind"]): one["rule"] for one in entry.get("damaged", [])}
    assert loaded.damaged.keys() == damaged.keys()
    for key, fault in loaded.damaged.items():
        assert re.search(DAMAGES[damaged[key]], fault)


@pytest.mark.parametrize("name", chosen("tables", "damaged"))
def test_a_damaged_table_is_not_shown_to_readers(name: str) -> None:
    """Reading it is an error, and the others are there."""
    entry = vectors("tables")[name]
    content = Content(position=Position(b"e" * 8, entry["offset"], b"i" * 8))
    content.add_tables(fields_of(entry["fields"]))
    assert content.tables is not None
    for one in entry["damaged"]:
        with pytest.raises(DecodeError, match="of the full state is damaged"):
            content.tables.get(TableKey(one["table"], one["kind"]))


def is_of_one_write(entry: dict[str, Any]) -> bool:
    """Whether a scheduler wrote all fields at the offset of the entry."""
    fields = fields_of(entry["fields"])
    return "damaged" not in entry and all(
        table_of_field(name) is not None and int.from_bytes(data[4:12]) == entry["offset"]
        for name, data in fields.items()
    )


WRITTEN = [name for name, entry in vectors("tables").items() if is_of_one_write(entry)]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_scheduler_writes_tables_as_the_vectors_are(name: str) -> None:
    """To the last byte, if it writes all of them."""
    entry = vectors("tables")[name]
    fields = fields_of(entry["fields"])
    loaded = ShardTables.loaded(fields, entry["offset"], tracks=True)
    for table in loaded.tables.values():
        table.touch_all()
    assert dict(loaded.changed_fields(entry["offset"])) == fields


def test_there_are_tables_of_each_sort() -> None:
    """Some that one scheduler wrote, some half-written, and one for each way to be damaged."""
    assert len(WRITTEN) > 4
    assert sum(name.startswith("half-written") for name in vectors("tables")) > 4
    rules = rules_of("### 6.9 Tables", "A table is damaged if:")
    broken = [vectors("tables")[name]["damaged"] for name in chosen("tables", "damaged")]
    assert len(rules) > 3
    assert {one["rule"] for several in broken for one in several} == set(rules)


# -- logs -----------------------------------------------------------------------------------------

STARTS = [
    (log, start["name"]) for log in vectors("logs") for start in vectors("logs")[log]["starts"]
]


def start_of(log: str, name: str) -> dict[str, Any]:
    """Return a start of a log by its name."""
    (found,) = (one for one in vectors("logs")[log]["starts"] if one["name"] == name)
    return found  # type: ignore[no-any-return]


def batches_of(log: str) -> list[Batch]:
    """Read a log from its beginning, batch after batch."""
    position, batches = Position(bytes.fromhex(vectors("logs")[log]["epoch"])), []
    for entry in vectors("logs")[log]["batches"]:
        bulk = [raw(one) for one in entry.get("bulk", [])]
        batches.append(decode_following(LogEntry(raw(entry["hex"]), bulk), position))
        position = batches[-1].position
    return batches


def loaded_at(log: str, start: dict[str, Any]) -> Content:
    """Return what a reader holds that loaded a full state, before it reads the log."""
    epoch = bytes.fromhex(vectors("logs")[log]["epoch"])
    content = Content(position=Position(epoch, start["offset"], bytes.fromhex(start["id"])))
    for field in start["fields"]:
        content.add_page([field["key"].encode()], [raw(field["hex"])])
    content.add_tables(fields_of(start["tables"]))
    return content


def values_of(content: Content) -> dict[str, Any]:
    """Return what a reader gets of the cells."""
    return {key: cell_value(cell) for key, cell in content.values.items()}


def state_of(form: dict[str, Any]) -> Any:
    """Return the values of an entry, comparable to those of a reader."""
    return exact({key: value_of(one) for key, one in form.items()})


@pytest.mark.parametrize(("log", "name"), STARTS)
def test_a_log_folds_to_what_is_described(log: str, name: str) -> None:
    """After each batch: state, tables, counts, damaged keys, and skipped parts for tables."""
    start, batches = start_of(log, name), batches_of(log)
    content = loaded_at(log, start)
    offsets = [one["offset"] for one in start["after"]]
    assert offsets == list(range(start["offset"] + 1, len(batches) + 1))
    for after in start["after"]:
        batch = batches[after["offset"] - 1]
        assert batch.previous_id == content.position.batch_id
        faults: list[str] = []
        tally = content.apply(batch, decode_chunks(batch)[0], note_fault=faults.append)
        assert {count: getattr(tally, count) for count in after["counts"]} == after["counts"]
        assert exact(values_of(content)) == state_of(after["state"])
        assert shown(content.tables) == told(after["tables"])
        assert sorted(content.damaged) == after.get("damaged", [])
        rules = after.get("tables_rules", [])
        for rule, fault in zip(rules, faults, strict=True):
            assert re.search(TABLE_FAULTS[rule], fault)


@pytest.mark.parametrize(("log", "name"), STARTS)
def test_every_start_leads_to_the_same_state(log: str, name: str) -> None:
    """Whatever a scheduler was writing; only damage makes a difference, and it is counted."""
    first, start = vectors("logs")[log]["starts"][0], start_of(log, name)
    assert (first["offset"], first["id"], first["fields"]) == (0, NO_ID.hex(), [])
    one, other = first["after"][-1], start["after"][-1]
    is_equal = state_of(one["state"]) == state_of(other["state"])
    assert is_equal is (name != "damaged fields")
    assert told(one["tables"]) == told(other["tables"])


@pytest.mark.parametrize(("log", "name"), STARTS)
def test_a_whole_full_state_is_that_of_its_position(log: str, name: str) -> None:
    """If no field is from beyond and none is damaged; otherwise something differs."""
    first, start = vectors("logs")[log]["starts"][0], start_of(log, name)
    content = loaded_at(log, start)
    before = first["after"][start["offset"] - 1] if start["offset"] else {"state": {}, "tables": []}
    is_same = exact(values_of(content)) == state_of(before["state"]) and shown(
        content.tables
    ) == told(before["tables"])
    assert is_same or content.newest > start["offset"] or content.damaged
    if not content.damaged and content.newest <= start["offset"]:
        assert is_same


def test_the_logs_hold_everything_that_can_happen() -> None:
    """Each count, each rule of tables that no chunk breaks alone, and each sort of full state."""
    steps = [after for log, name in STARTS for after in start_of(log, name)["after"]]
    for count in ("deltas", "applied", "superseded", "refused", "skipped"):
        assert any(step["counts"][count] for step in steps)
    rules = rules_of("### 6.9 Tables", "The whole seventh element is skipped")
    alone = {vectors("chunks")[name]["tables_rule"] for name in chosen("chunks", "tables_rule")}
    assert len(rules) > 3
    assert alone | {one for step in steps for one in step.get("tables_rules", [])} == set(rules)
    assert any(step.get("damaged") for step in steps)
    assert sum("half-written" in name for _, name in STARTS) > 2
