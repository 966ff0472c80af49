"""PROTOCOL.md is what other languages build on: its tables and bytes hold for the code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import msgpack
import numpy as np
import pytest

import broker
from broker.backend.acl import (
    CLUSTER,
    EVERY_CLIENT,
    FLUSHER,
    PRODUCER,
    SCHEDULER,
    SHARDED,
    SINCE,
    SUBSCRIBER,
)
from broker.backend.commands import NAMES, source
from broker.config import SETTINGS
from broker.core.shard import ShardState
from broker.core.tables.index import SPREAD, shards_of_numbers
from broker.core.transitions import TRANSITIONS, Event
from broker.engine.sender import RETRY_FIRST, RETRY_MAX
from broker.errors import DecodeError
from broker.model import Status
from broker.protocol import constants, operations
from broker.protocol.cells import cell_of
from broker.protocol.codec import decode_chunk, decode_packet, encode_chunk, encode_packet, unpack
from broker.protocol.digest import Digest, range_of
from broker.protocol.fields import pack_field, unpack_fields
from broker.protocol.frames import MAGIC, FrameReader
from broker.protocol.messages import (
    Batch,
    Chunk,
    Head,
    Heartbeat,
    LogEntry,
    Notice,
    Packet,
    Position,
    Run,
)
from broker.protocol.names import ShardKeys, config_key, shard_of, shard_tag, slot_of
from broker.protocol.table_fields import pack_table_field, unpack_table_field
from tests.check_sums import batch_of

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
    # A bar inside a cell has a backslash before it.
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    return [cell.strip().replace(r"\|", "|") for cell in cells]


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
    if isinstance(value, tuple):
        return (" " if isinstance(value[0], str) else ".").join(map(str, value))
    return str(value)


def test_every_constant_of_the_protocol_stands_in_the_document() -> None:
    """A limit or code is the same number in the code and in the document; none is missing."""
    coded = {name: shown(value) for name, value in vars(constants).items() if name.isupper()}
    reported = {
        name: value
        for names, values, _ in table("names in protocol/constants.py", "values", "of what")
        for name, value in zip(names.split(", "), values.split(", "), strict=True)
    }
    assert reported == coded


def test_the_operations_of_the_document_are_those_of_the_code() -> None:
    """Each operation has the name, code, column and effect that the code's table gives it."""
    assert table("operation", "code", "values", "effect") == [
        [op.name, str(op.code), op.column_rule, op.effect_rule]
        for op in operations.OPERATIONS.values()
    ]
    codes = [str(code) for code in operations.OPERATIONS]
    assert f"not the integer {', '.join(codes[:-1])} or {codes[-1]}." in DOC


def test_the_parts_for_tables_of_the_document_are_those_of_the_code() -> None:
    """Each part has the name, code and elements that the code's table gives it."""
    assert table("part", "elements") == [
        [part.name, f"{part.code}, name, kind, {part.elements_rule}"]
        for part in operations.TABLE_PARTS.values()
    ]


@pytest.mark.parametrize("limit", ["MAX_CHUNK_BYTES", "MAX_KEY_BYTES", "INT_MIN", "INT_MAX"])
def test_limits_named_in_rules_are_those_of_the_code(limit: str) -> None:
    """A number that a rule spells out is the constant's."""
    assert re.search(rf"(?<!\d){getattr(constants, limit)}(?!\d)", DOC.split("### 6.5")[0])


def test_names_in_redis_are_those_of_the_code() -> None:
    """Key names built from the document match ours."""
    reported = {name: words(key)[0] for name, key, *_ in table("name", "key", "type")}
    keys = ShardKeys.of_tag("ns:3", 7)
    coded = {"config": config_key("ns"), "stage": keys.stage("n1")}
    coded |= {name: getattr(keys, name) for name in keys.__slots__ if name != "prefix"}
    spelt = {
        name: key.replace("<namespace>", "ns")
        .replace("<tag>", "ns:3")
        .replace("<node>", "n1")
        .replace("<database>", "7")
        for name, key in reported.items()
    }
    assert spelt == coded


