"""PROTOCOL.md is what other languages build on: its tables, rules and bytes hold for the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import pytest

import broker
from broker import protocol
from broker.codec import (
    decode_chunk,
    decode_packet,
    encode_chunk,
    encode_packet,
    pack_field,
    unpack,
    unpack_fields,
)
from broker.errors import DecodeError
from broker.keys import ShardKeys, config_key, shard_of, shard_tag, slot_of
from broker.lua import NAMES, source
from broker.model import Batch, Chunk, Heartbeat, Notice, Packet, Position, Run, Status
from broker.phases import TABLE, Event
from broker.shardstate import Head, ShardState

DOC = Path(broker.__file__).with_name("PROTOCOL.md").read_text("utf-8")

# -- reading the document -------------------------------------------------------------------------


def table(*header: str) -> list[list[str]]:
    """Rows of the one table that begins with these column names, cells without backquotes."""
    lines = DOC.splitlines()
    found = [n for n, line in enumerate(lines) if _cells(line)[: len(header)] == list(header)]
    assert len(found) == 1, f"{len(found)} tables begin with {header}"
    rows = []
    for line in lines[found[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(_cells(line))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def words(cell: str) -> list[str]:
    """What a cell names in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def dumps() -> dict[str, list[tuple[str, bytes, str]]]:
    """The annotated hex dumps: name -> lines of (place, bytes, annotation)."""
    found: dict[str, list[tuple[str, bytes, str]]] = {}
    for name, text in re.findall(r"```hex (\w+)\n(.*?)```", DOC, re.DOTALL):
        assert name not in found, f"two dumps named {name}"
        found[name] = []
        for number, line in enumerate(text.splitlines(), 1):
            hexed, _, annotation = line.partition("  ")
            raw = bytes.fromhex(hexed.replace(" ", ""))
            found[name].append((f"{name} line {number}", raw, annotation.strip()))
    return found


def dump(name: str) -> bytes:
    """The bytes of one dump."""
    return b"".join(raw for _, raw, _ in dumps()[name])


def body(name: str) -> str:
    """A Lua file without its comments."""
    return re.sub(r"--[^\n]*", "", re.sub(r"--\[\[.*?\]\]", "", source(name), flags=re.DOTALL))


# -- names and numbers ----------------------------------------------------------------------------


def shown(value: object) -> str:
    """How the document writes a constant."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return ".".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_every_constant_of_the_protocol_stands_in_the_document() -> None:
    """A limit or code is the same number in protocol.py and in the document; none is missing."""
    coded = {name: shown(value) for name, value in vars(protocol).items() if name.isupper()}
    told = {
        name: value
        for names, values, _ in table("names in protocol.py", "values", "of what")
        for name, value in zip(names.split(", "), values.split(", "), strict=True)
    }
    assert told == coded


@pytest.mark.parametrize("limit", ["MAX_CHUNK_BYTES", "MAX_KEY_BYTES", "INT_MIN", "INT_MAX"])
def test_limits_named_in_rules_are_those_of_the_code(limit: str) -> None:
    """A number that a rule spells out is the constant's."""
    assert re.search(rf"(?<!\d){getattr(protocol, limit)}(?!\d)", DOC.split("### 6.5")[0])


def test_names_in_redis_are_those_of_the_code() -> None:
    """Whoever spells keys by the document finds what we wrote."""
    told = {name: words(key)[0] for name, key, *_ in table("name", "key", "type")}
    keys = ShardKeys.of("ns", 0, 1)
    coded = {"config": config_key("ns"), "pending": keys.pending("n1")}
    coded |= {name: getattr(keys, name) for name in keys.__slots__ if name != "prefix"}
    spelt = {
        name: key.replace("<namespace>", "ns").replace("<tag>", "ns:0").replace("<node>", "n1")
        for name, key in told.items()
    }
    assert spelt == coded


def test_tags_and_shards_of_the_examples() -> None:
    """The two rules that place a key give what the examples say, by the checksums named."""
    for namespace, shards, tags in table("namespace", "shards", "tags, in order"):
        name, count = words(namespace)[0], int(shards)
        assert words(tags) == [shard_tag(name, shard, count) for shard in range(count)]
    for key, four, many in table("key", "shards 4"):
        assert (shard_of(words(key)[0], 4), shard_of(words(key)[0], 4096)) == (int(four), int(many))
    assert f"0x{crc32(b'123456789'):x}" in DOC
    # 0x31c3 is below 16,384, so that the slot shows the whole checksum.
    assert f"0x{slot_of('123456789'):x}" in DOC


