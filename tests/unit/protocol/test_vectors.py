"""Every vector of messages in PROTOCOL.json: read, written again, or refused by the rule named."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from typing import Any
from zlib import crc32

import pytest

from broker.core.shard import ShardState
from broker.errors import DecodeError
from broker.protocol import cells, frames
from broker.protocol.codec import (
    decode_chunk,
    decode_packet,
    encode_chunk,
    encode_packet,
    pack_value,
)
from broker.protocol.fields import pack_field, read_page
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_SET
from tests.check_sums import checked
from tests.unit.exactness import exact
from tests.unit.protocol.vectors import (
    DOC,
    PARTS,
    chosen,
    chunk_of,
    packet_of,
    raw,
    rules_of,
    value_of,
    vectors,
)

ENTRIES = [(part, name) for part in PARTS if part != "names" for name in vectors(part)]

# By rule of 6.2: how the Python program says that a value cannot be read.
VALUE_FAULTS = {
    1: "not MessagePack",
    2: "not MessagePack|a map key is not a str",
    3: "nests too deep",
}
# By rule of 6.3: how the Python program says that a chunk breaks it.
CHUNK_FAULTS = {
    1: "chunk of 4194305 bytes",
    2: "end with a check sum|check sum of the chunk is",
    3: "not MessagePack",
    4: "array of at least 7",
    5: "chunk of protocol version",
    6: "without node name or runs",
    7: "incarnation, number or time",
    8: "run is not an array of at least 4",
    9: "unknown operation|needs the word",
    10: "column of keys|empty key|key over",
    11: "columns of keys and values|delete run with values",
    12: "increment by something",
    13: "neither a scalar nor a packed value",
    14: "column of timestamps",
    15: "compressed|zstd frame|not MessagePack",
}
# The entries whose lengths and headers do not fit; that is a part of rule 3.
NOT_ONE_OBJECT = {
    *("cut short", "a byte too many", "byte c1", "byte c1 as a value"),
    *("no byte", "check sum of three bytes", "byte behind the check sum"),
}
# By rule of section 5.
PACKET_FAULTS = {
    1: "not MessagePack|array of at least 9|unknown packet kind 1 of 14 fields",
    2: "packet of protocol version",
    3: "unknown packet kind|packet numbers",
    4: "packet numbers|batch numbers",
    5: "ids are not 8 bytes",
    6: "pending_since .* is not an unsigned integer|additions of a batch are not a map",
    7: "chunks are not an array|neither bin nor array|not an array of face and size",
    8: "bulk chunk",
    10: "check of the batch is",
    11: "which this program does not know",
}
OTHER_SHARD = 9
# By rule of 6.9 about the part of a chunk for tables.
TABLE_FAULTS = {
    1: "is not an array",
    2: "array of at least 6",
    3: "no such kind|unknown operation|column|range of ids|ids are defined|records|delete run",
    4: "column|range of ids",
    5: "column of keys|empty key|key over",
    7: "4194305 deltas on tables",
}


def reader_of(entry: dict[str, Any]) -> FrameReader | None:
    """What opens the chunks of a namespace with the words and dictionaries of an entry."""
    if entry.get("words") != "compress":
        return None
    reader = FrameReader()
    for number, dictionary in entry.get("dictionaries", {}).items():
        reader.learn(int(number), raw(dictionary))
    return reader


def ends(data: bytes) -> bool:
    """Whether bytes are exactly one object; only its headers and lengths are looked at."""
    sized = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
    sized |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
    fixed = dict(
        zip(range(0xCA, 0xD9), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17), strict=True)
    )
    counted = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
    at, left = 0, 1
    while left and at < len(data):
        first, at, left = data[at], at + 1, left - 1
        if first == 0xC1:
            return False
        if first in fixed:
            at += fixed[first]
        elif first in sized:
            width, more = sized[first]
            at += width + more + int.from_bytes(data[at : at + width])
        elif first in counted:
            width, each = counted[first]
            left += each * int.from_bytes(data[at : at + width])
            at += width
        elif 0x80 <= first < 0xA0:
            left += (first & 15) * (2 if first < 0x90 else 1)
        elif 0xA0 <= first < 0xC0:
            at += first & 31
    return not left and at == len(data)


def written(entry: dict[str, Any]) -> bytes:
    """Return what the Python program writes for the content of an entry."""
    return raw(entry.get("canonical", entry["hex"]))


# -- all of them ----------------------------------------------------------------------------------


def test_the_parts_are_those_of_the_document() -> None:
    """Section 11 says what each holds, and a part that no test knows is not there."""
    known = {"names", "values", "chunks", "packets", "fields", "tables", "digests", "logs"}
    section = DOC.partition("\n## 12. Test vectors\n")[2]
    assert known == PARTS.keys() == set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize(("part", "name"), ENTRIES)
def test_every_vector_is_described(part: str, name: str) -> None:
    """Each name occurs once, and each entry says what it is."""
    assert vectors(part)[name]["description"]


@pytest.mark.parametrize(
    ("part", "member", "heading", "intro"),
    [
        ("values", "rule", "### 6.2 ", "A packed value cannot be read if:"),
        ("chunks", "rule", "### 6.3 ", "must refuse exactly these chunks"),
        ("packets", "rule", "## 5. Packets", "Skip and count a packet if:"),
        ("fields", "rule", "### 6.6 ", "A field is damaged if:"),
    ],
)
def test_every_rule_has_a_vector(part: str, member: str, heading: str, intro: str) -> None:
    """The rules by which bytes are refused are all tried, and no vector names another one."""
    rules = rules_of(heading, intro)
    assert rules == list(range(1, len(rules) + 1))
    assert len(rules) > 2
    assert {vectors(part)[name][member] for name in chosen(part, member)} == set(rules)


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", chosen("values", "value"))
def test_a_value_is_read_from_its_packed_form(name: str) -> None:
    """Type for type, and written in the one form that our producers write."""
    entry = vectors("values")[name]
    value = cells.value_of(raw(entry["hex"]))
    assert repr(value) == repr(value_of(entry["value"]))
    assert pack_value(value_of(entry["value"])) == written(entry)
    assert exact(cells.value_of(cells.cell_of(value)[0])) == exact(value)


@pytest.mark.parametrize("name", chosen("values", "rule"))
def test_a_value_out_of_the_domain_cannot_be_read(name: str) -> None:
    """By the rule it names; neither a chunk nor the full state minds."""
    entry = vectors("values")[name]
    data = raw(entry["hex"])
    with pytest.raises(DecodeError, match=VALUE_FAULTS[entry["rule"]]):
        cells.value_of(data)
    assert ends(data) is (entry["rule"] != 1)
    chunk = Chunk("n", 1, 1, 0, [Run(OP_SET, ["k"], [data])])
    assert decode_chunk(encode_chunk(chunk)) == chunk
    assert read_page([b"k"], [pack_field("k", 1, data)]).cells == [data]


def test_every_value_is_right_or_wrong() -> None:
    """Each entry has a value, or the rule by which it cannot be read."""
    entries = vectors("values")
    assert [*entries] == [*chosen("values", "value"), *chosen("values", "rule")]


# -- chunks ---------------------------------------------------------------------------------------


@pytest.fixture(params=["zstandard", "compression.zstd"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open frames with one library and with the other: both refuse the same ones."""
    if request.param == "compression.zstd":
        monkeypatch.setattr(frames, "zstandard", None)
        monkeypatch.setattr(frames, "zstd", frames.zstd or import_module("backports.zstd"))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", chosen("chunks", "chunk", "deltas"))