def test_tags_and_shards_of_the_examples() -> None:
    """The two rules that place a key give what the examples say, by the checksums named."""
    for namespace, shards, tags in table("namespace", "shards", "tags, in order"):
        name, count = words(namespace)[0], int(shards)
        assert words(tags) == [shard_tag(name, shard, count) for shard in range(count)]
    for key, four, many in table("key", "shards 4"):
        assert (shard_of(words(key)[0], 4), shard_of(words(key)[0], 4096)) == (int(four), int(many))
    for key, *reported in table("number key", "shards 4"):
        column = np.array([words(key)[0]], dtype=np.uint64)
        assert [int(shards_of_numbers(column, n)[0]) for n in (4, 4096)] == list(map(int, reported))
    assert f"{SPREAD:#x}" in DOC
    assert f"0x{crc32(b'123456789'):x}" in DOC
    # 0x31c3 is below 16,384, so that the slot shows the whole checksum.
    assert f"0x{slot_of('123456789'):x}" in DOC


# -- Lua ------------------------------------------------------------------------------------------


def test_fields_of_hashes_and_log_are_those_of_the_lua_files() -> None:
    """Every field that a command reads or writes is documented, and no other."""
    reported: dict[str, set[str]] = {"config": set(), "log": set(), "meta": set()}
    for where, field, *_ in table("hash", "field", "form"):
        reported[where].add(words(field)[0].replace("<node>", "").replace("<number>", ""))
    used = {name: set(re.findall(r"'([a-z_]+:?)'", body(name))) for name in NAMES}
    assert used["join"] == reported["config"]
    assert used["drain"] >= reported["log"]
    assert set().union(*used.values()) - used["join"] - reported["log"] == reported["meta"]


def test_every_lua_file_is_a_documented_command() -> None:
    """No command is missing, and each that is listed exists."""
    files = {path.stem for path in Path(broker.__file__).parent.glob("backend/lua/*.lua")}
    assert files == set(NAMES) == {row[0] for row in table("command", "called by")}


@pytest.mark.parametrize("row", table("command", "called by"), ids=lambda row: str(row[0]))
def test_keys_and_arguments_of_a_command(row: list[str]) -> None:
    """KEYS and ARGV of the table are what the Lua file binds, in this order; replies likewise."""
    name, _, keys, argv, replies = row
    for kind, reported in (("KEYS", keys.split(", ")), ("ARGV", argv.split(", "))):
        fixed = [word for word in reported if "..." not in word]
        bound = _bindings(body(name), kind)
        assert max(bound) == len(fixed)
        assert all(word in fixed[at - 1].split(" or ") for at, word in bound.items() if word)
        is_open = re.search(rf"{kind}\[[A-Za-z]|unpack\({kind}", body(name)) is not None
        assert is_open == (len(fixed) < len(reported))
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


ROLE_OF = {
    "producer": PRODUCER,
    "flush worker": FLUSHER,
    "scheduler": SCHEDULER,
    "subscriber": SUBSCRIBER,
}


def test_the_rights_are_those_that_statebroker_acl_gives() -> None:
    """The table of rights is the one that the rules are made of."""
    (header,) = [line for line in DOC.splitlines() if line.startswith("| on |")]
    roles = [ROLE_OF[name] for name in _cells(header)[1:]]
    assert roles == list(ROLE_OF.values())
    reported: list[dict[str, frozenset[str]]] = [{} for _ in roles]
    for on, *cells in table("on", "producer"):
        for role, cell in zip(reported, cells, strict=True):
            if words(cell):
                role[on] = frozenset(words(cell))
    for role, rights in zip(roles, reported, strict=True):
        coded = dict(role.keys) | {
            "channel": role.channel,
            "bulk": role.bulk,
            "-": role.server,
        }
        assert rights == {on: commands for on, commands in coded.items() if commands}
    (beside,) = re.findall(r"^Beside these, everybody: (.*?)\n\n", DOC, re.DOTALL | re.MULTILINE)
    everybody, rest = beside.split(". On a Cluster ")
    assert words(everybody) == list(EVERY_CLIENT)
    in_cluster = words(rest)[:-2]
    assert in_cluster == [*SHARDED.values(), *CLUSTER]
    assert words(rest)[-2:] == list(SINCE)
    assert set(SINCE.values()) == {(7, 2)}