# -- Lua ------------------------------------------------------------------------------------------


def test_fields_of_hashes_and_log_are_those_of_the_lua_files() -> None:
    """Every field that a command reads or writes is documented, and no other."""
    told: dict[str, set[str]] = {"config": set(), "log": set(), "meta": set()}
    for where, field, *_ in table("hash", "field", "form"):
        told[where].add(words(field)[0].replace("<node>", ""))
    used = {name: set(re.findall(r"'([a-z_]+:?)'", body(name))) for name in NAMES}
    assert used["join"] == told["config"]
    assert used["drain"] >= told["log"]
    assert set().union(*used.values()) - used["join"] - told["log"] == told["meta"]


def test_every_lua_file_is_a_documented_command() -> None:
    """No command is missing, and none is told that does not exist."""
    files = {path.stem for path in Path(broker.__file__).parent.glob("lua/*.lua")}
    assert files == set(NAMES) == {row[0] for row in table("command", "called by")}


@pytest.mark.parametrize("row", table("command", "called by"), ids=lambda row: str(row[0]))
def test_keys_and_arguments_of_a_command(row: list[str]) -> None:
    """KEYS and ARGV of the table are what the Lua file binds, in this order; replies likewise."""
    name, _, keys, argv, replies = row
    for kind, told in (("KEYS", keys.split(", ")), ("ARGV", argv.split(", "))):
        fixed = [word for word in told if "..." not in word]
        bound = _bindings(body(name), kind)
        assert max(bound) == len(fixed)
        assert all(fixed[at - 1] == word for at, word in bound.items() if word)
        is_open = re.search(rf"{kind}\[[A-Za-z]|unpack\({kind}", body(name)) is not None
        assert is_open == (len(fixed) < len(told))
    statuses = set(re.findall(r"return \{'([A-Z]+)'", body(name)))
    assert set(words(replies)) == statuses


def _bindings(lua: str, kind: str) -> dict[int, str]:
    """Index -> name of the local variable it is bound to, '' where it is only used."""
    bound = dict.fromkeys((int(n) for n in re.findall(rf"{kind}\[(\d+)\]", lua)), "")
    for left, right in re.findall(r"^local ([\w, ]+) = (.*(?:KEYS|ARGV).*)$", lua, re.MULTILINE):
        for word, value in zip(left.split(", "), right.split(", "), strict=False):
            found = re.fullmatch(rf"(?:tonumber\()?{kind}\[(\d+)\]\)?", value)
            if found:
                bound[int(found[1])] = word
    return bound


def test_roles_may_call_what_their_scripts_call() -> None:
    """The ACL table names each command that a role's scripts run."""
    roles = {role: set(words(commands)) for role, commands, *_ in table("role", "commands")}
    for name, by, *_ in table("command", "called by"):
        for role in ("producer", "flush worker", "scheduler") if "everybody" in by else (by,):
            called = {word.lower() for word in re.findall(r"redis\.call\('(\w+)'", body(name))}
            assert called <= roles[role], (role, name)
            assert not re.search(r"redis\.call\(publish", body(name)) or "publish" in roles[role]


# -- bytes ----------------------------------------------------------------------------------------

EPOCH = bytes.fromhex("e1e2e3e4e5e6e7e8")
FIRST_ID, SECOND_ID = bytes.fromhex("a1a2a3a4a5a6a7a8"), bytes.fromhex("b1b2b3b4b5b6b7b8")

CHUNK = Chunk(
    node="EWR",
    incarnation=1700000000000,
    number=7,
    time_ms=1700000000123,
    runs=[
        Run(
            protocol.OP_SET,
            ["AA1", "AA1/at"],
            ["departed", datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)],
        ),
        Run(
            protocol.OP_INCREMENT,
            ["EWR/late", "EWR/min"],
            [1, -2.5],
            [1700000000100, 1700000000101],
        ),
        Run(protocol.OP_DELETE, ["AA9"], None),
    ],
)
SMALL = Chunk("JFK", 1700000000001, 1, 1700000000130, [Run(protocol.OP_SET, ["k"], [True])])