def test_a_chunk_is_read_as_described(name: str) -> None:
    """Type for type; and written again it is the same content in the form of our producers."""
    entry = vectors("chunks")[name]
    chunk = decode_chunk(raw(entry["hex"]), reader_of(entry))
    if "chunk" in entry:
        assert repr(replace(chunk, tables_fault="")) == repr(chunk_of(entry["chunk"]))
    else:
        assert chunk.deltas == entry["deltas"]
    assert bool(chunk.tables_fault) is ("tables_rule" in entry)
    if "tables_rule" not in entry:
        assert encode_chunk(chunk) == written(entry)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", chosen("chunks", "rule"))
def test_a_chunk_is_refused_by_the_rule_it_names(name: str) -> None:
    """As the text of the error says; behind a check sum that fits, unless that is the rule."""
    entry = vectors("chunks")[name]
    data = raw(entry["hex"])
    with pytest.raises(DecodeError, match=CHUNK_FAULTS[entry["rule"]]):
        decode_chunk(data, reader_of(entry))
    assert (data == checked(data[:-5])) is (entry["rule"] != 2)
    assert ends(data) is (name not in NOT_ONE_OBJECT)


@pytest.mark.parametrize("name", chosen("chunks", "tables_rule"))
def test_a_part_for_tables_is_skipped_alone(name: str) -> None:
    """By the rule it names; the other deltas of the chunk stand."""
    entry = vectors("chunks")[name]
    chunk = decode_chunk(raw(entry["hex"]))
    assert re.search(TABLE_FAULTS[entry["tables_rule"]], chunk.tables_fault)
    assert (chunk.tables, [run.keys for run in chunk.runs]) == ([], [["k"]])