# What is called outside of scripts: by reads.py, by workers that sign off or wait, and by pub/sub.
PLAIN = {
    # A bulk chunk is pushed by itself, so that it does not come through Lua.
    "producer": {"hget intake", "hmget meta", "rpush stage", "hmget dicts"},
    "flush worker": {"hdel workers", "blpop ready"},
    "scheduler": {
        *("hmget meta", "xrange log", "hmget state", "hscan state", "hdel workers"),
        *("hget intake", "hmget intake", "hscan tables", "hmget dicts"),
        # What the state takes, for its bounds.
        *("hlen state", "memory|usage state", "memory|usage tables"),
    },
    "subscriber": {
        *("hmget config", "hmget meta", "xrange log", "hmget state", "hscan state"),
        *("hget intake", "hlen tables", "hscan tables", "hmget dicts"),
    },
}


@pytest.mark.parametrize("name", ROLE_OF)
def test_a_role_may_what_it_does_and_no_more(name: str) -> None:
    """Its rights are what its scripts call on their keys, and a few plain commands."""
    does = set(PLAIN[name])
    for command, by, keys, *_ in table("command", "called by"):
        if by == name or ("everybody" in by and name != "subscriber"):
            script = "evalsha_ro" if name == "subscriber" else "evalsha"
            reported = [key.split(" or ") for key in keys.replace(" ...", "").split(", ")]
            either = {key: one for one in reported for key in one}
            does |= {f"{script} {key}" for key in either}
            for called, variable in re.findall(
                r"redis\.p?call\('(\w+)', (?:unpack\()?([a-z]\w*)", body(command)
            ):
                does |= {f"{called.lower()} {one}" for one in either.get(variable, [variable])}
            # The only one with two keys.
            does |= {f"lmove {key}" for key in re.findall(r"'LMOVE', stage, (\w+)", body(command))}
    rights = {f"{right} {on}" for on, may in ROLE_OF[name].keys.items() for right in may}
    assert rights == does


def test_who_publishes_may() -> None:
    """Scripts that publish are called by roles with the right to."""
    publishing = {by for name, by, *_ in table("command", "called by") if "(publish," in body(name)}
    assert publishing == {name for name, role in ROLE_OF.items() if "publish" in role.channel}


# -- bytes ----------------------------------------------------------------------------------------

# What append is called with, stores and answers: not MessagePack.
INTAKE = {"record", "entry", "call", "accepted"}

EPOCH = bytes.fromhex("e1e2e3e4e5e6e7e8")
FIRST_ID, SECOND_ID = bytes.fromhex("a1a2a3a4a5a6a7a8"), bytes.fromhex("b1b2b3b4b5b6b7b8")

CHUNK = Chunk(
    node="EWR",
    incarnation=1700000000000,
    number=7,
    time_ms=1700000000123,
    runs=[
        Run(
            operations.OP_SET,
            ["AA1", "AA1/at"],
            ["departed", cell_of(datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC))[0]],
        ),
        Run(
            operations.OP_INCREMENT,
            ["EWR/late", "EWR/min"],
            [1, -2.5],
            [1700000000100, 1700000000101],
        ),
        Run(operations.OP_DELETE, ["AA9"], None),
    ],
)
SMALL = Chunk("JFK", 1700000000001, 1, 1700000000130, [Run(operations.OP_SET, ["k"], [True])])