PACKETS: dict[str, Packet] = {
    "batch": Batch(
        shard=0,
        epoch=EPOCH,
        offset=2,
        id=SECOND_ID,
        previous_id=FIRST_ID,
        time_ms=1700000000200,
        covered=1700000000150123,
        trigger=protocol.TRIGGER_COUNT,
        oldest_ms=1700000000150,
        deltas=6,
        chunks=[encode_chunk(CHUNK), encode_chunk(SMALL)],
    ),
    "heartbeat": Heartbeat(0, EPOCH, 2, SECOND_ID, FIRST_ID, 1700000001200, 1700000000150123),
    "notice": Notice(0, EPOCH, 1, FIRST_ID, protocol.NO_ID, 1700000002258, 1700000000150123),
}


def test_packets_in_the_document_are_what_the_codec_writes_and_reads() -> None:
    """Each packet's dump is byte for byte the packet, both ways."""
    for name, packet in PACKETS.items():
        assert dump(name) == encode_packet(packet)
        assert decode_packet(dump(name)) == packet


def test_the_chunk_in_the_document_is_what_the_codec_writes_and_reads() -> None:
    """The chunk's dump is byte for byte the chunk, both ways; the batch's dump carries it."""
    assert dump("chunk") == encode_chunk(CHUNK)
    assert decode_chunk(dump("chunk")) == CHUNK
    assert CHUNK.deltas + SMALL.deltas == 6


def test_the_field_in_the_document_is_what_the_codec_writes_and_reads() -> None:
    """The dump of a field of the full-state hash is offset and value."""
    assert dump("field") == pack_field(2, -2.5)
    assert unpack_fields([dump("field")]) == ([2], [-2.5])


def test_every_dump_is_compared_with_something() -> None:
    """No dump stands in the document unchecked; test_lua has the order entry's."""
    assert set(dumps()) == {*PACKETS, "chunk", "field", "order"}


@pytest.mark.parametrize(
    ("place", "raw", "annotation"),
    [line for name, lines in dumps().items() if name != "order" for line in lines],
    ids=lambda value: value if isinstance(value, str) and " line " in value else "",
)
def test_annotations_say_what_the_bytes_say(place: str, raw: bytes, annotation: str) -> None:
    """Beside each number, text, array and bin of a dump stands its true value or length."""
    if said := re.fullmatch(r"[\w ]+ = (.+?)(?: \([^()]*\))?", annotation):
        value = int.from_bytes(raw) if place == "field line 1" else unpack(raw)
        assert said[1] == _as_text(value)
    elif said := re.match(r"array of (\d+)", annotation):
        assert raw in (bytes([0x90 | int(said[1])]), b"\xdd" + int(said[1]).to_bytes(4))
    elif said := re.match(r"bin of (\d+) bytes", annotation):
        assert raw == b"\xc6" + int(said[1]).to_bytes(4)
    else:
        assert not annotation


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return value.isoformat() if isinstance(value, datetime) else json.dumps(value)


# -- rules ----------------------------------------------------------------------------------------


def chunk_of(runs: Any = (), *, extra: bytes = b"", **fields: Any) -> bytes:
    """A chunk of any content; `extra` is one packed element behind the known ones."""
    head = {"version": 1, "node": "n", "incarnation": 1, "number": 1, "time": 0} | fields
    packed = [msgpack.packb(part, datetime=True) for part in (*head.values(), list(runs))]
    return bytes([0x90 | len(packed) + bool(extra)]) + b"".join(packed) + extra


def with_field(name: str, value: object) -> bytes:
    """A chunk whose head has this value in one place."""
    fields: dict[str, Any] = {name: value}
    return chunk_of(**fields)


def one_run(*run: Any) -> bytes:
    """A chunk with one run of these elements."""
    return chunk_of([list(run)])


def one_value(packed: bytes) -> bytes:
    """A chunk that sets key `k` to a value given as bytes."""
    return one_run(1, ["k"], [0], None)[:-2] + packed + b"\xc0"