def test_every_chunk_is_right_or_wrong() -> None:
    """Each entry says what its chunk holds, or which rule refuses it, and not both."""
    assert sorted(vectors("chunks")) == sorted(
        chosen("chunks", "chunk", "deltas") + chosen("chunks", "rule")
    )


# -- packets --------------------------------------------------------------------------------------


def unreadable(entry: dict[str, Any], shard: int) -> int:
    """Return how many packets a reader of a shard skips and counts of one, and what came before."""
    reader = ShardState(shard, 3.0)
    for bulk in entry.get("bulk", []):
        reader.bulk(raw(bulk))
    reader.packet(raw(entry["hex"]), 0.0)
    return reader.counts.packets_unreadable


@pytest.mark.parametrize("name", chosen("packets", "packet"))
def test_a_packet_is_read_as_described(name: str) -> None:
    """With the bulk chunks before it; and written again it has the bytes of the Lua commands."""
    entry = vectors("packets")[name]
    packet = decode_packet(raw(entry["hex"]), [raw(one) for one in entry.get("bulk", [])])
    assert packet == packet_of(entry["packet"])
    assert encode_packet(packet) == written(entry)
    assert unreadable(entry, packet.shard) == 0


@pytest.mark.parametrize("name", chosen("packets", "rule"))
def test_a_packet_is_skipped_by_the_rule_it_names(name: str) -> None:
    """And counted by a reader of the channel of shard 0."""
    entry = vectors("packets")[name]
    bulk = [raw(one) for one in entry.get("bulk", [])]
    assert unreadable(entry, 0) == 1
    if entry["rule"] == OTHER_SHARD:
        assert decode_packet(raw(entry["hex"]), bulk).shard
    else:
        with pytest.raises(DecodeError, match=PACKET_FAULTS[entry["rule"]]):
            decode_packet(raw(entry["hex"]), bulk)


def test_every_packet_is_right_or_wrong() -> None:
    """Each entry says what its packet holds, or which rule it breaks, and not both."""
    assert sorted(vectors("packets")) == sorted(
        chosen("packets", "packet") + chosen("packets", "rule")
    )


# -- fields of the full state ---------------------------------------------------------------------


SHORT = {"no byte"}  # has no check sum at all


def key_of(entry: dict[str, Any]) -> bytes:
    """Return the key of a field, which its check sum covers."""
    return raw(entry["key"])


@pytest.mark.parametrize("name", chosen("fields", "value"))
def test_a_field_is_read_as_described(name: str) -> None:
    """Type for type; and packed again it has the form that schedulers write."""
    entry = vectors("fields")[name]
    page = read_page([key_of(entry)], [raw(entry["hex"])])
    offset, value = value_of(entry["offset"]), value_of(entry["value"])
    assert repr((page.offsets, [*map(cells.value_of, page.cells)])) == repr(([offset], [value]))
    assert (page.names, page.damaged) == ([key_of(entry).decode()], [])
    assert pack_field(key_of(entry), offset, page.cells[0]) == written(entry)


@pytest.mark.parametrize("name", chosen("fields", "rule"))
def test_a_damaged_field_is_named(name: str) -> None:
    """It breaks the rule it names and no other."""
    entry = vectors("fields")[name]
    data, rule = raw(entry["hex"]), entry["rule"]
    assert read_page([key_of(entry)], [data]).damaged == [key_of(entry)]
    key = key_of(entry)
    assert (len(data) > 13) is (rule != 1)
    assert (data[:4] == crc32(key + data[4:]).to_bytes(4)) is (rule != 5 and name not in SHORT)
    if rule in {2, 3, 4}:
        assert ends(data[13:]) is (rule != 2)
    assert (rule == 6) <= (data[12:13] != b"\0")
    assert bool(read_page([b"k"], [crc32(b"k" + data[4:]).to_bytes(4) + data[4:]]).damaged) is (
        rule not in {4, 5} or data[12] != 0
    )


def test_damaged_fields_hide_no_other() -> None:
    """Read as one page, the same fields are damaged, and the others are all there."""
    entries = vectors("fields")
    page = read_page(
        [*map(key_of, entries.values())], [raw(one["hex"]) for one in entries.values()]
    )
    damaged, whole = chosen("fields", "rule"), chosen("fields", "value")
    assert [*entries] == [*whole, *damaged]
    assert page.damaged == [key_of(entries[name]) for name in damaged]
    assert page.names == [key_of(entries[name]).decode() for name in whole]