PACKETS: dict[str, Packet] = {
    "batch": Batch(
        shard=0,
        epoch=EPOCH,
        offset=2,
        id=SECOND_ID,
        previous_id=FIRST_ID,
        time_ms=1700000000200,
        covered=1700000000150123,
        trigger=constants.TRIGGER_COUNT,
        oldest_ms=1700000000150,
        deltas=6,
        chunks=[encode_chunk(CHUNK), encode_chunk(SMALL)],
    ),
    "heartbeat": Heartbeat(0, EPOCH, 2, SECOND_ID, FIRST_ID, 1700000001200, 1700000000150123),
    "notice": Notice(0, EPOCH, 1, FIRST_ID, constants.NO_ID, 1700000002258, 1700000000150123),
}


def test_packets_in_the_document_are_what_the_codec_writes_and_reads() -> None:
    """Each packet's dump is byte for byte the packet, both ways."""
    for name, packet in PACKETS.items():
        assert dump(name) == encode_packet(packet)
        assert decode_packet(dump(name)) == packet


def test_the_table_of_packets_names_version_and_kinds() -> None:
    """The first two rows hold numbers that a client copies."""
    version, kind = table("#", "element")[:2]
    assert version[3:] == [str(constants.PROTOCOL_VERSION)] * 3
    kinds = (constants.KIND_BATCH, constants.KIND_HEARTBEAT, constants.KIND_NOTICE)
    assert kind[3:] == [*map(str, kinds)]


def test_the_chunk_in_the_document_is_what_the_codec_writes_and_reads() -> None:
    """The chunk's dump is byte for byte the chunk, both ways; the batch's dump carries it."""
    assert dump("chunk") == encode_chunk(CHUNK)
    assert decode_chunk(dump("chunk")) == CHUNK
    assert CHUNK.deltas + SMALL.deltas == 6


def test_the_compressed_chunk_in_the_document_is_what_the_codec_reads() -> None:
    """Its frame holds the run that the text names; zstd is free in how it writes it."""
    chunk = decode_chunk(dump("compressed"), FrameReader())
    keys = [f"bus/0000{n}" for n in range(1, 5)]
    assert chunk == Chunk(
        "EWR", 1700000000000, 9, 1700000000125, [Run(operations.OP_SET, keys, ["departed"] * 4)]
    )


def test_the_field_in_the_document_is_what_the_codec_writes_and_reads() -> None:
    """The dump of a field of the full-state hash is check sum, offset, flags and value."""
    assert dump("field") == pack_field("EWR/min", 2, -2.5)
    assert unpack_fields([b"EWR/min"], [dump("field")]) == ([2], [-2.5])


def test_the_field_of_a_table_in_the_document_is_what_the_codec_writes_and_reads() -> None:
    """The dump of a field of the tables hash is head, flags and keys."""
    name, keys = "delay:str-i64:k:0", ["JFK/ü", "LGA"]
    assert dump("table_field") == pack_table_field(name, 3, keys)
    assert unpack_table_field(name, dump("table_field")) == (3, keys)


def test_the_digest_in_the_document_is_what_we_sum_up() -> None:
    """Range and entry of each example, computed as the text says and by the code."""
    rows = [
        *table("key", "content", "range", "entry"),
        # Of tables, the name of the field counts.
        *table("field", "content", "range", "entry"),
    ]
    assert len(rows) == 4
    assert bytes.fromhex(rows[3][1].strip("`")) == dump("table_field")[12:]
    for key, packed, at, entry in rows:
        digest = Digest()
        digest.add(key.strip("`"), bytes.fromhex(packed.strip("`")))
        expected = [0] * 256
        expected[int(at)] = int(entry.strip("`"), 16)
        assert digest.sums == expected
        assert range_of(key.strip("`")) == int(at)
        name = crc32(key.strip("`").encode())
        content = crc32(key.strip("`").encode() + bytes.fromhex(packed.strip("`")))
        assert ((name + 1) * (content + 1) % (1 << 64)).to_bytes(8).hex() == entry.strip("`")
        assert name >> 24 == int(at)


def test_every_dump_is_compared_with_something() -> None:
    """No dump stands in the document unchecked; test_commands has those of the intake."""
    assert set(dumps()) == {*PACKETS, "chunk", "compressed", "field", "table_field", *INTAKE}