def nested(levels: int) -> Any:
    """A value of so many arrays, one in the other."""
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


def sized(size: int) -> bytes:
    """A good chunk of exactly so many bytes."""
    spare = size - len(one_run(1, ["k"], ["x" * 70_000], None))
    return one_run(1, ["k"], ["x" * (70_000 + spare)], None)


LARGEST = 4 << 20
NO_KEYS: list[Any] = [None, {}, [b"k"], [1], [""], ["x" * 1025], ["ä" * 513]]
NO_VALUES: list[Any] = [None, [], [1, 2], {"a": 1}, 1]
NO_STAMPS: list[Any] = [[], [1, 2], [1.0], [True], [None], {}, 1]
BROKEN: dict[int, list[bytes]] = {
    1: [sized(LARGEST + 1)],
    2: [b"", chunk_of()[:-1], chunk_of() + b"\xc0", b"\xc1", one_value(b"\xc1")],
    3: [
        one_value(b"\xa1\xff"),
        one_value(b"\xa3\xed\xa0\x80"),
        chunk_of(extra=b"\xa1\xff"),
        chunk_of(extra=b"\x81\x01\x02"),
        chunk_of(extra=b"\xd4\x05\x00"),
        one_value(b"\xd4\x05\x00"),
        one_value(b"\xc7\x05\xff12345"),
        one_value(b"\xc7\x0c\xff" + (1_000_000_000).to_bytes(4) + bytes(8)),
        one_value(b"\xc7\x0c\xff" + bytes(4) + (253_402_300_800).to_bytes(8)),
        one_value(b"\xc7\x0c\xff" + bytes(4) + (-62_135_596_801).to_bytes(8, signed=True)),
        chunk_of(extra=b"\x91" * 1024 + b"\xc0"),
    ],
    4: [b"\xc0", b"\x80", b"\x95" + chunk_of()[1:-1]],
    5: [with_field("version", bad) for bad in (0, 2, 1.0, True, None, "1")],
    6: [
        with_field("node", b"n"),
        with_field("node", None),
        chunk_of()[:-1] + b"\x80",
        chunk_of()[:-1] + b"\xc0",
    ],
    7: [
        with_field(name, bad)
        for name in ("incarnation", "number", "time")
        for bad in (-1, 1.0, True, None, "1")
    ],
    8: [chunk_of([1]), chunk_of([{}]), one_run(), one_run(1, ["k"], [1])],
    9: [one_run(op, ["k"], [1], None) for op in (0, 4, -1, None, "1", [1], True, 1.0, 3.0)]
    + [one_run(2.0, ["k"], None, None)],
    10: [
        one_run(2, [], None, None),
        one_run(1, ["k", 1], [1, 1], None),
        *(one_run(1, keys, [1], None) for keys in NO_KEYS),
    ],
    11: [one_run(op, ["k"], values, None) for op in (1, 3) for values in NO_VALUES]
    + [one_run(2, ["k"], values, None) for values in ([], [None], 0)],
    12: [
        one_run(3, ["k"], [bad], None)
        for bad in (True, None, "1", b"1", [1], datetime(2026, 11, 22, 12, tzinfo=UTC))
    ],
    13: [
        one_run(1, ["k"], [nested(33)], None),
        one_run(1, ["k"], [{"a": nested(32)}], None),
        one_run(1, ["k"], [{b"a": 1}], None),
        one_run(1, ["k"], [[{b"a": 1}]], None),
    ],
    14: [
        one_run(op, ["k"], None if op == 2 else [1], stamps)
        for op in (1, 2, 3)
        for stamps in NO_STAMPS
    ],
}
KEPT: dict[int, list[bytes]] = {
    1: [sized(LARGEST)],
    3: [
        one_value(b"\x82\xa1a\x01\xa1a\x02"),
        one_value(b"\xd6\xff" + b"\xff" * 4),
        one_value(b"\xc7\x0c\xff" + (999_999_999).to_bytes(4) + (253_402_300_799).to_bytes(8)),
        one_value(b"\xc7\x0c\xff" + bytes(4) + (-62_135_596_800).to_bytes(8, signed=True)),
        chunk_of(extra=b"\x81\xc4\x01a\x02"),
        chunk_of(extra=b"\x91" * 1023 + b"\xc0"),
    ],
    4: [chunk_of(extra=b"\x01")],
    6: [chunk_of(node="")],
    7: [chunk_of(incarnation=0, number=0, time=(1 << 64) - 1)],
    8: [chunk_of([[1, ["k"], [1], None, "later"]]), chunk_of([])],
    9: [b"\x96\xcc\x01" + one_run(1, ["k"], [1], None)[2:]],
    10: [one_run(1, ["x" * 1024, "ä" * 512, "k", "k"], [1, 2, 3, 4], None)],
    11: [one_run(2, ["k"], None, None)],
    12: [
        one_run(3, ["k"], [bad], None)
        for bad in (1.5, -(1 << 63), (1 << 64) - 1, float("nan"), float("inf"))
    ],
    13: [
        one_run(1, ["k"], [nested(32)], None),
        one_run(1, ["k"], [{"": nested(31)}], None),
        one_run(1, ["k"], ["x" * (2 << 20)], None),
    ],
    14: [one_run(1, ["k", "l"], [1, 2], [-1, 1 << 63]), one_run(2, ["k"], None, [0])],
}