@pytest.mark.parametrize(
    ("place", "raw", "annotation"),
    [line for name, lines in dumps().items() if name not in INTAKE for line in lines],
    ids=lambda value: value if isinstance(value, str) and " line " in value else "",
)
def test_annotations_say_what_the_bytes_say(place: str, raw: bytes, annotation: str) -> None:
    """Beside each number, text, array and bin of a dump stands its true value or length."""
    if said := re.fullmatch(r"[\w ]+ = (.+?)(?: \([^()]*\))?", annotation):
        is_offset = place in {"field line 2", "table_field line 2"}
        value = int.from_bytes(raw) if is_offset else unpack(raw)
        assert said[1] == _as_text(value)
    elif said := re.fullmatch(r'check, of "(.+)" and what follows', annotation):
        name, what = place.partition(" ")[0], said[1].encode()
        assert raw == crc32(what + dump(name)[len(raw) :]).to_bytes(4)
    elif said := re.match(r"array of (\d+)", annotation):
        assert raw in (bytes([0x90 | int(said[1])]), b"\xdd" + int(said[1]).to_bytes(4))
    elif said := re.match(r"bin of (\d+) bytes", annotation):
        assert raw in (b"\xc4" + bytes([int(said[1])]), b"\xc6" + int(said[1]).to_bytes(4))
    elif said := re.fullmatch(r"magic number; .*; content of (\d+) bytes", annotation):
        assert raw == MAGIC + b"\x20" + bytes([int(said[1])])
    elif annotation == "check":
        assert (raw[:1], len(raw)) == (b"\xce", 5)
    elif said := re.fullmatch(r'check, of "(.+)" and what follows', annotation):
        assert raw == crc32(said[1].encode() + dump("field")[4:]).to_bytes(4)
    else:
        assert not annotation


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    return (
        value.isoformat() if isinstance(value, datetime) else json.dumps(value, ensure_ascii=False)
    )


SKIPPED: list[Callable[[list[Any]], object]] = [
    lambda fields: fields.__setitem__(0, 1),
    lambda fields: fields.__setitem__(1, 4),
    lambda fields: fields.__setitem__(4, -1),
    lambda fields: fields.__setitem__(8, 1.0),
    lambda fields: fields.__setitem__(3, b"seven b"),
    lambda fields: fields.__setitem__(5, "eight ch"),
    lambda fields: fields.__setitem__(6, b"nine byte"),
    lambda fields: fields.__setitem__(9, 3),
    lambda fields: fields.__setitem__(12, None),
    lambda fields: fields.__setitem__(12, {"pending_since": -1}),
    lambda fields: fields.__setitem__(12, {"clock": 1}),
    lambda fields: fields.__setitem__(14, ["text"]),
    lambda fields: fields.__setitem__(14, [[b"face", 65_536]]),
    lambda fields: fields.__setitem__(14, None),
    lambda fields: fields.pop(),
]


@pytest.mark.parametrize("change", SKIPPED)
def test_packets_that_a_reader_skips(change: Callable[[list[Any]], object]) -> None:
    """Each reason that the document gives for skipping a packet is one."""
    fields = unpack(dump("batch"))
    assert decode_packet(batch_of(fields)) == PACKETS["batch"]
    change(fields)
    with pytest.raises(DecodeError):
        decode_packet(batch_of(fields))


def test_a_batch_that_changed_without_its_check_is_skipped() -> None:
    """Even if everything in it is as the rules say."""
    fields = unpack(dump("batch"))
    for place, value in ((2, 1), (4, 7), (7, 0), (8, 0), (9, 2), (10, 0), (11, 0), (12, {"a": 1})):
        changed = [*fields]
        changed[place] = value
        assert decode_packet(batch_of(changed))
        with pytest.raises(DecodeError, match="check of the batch"):
            decode_packet(msgpack.packb(changed))


@pytest.mark.parametrize("name", list(PACKETS))
def test_later_elements_of_a_packet_are_ignored(name: str) -> None:
    """A reader of today reads the longer header of a later release."""
    fields = [*unpack(dump(name)), "later"]
    data = batch_of(fields) if name == "batch" else msgpack.packb(fields)
    assert decode_packet(data) == PACKETS[name]


def test_the_limits_to_recommend_are_the_defaults() -> None:
    """A client in another language that takes them behaves as ours."""
    (text,) = re.findall(r"\*\*Limits to recommend\.\*\* (.+?)\n\n", DOC, re.DOTALL)
    names = ("chunk_bytes", "buffer_bytes", "keep_seconds", "keep_bytes", "pending_bytes")
    sizes = [float(number) for number in re.findall(r"\d+", text)]
    assert sizes == [*(SETTINGS[name].default for name in names), 1e3 * RETRY_FIRST, RETRY_MAX]


# -- packets and phases ---------------------------------------------------------------------------


ID = {n: n.to_bytes(8) for n in range(10)}


def at_offset_five() -> ShardState:
    """A replica's shard that loaded at offset 3 and applied batches 4 and 5."""
    state = ShardState(0, staleness_bound=3)
    state.subscribed(0)
    state.begin_load(Head(Position(EPOCH, 5, ID[5]), Position(EPOCH, 3, ID[3]), 0, 0, 0))
    state.end_load()
    batches = [LogEntry(encode_packet(batch(offset))) for offset in (4, 5)]
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


def event_of(packet: Packet) -> Event | None:
    """What a shard at offset 5 makes of a packet."""
    state = at_offset_five()
    before = state.events.copy()
    state.packet(encode_packet(packet), 0)
    found = [event for event in Event if state.events[event] > before[event]]
    assert len(found) <= 1
    return found[0] if found else None


def test_packets_are_classified_as_the_document_says() -> None:
    """Each line of the document's table is what a replica makes of such packets."""
    reported = {
        packet: set(re.findall(r"[a-z]+", events)) for packet, events in table("packet", "event")
    }
    assert list(reported) == list(CLASSIFIED)
    for line, cases in CLASSIFIED.items():
        assert reported[line] >= {event or "no" for event in cases}
        for event, packets in cases.items():
            for packet in packets:
                assert event_of(packet) is event, (line, packet)


def test_elements_of_packets_stand_in_the_order_of_the_table() -> None:
    """The table names the elements as the annotated bytes do."""
    names = [name for _, name, *_ in table("#", "element")]
    named = [note.split(" = ")[0] for _, _, note in dumps()["batch"] if " = " in note]
    assert [*named, "check", "chunks"] == names


def test_each_answer_has_its_line() -> None:
    """The document says how to handle every reply of `append` and `drain`."""
    replies = {row[0]: set(words(row[4])) for row in table("command", "called by")}
    reported = {words(answer)[0] for answer, _ in table("answer", "then") if words(answer)}
    assert reported == replies["append"]
    assert {words(answer)[0] for answer, _ in table("`drain` answers", "then")} == replies["drain"]


def test_packets_that_cannot_be_read_do_not_keep_a_replica_live() -> None:
    """A replica that cannot read any packet becomes stale."""
    state = at_offset_five()
    for second in range(10):
        state.packet(msgpack.packb([2, 2]), second)
        state.tick(second)
    assert state.phase is Status.STALE


def test_the_table_of_phases_is_the_one_that_replicas_run() -> None:
    """Every cell of the document is the cell of broker.core.transitions, and none is missing."""
    phases = next(
        _cells(line)[1:] for line in DOC.splitlines() if _cells(line)[:2] == ["event", "connecting"]
    )
    assert set(phases) == set(Status)
    rows = table("event", "connecting")
    assert {row[0] for row in rows} == set(Event)
    reported = {
        (Status(phase), Event(event)): Status(phase if cell == "-" else cell)
        for event, *cells in rows
        for phase, cell in zip(phases, cells, strict=True)
    }
    coded = {
        (phase, event): after for phase, row in TRANSITIONS.items() for event, after in row.items()
    }
    assert reported == coded