def test_every_rule_has_examples() -> None:
    """The numbered rules of the document are the ones tried here."""
    section = DOC.split("### 6.3")[1].split("### 6.4")[0]
    assert [int(n) for n in re.findall(r"^(\d+)\. ", section, re.MULTILINE)] == list(BROKEN)


@pytest.mark.parametrize(
    ("rule", "data"), [(rule, data) for rule, many in BROKEN.items() for data in many]
)
def test_a_chunk_that_breaks_a_rule_is_refused(rule: int, data: bytes) -> None:
    """Each way to break a rule costs the whole chunk."""
    with pytest.raises(DecodeError):
        decode_chunk(data)
    assert rule in BROKEN


@pytest.mark.parametrize(
    ("rule", "data"), [(rule, data) for rule, many in KEPT.items() for data in many]
)
def test_a_chunk_at_the_edge_of_a_rule_is_kept(rule: int, data: bytes) -> None:
    """What only comes near to breaking a rule is read."""
    decode_chunk(data)
    assert rule in KEPT


SKIPPED: list[Callable[[list[Any]], object]] = [
    lambda fields: fields.__setitem__(0, 2),
    lambda fields: fields.__setitem__(1, 4),
    lambda fields: fields.__setitem__(4, -1),
    lambda fields: fields.__setitem__(8, 1.0),
    lambda fields: fields.__setitem__(3, b"seven b"),
    lambda fields: fields.__setitem__(5, "eight ch"),
    lambda fields: fields.__setitem__(6, b"nine byte"),
    lambda fields: fields.__setitem__(12, ["text"]),
    lambda fields: fields.__setitem__(12, None),
    lambda fields: fields.pop(),
]


@pytest.mark.parametrize("change", SKIPPED)
def test_packets_that_a_reader_skips(change: Callable[[list[Any]], object]) -> None:
    """Each reason that the document gives for skipping a packet is one."""
    fields = unpack(dump("batch"))
    assert decode_packet(msgpack.packb(fields)) == PACKETS["batch"]
    change(fields)
    with pytest.raises(DecodeError):
        decode_packet(msgpack.packb(fields))


@pytest.mark.parametrize("name", list(PACKETS))
def test_later_elements_of_a_packet_are_ignored(name: str) -> None:
    """A reader of today reads the longer header of a later release."""
    assert decode_packet(msgpack.packb([*unpack(dump(name)), "later"])) == PACKETS[name]


# -- packets and phases ---------------------------------------------------------------------------


ID = {n: n.to_bytes(8) for n in range(10)}


def at_offset_five() -> ShardState:
    """A replica's shard that loaded at offset 3 and applied batches 4 and 5."""
    state = ShardState(0, staleness_bound=3)
    state.subscribed(0)
    state.begin_load(Head(Position(EPOCH, 5, ID[5]), Position(EPOCH, 3, ID[3]), 0, 0, 0))
    state.end_load()
    batches = [encode_packet(batch(4)), encode_packet(batch(5))]
    state.log_page(Head(Position(EPOCH, 5, ID[5]), Position(), 0, 0, 0), batches, 0)
    assert (state.phase, state.position.offset) == (Status.LIVE, 5)
    return state


def batch(offset: int, batch_id: bytes | None = None, previous: bytes | None = None) -> Batch:
    """An empty batch of the history whose ids are its offsets."""
    return Batch(0, EPOCH, offset, batch_id or ID[offset], previous or ID[offset - 1], 0, 0)


def beat(offset: int, batch_id: bytes | None = None, epoch: bytes = EPOCH) -> Heartbeat:
    """A heartbeat of that history."""
    return Heartbeat(0, epoch, offset, batch_id or ID[offset], ID[offset - 1], 0, 0)


def notice(offset: int) -> Notice:
    """A notice of that history."""
    return Notice(0, EPOCH, offset, ID[offset], ID[offset - 1], 0, 0)


CLASSIFIED: dict[str, dict[Event | None, list[Packet]]] = {
    "its epoch is not mine": {Event.FORK: [beat(5, epoch=b"epoch--9")]},
    "notice": {None: [notice(3), notice(5), notice(9)]},
    "offset = mine, id is not mine": {Event.FORK: [batch(5, ID[9]), beat(5, ID[9])]},
    "offset = mine": {Event.CURRENT: [beat(5)], Event.DUPLICATE: [batch(5)]},
    "offset < mine, heartbeat": {Event.BEHIND: [beat(4), beat(3), beat(4, ID[9])]},
    "offset < mine, batch, id I remember for that offset": {
        Event.DUPLICATE: [batch(4)],
        Event.FORK: [batch(4, ID[9])],
    },
    "offset < mine, batch, nothing remembered": {Event.BEHIND: [batch(3), batch(1)]},
    "batch, offset = mine + 1": {
        Event.NEXT: [batch(6)],
        Event.FORK: [batch(6, previous=ID[9])],
    },
    "anything else": {Event.GAP: [batch(7), beat(6), beat(9)]},
}


def test_packets_are_classified_as_the_document_says() -> None:
    """Each line of the document's table is what a replica makes of such packets."""
    told = {
        packet: set(re.findall(r"[a-z]+", events)) for packet, events in table("packet", "event")
    }
    assert list(told) == list(CLASSIFIED)
    for line, cases in CLASSIFIED.items():
        assert told[line] >= {event or "no" for event in cases}
        for event, packets in cases.items():
            for packet in packets:
                assert at_offset_five().packet(encode_packet(packet), 0) is event, (line, packet)


def test_elements_of_packets_stand_in_the_order_of_the_table() -> None:
    """The table names the elements as the annotated bytes do."""
    names = [name for _, name, *_ in table("#", "element")]
    named = [note.split(" = ")[0] for _, _, note in dumps()["batch"] if " = " in note]
    assert [*named, "chunks"] == names


def test_each_answer_has_its_line() -> None:
    """Whoever calls `append` or `drain` is told what to do about every answer."""
    replies = {row[0]: set(words(row[4])) for row in table("command", "called by")}
    told = {words(answer)[0] for answer, _ in table("answer", "then") if words(answer)}
    assert told == replies["append"]
    assert {words(answer)[0] for answer, _ in table("`drain` answers", "then")} == replies["drain"]


def test_packets_that_cannot_be_read_are_not_heard() -> None:
    """A replica that understands nothing of what is published says so within the bound."""
    state = at_offset_five()
    for second in range(10):
        state.packet(msgpack.packb([2, 2]), second)
        state.tick(second)
    assert state.phase is Status.STALE


def test_the_table_of_phases_is_the_one_that_replicas_run() -> None:
    """Every cell of the document is the cell of broker.phases, and none is missing."""
    phases = next(
        _cells(line)[1:] for line in DOC.splitlines() if _cells(line)[:2] == ["event", "connecting"]
    )
    assert set(phases) == set(Status)
    rows = table("event", "connecting")
    assert {row[0] for row in rows} == set(Event)
    told = {
        (Status(phase), Event(event)): Status(phase if cell == "-" else cell)
        for event, *cells in rows
        for phase, cell in zip(phases, cells, strict=True)
    }
    coded = {(phase, event): after for phase, row in TABLE.items() for event, after in row.items()}
    assert told == coded
