"""A producer and a subscriber written from PROTOCOL.md alone.

They use a Redis client, MessagePack and the Lua files; of the package they know nothing. What they
know of tables is in `foreigntables`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import select
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import hiredis
import msgpack
import redis
import zstandard

from tests.integration.independent_tables import DEFINE, Tables, column, shard_of_number

SPEC = find_spec("broker")
assert SPEC is not None
assert SPEC.origin is not None
HOME = Path(SPEC.origin).parent
DOC = (HOME / "PROTOCOL.md").read_text("utf-8")
PASSWORD = "any"
SECONDS = 15.0


def table(*header: str) -> list[list[str]]:
    """Rows of the table of the document that begins with these column names."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOC.splitlines()]
    start = next(n for n, cells in enumerate(lines) if cells[: len(header)] == list(header))
    return lines[start : lines.index([], start)]


VERSION = 3
WORDS = b"compress"
BULK = 65536
SET, DELETE, INCREMENT = 1, 2, 3
BATCH, HEARTBEAT, NOTICE = 1, 2, 3
ZEROS = bytes(8)


def slot(text: str) -> int:
    """CRC-16/XMODEM modulo 16384."""
    crc = 0
    for byte in text.encode():
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc % 16384


def prefix_of(namespace: str, shard: int, shards: int) -> str:
    """What the names of a shard's keys begin with."""
    n, tag = 0, f"{namespace}:{shard}"
    while slot(tag) * shards // 16384 != shard:
        n += 1
        tag = f"{namespace}:{shard}.{n}"
    return f"sb:{{{tag}}}:"


@dataclass
class Unsent:
    """A numbered chunk."""

    number: int
    deltas: int
    total: int
    data: bytes
    dictionary: int = 0
    plain: bytes = b""


class Writer:
    """A producer of section 7; every call is sent by `flush`."""

    def __init__(self, client: Any, namespace: str, node: str, shards: int) -> None:
        self.client, self.node, self.token = client, node, secrets.token_bytes(8)
        self.answers: Counter[bytes] = Counter()
        self.lost = 0
        self.config = f"sb:{{{namespace}}}:config"
        self.shards = self.join(shards)
        self.prefixes = [prefix_of(namespace, n, self.shards) for n in range(self.shards)]
        self.open_deltas: list[list[tuple[int, str, Any]]] = [[] for _ in self.prefixes]
        self.open_parts: list[list[list[Any]]] = [[] for _ in self.prefixes]
        self.ids: list[dict[tuple[str, str], dict[str, int]]] = [{} for _ in self.prefixes]
        self.chunks: list[list[Unsent]] = [[] for _ in self.prefixes]
        self.accepted = [0] * self.shards
        self.dictionaries = [b""] * self.shards
        self.incarnations = [self.open(n, "", 0, 0) for n in range(self.shards)]

    def call(self, name: str, keys: Sequence[str], *args: Any) -> Any:
        """EVALSHA as section 4 says."""
        lua = (HOME / "backend" / "lua" / f"{name}.lua").read_bytes()
        sha = hashlib.sha1(lua, usedforsecurity=False).hexdigest()
        try:
            return self.client.evalsha(sha, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            self.client.script_load(lua)
            return self.client.evalsha(sha, len(keys), *keys, *args)

    def join(self, shards: int) -> int:
        """Create the namespace if it is absent; return how many shards it has."""
        version, count, _, words = self.call("join", [self.config], VERSION, shards, WORDS)
        assert (version, words) == (b"3", WORDS)
        return int(count)

    def open(self, shard: int, incarnation: Any, chunk: int, deltas: int) -> int:
        """Take or keep the node name in a shard."""
        keys = [self.prefixes[shard] + name for name in ("intake", f"stage:{self.node}")]
        (epoch,) = self.client.hmget(self.prefixes[shard] + "meta", "epoch")
        epoch = epoch or os.urandom(8)
        reply = self.call("open", keys, self.node, incarnation, self.token, chunk, deltas, epoch)
        self.answers[reply[0]] += 1
        return int(reply[1])

    def put(self, op: int, key: str, value: Any = None) -> None:
        """Buffer one delta."""
        shard = self.shard_of(key)
        self.open_deltas[shard].append((op, key, value))

    def put_table(  # noqa: PLR0917 - as the elements of a run
        self, op: int, name: str, kind: str, keys: list[Any], values: Any = None, stamps: Any = None
    ) -> None:
        """Buffer deltas of a table, each shard's as one run."""
        named = kind.startswith("str")
        for shard in range(self.shards):
            chosen = [n for n, key in enumerate(keys) if self.shard_of(key) == shard]
            if not chosen:
                continue
            parts, own = self.open_parts[shard], [keys[n] for n in chosen]
            if named:
                ids = self.ids[shard].setdefault((name, kind), {})
                new = [key for key in dict.fromkeys(own) if key not in ids]
                if new:
                    parts.append([DEFINE, name, kind, new, len(ids), None])
                    ids |= {key: len(ids) + n for n, key in enumerate(new)}
                own = [ids[key] for key in own]
            packed = [
                None if given is None else column(letter, [given[n] for n in chosen])
                for letter, given in (("d" if kind.endswith("f64") else "q", values), ("q", stamps))
            ]
            parts.append([op, name, kind, column("I" if named else "Q", own), *packed])

    def shard_of(self, key: str | int) -> int:
        """The shard of a text or number key."""
        if isinstance(key, str):
            tag = re.match(r"[^{]*\{([^}]+)\}", key)
            return zlib.crc32((tag[1] if tag else key).encode()) % self.shards
        return shard_of_number(key, self.shards)

    def flush(self) -> None:
        """Pack what is buffered and append it."""
        for shard, deltas in enumerate(self.open_deltas):
            parts, self.open_parts[shard] = self.open_parts[shard], []
            if deltas or parts:
                runs = []
                for op, group in groupby(deltas, lambda delta: delta[0]):
                    _, keys, values = zip(*group, strict=True)
                    stamps = None if op == SET else [int(time.time() * 1000)] * len(keys)
                    # What a later release might add must not disturb anybody.
                    cells = [cell(value) for value in values] if op == SET else values
                    runs.append([op, keys, None if op == DELETE else cells, stamps, "later"])
                of_tables = sum(
                    len(one[3]) // (4 if "str" in one[2] else 8)
                    for one in parts
                    if one[0] != DEFINE
                )
                self.pack(shard, len(deltas) + of_tables, runs, parts)
                deltas.clear()
            self.send(shard)

    def pack(self, shard: int, deltas: int, runs: Any, parts: Any) -> None:
        """Number a chunk."""
        chunks = self.chunks[shard]
        number, total = len(chunks) + 1, deltas + (chunks[-1].total if chunks else 0)
        head = [VERSION, self.node, self.incarnations[shard], number, int(time.time() * 1000)]
        plain = with_check([*head, runs, parts, {"later": None}])
        if number % 2:
            chunks.append(Unsent(number, deltas, total, plain))
            return
        known = self.dictionaries[shard]
        compressor = zstandard.ZstdCompressor(
            dict_data=zstandard.ZstdCompressionDict(known) if known else None
        )
        frame = compressor.compress(msgpack.packb([runs, parts, "later"], datetime=True))
        data = with_check([*head, frame, {"later": None}])
        named = struct.unpack("<I", known[4:8])[0] if known else 0
        chunks.append(Unsent(number, deltas, total, data, named, plain))

    def learn(self) -> None:
        """Read the newest dictionary of each shard."""
        for shard, prefix in enumerate(self.prefixes):
            listed = self.client.hget(prefix + "intake", ":dicts") or b""
            self.dictionaries[shard] = b""
            if listed and len(listed) % 4 == 0:
                (newest,) = struct.unpack(">I", listed[-4:])
                (field,) = self.client.hmget(prefix + "dicts", str(newest))
                self.dictionaries[shard] = dictionary(newest, field) or b""

    def send(self, shard: int) -> None:
        """Append every chunk of a shard that is not accepted."""
        while self.accepted[shard] < len(self.chunks[shard]):
            self.append(shard, self.chunks[shard][self.accepted[shard]])

    def append(self, shard: int, chunk: Unsent) -> None:
        """Append one chunk and act on the reply."""
        prefix = self.prefixes[shard]
        keys = [prefix + name for name in ("intake", "queue", "ready")]
        is_bulk = len(chunk.data) >= BULK
        call = struct.pack(
            *(">Q8sQIIIIQI", self.incarnations[shard], self.token, chunk.number, chunk.deltas),
            *(0, 0xFFFFFFFF, 0, 1 << 20, len(chunk.data) if is_bulk else 0),
        )
        call += self.node.encode()
        more = [chunk.dictionary] if chunk.dictionary else []
        reply = (
            self.append_bulk([*keys, f"{prefix}stage:{self.node}"], [call, b"", *more], chunk.data)
            if is_bulk
            else self.call("append", keys, call, chunk.data, *more)
        )
        status, *rest = [b"OK"] if isinstance(reply, bytes) else reply
        self.answers[status] += 1
        if status in (b"OK", b"DUPLICATE"):
            self.accepted[shard] = max(self.accepted[shard], chunk.number)
        elif status == b"MISSING":
            self.missing(shard, *rest)
        elif status == b"DICT":
            chunk.data, chunk.dictionary = chunk.plain, 0
            self.dictionaries[shard] = b""
        else:
            assert status == b"BUSY", status

    def append_bulk(self, keys: list[str], args: list[Any], data: bytes) -> Any:
        """Push a bulk chunk, then append it, in one transaction."""
        lua = (HOME / "backend" / "lua" / "append.lua").read_bytes()
        pipe = self.client.pipeline(transaction=True)
        pipe.script_load(lua)
        pipe.delete(keys[3])
        pipe.rpush(keys[3], data)
        pipe.evalsha(hashlib.sha1(lua, usedforsecurity=False).hexdigest(), 4, *keys, *args)
        return pipe.execute()[-1]

    def missing(self, shard: int, number: int, deltas: int) -> None:
        """Send again what Redis lost; everything is kept here, so nothing is lost."""
        base = number - 1
        total = self.chunks[shard][base - 1].total if base else 0
        self.lost += total - deltas
        assert self.join(self.shards) == self.shards
        self.open(shard, self.incarnations[shard], base, total)
        self.accepted[shard] = base

    def leave(self) -> None:
        """Give up the name for good."""
        for shard, prefix in enumerate(self.prefixes):
            args = (self.node, self.incarnations[shard], self.token)
            assert self.call("leave", [prefix + "intake"], *args) == 1

    def probe(self) -> None:
        """Ask whether Redis still has the last chunk of each shard."""
        for shard, prefix in enumerate(self.prefixes):
            record = self.client.hget(prefix + "intake", self.node) or bytes(60)
            held, token, last, deltas = struct.unpack_from(">Q8sQQ", record)
            if held < self.incarnations[shard]:
                last = deltas = 0
            else:
                assert (held, token) == (self.incarnations[shard], self.token), "fenced"
            if last < self.accepted[shard]:
                self.missing(shard, last + 1, deltas)
            self.send(shard)


def read_chunk(data: bytes, dictionaries: dict[int, bytes]) -> list[Any] | None:
    """The elements of a chunk before its check, None if it breaks a rule of 6.3."""
    try:
        assert len(data) <= 4194304
        assert data[-5:] == b"\xce" + struct.pack(">I", zlib.crc32(data[:-4]))
        fields = msgpack.unpackb(data, timestamp=3, strict_map_key=False, ext_hook=refuse)
        check_maps(fields)
        assert type(fields) is list
        assert len(fields) >= 7
        version, node, *numbers, runs = fields[:6]
        assert (version, type(version)) == (VERSION, int)
        assert type(node) is str
        assert len(numbers) == 3
        assert all(type(number) is int and number >= 0 for number in numbers)
        if type(runs) is bytes:
            content = msgpack.unpackb(
                decompressed(runs, dictionaries), timestamp=3, strict_map_key=False, ext_hook=refuse
            )
            check_maps(content)
            assert type(content) is list
            assert content
            runs, fields = content[0], [*fields[:5], *content[:2], None]
        assert type(runs) is list
        for run in runs:
            check_run(run)
    except (AssertionError, ValueError, OverflowError, TypeError, msgpack.UnpackException):
        return None
    return fields[:-1]


def with_check(fields: list[Any]) -> bytes:
    """A chunk of these elements, and its check."""
    data = msgpack.packb([*fields, 0xFFFFFFFF], datetime=True)[:-4]
    return data + struct.pack(">I", zlib.crc32(data))


def needed(data: bytes) -> int:
    """The dictionary that a chunk needs; 0 for none."""
    try:
        runs = msgpack.unpackb(data, timestamp=3, strict_map_key=False)[5]
        return int(zstandard.get_frame_parameters(runs).dict_id)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, zstandard.ZstdError):
        return 0


def dictionary(number: int, field: bytes | None) -> bytes | None:
    """What a field of the hash of dictionaries holds; None if it is damaged or absent."""
    if field is None or field[:4] != struct.pack(">I", zlib.crc32(b"%d" % number + field[4:])):
        return None
    fits = field[4:8] == bytes.fromhex("37a430ec") and len(field) <= 131072 + 4
    return field[4:] if fits and struct.unpack("<I", field[8:12]) == (number,) else None


def decompressed(frame: bytes, dictionaries: dict[int, bytes]) -> bytes:
    """What a zstd frame holds, if rule 15 allows to open it; memory for no more than 4 MiB."""
    assert frame[:4] == bytes.fromhex("28b52ffd")
    try:
        found = zstandard.get_frame_parameters(frame)
        assert found.content_size != zstandard.CONTENTSIZE_UNKNOWN
        assert max(found.content_size, found.window_size) <= 4194304
        known = None
        if found.dict_id:
            assert found.dict_id in dictionaries
            known = zstandard.ZstdCompressionDict(dictionaries[found.dict_id])
        opener = zstandard.ZstdDecompressor(dict_data=known)
        return opener.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError("not exactly one frame that may be opened") from error


def refuse(code: int, data: bytes) -> Any:
    """No extension but -1 is known."""
    raise ValueError(code, data)


def check_maps(value: Any) -> None:
    """Keys of maps are str or bin, wherever they are."""
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            assert all(isinstance(key, str | bytes) for key in value)
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def check_run(run: Any) -> None:
    """Rules 8 to 14."""
    assert type(run) is list
    op, keys, values, stamps = run[:4]
    assert type(op) is int
    assert op in (SET, DELETE, INCREMENT)
    assert type(keys) is list
    assert keys
    assert all(type(key) is str and 1 <= len(key.encode()) <= 1024 for key in keys)
    if op == DELETE:
        assert values is None
    else:
        assert type(values) is list
        assert len(values) == len(keys)
        assert op == SET or all(type(value) in (int, float) for value in values)
        assert not any(isinstance(value, list | dict | datetime) for value in values)
    if stamps is not None:
        assert type(stamps) is list
        assert len(stamps) == len(keys)
        assert all(type(stamp) is int for stamp in stamps)


def cell(value: Any) -> Any:
    """What stands for a value in a chunk: nil, bool, number or str itself, anything else packed."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return msgpack.packb(value, datetime=True)


def value_of(one: Any) -> Any:
    """The value of a cell."""
    return msgpack.unpackb(one, timestamp=3) if isinstance(one, bytes) else one


def total(value: Any, amount: Any) -> Any:
    """The sum of 6.4, None where the delta is refused."""
    if type(value) not in (int, float):
        return None
    if type(value) is int and type(amount) is int:
        return value + amount if -(1 << 63) <= value + amount < 1 << 64 else None
    return float(value) + float(amount)


@dataclass
class Copy:
    """Values at a position, and what the full-state hash held beyond it."""

    epoch: bytes = b""
    offset: int = 0
    id: bytes = ZEROS
    values: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    tables: Tables = field(default_factory=Tables)


HEAD, _, *ROWS = table("event", "connecting")
PHASES = {event: dict(zip(HEAD[1:], cells, strict=True)) for event, *cells in ROWS}


def stood_for(fields: list[Any], bulk: list[bytes]) -> bool:
    """Replace stand-ins by their bulk chunks; false if one is missing."""
    if fields[1] != BATCH:
        return True
    places = [n for n, item in enumerate(fields[14]) if type(item) is list]
    if len(places) > len(bulk):
        return False
    for n, data in zip(places, bulk[len(bulk) - len(places) :], strict=True):
        face, size = fields[14][n][:2]
        if len(data) != size or data[: len(face)] != face:
            return False
        fields[14][n] = data
    return True


def head_fits(data: bytes) -> bool:
    """Whether the check of a packet is that of its bytes before it; only batches have one."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    size = unpacker.read_array_header()
    assert unpacker.unpack() == VERSION
    if unpacker.unpack() != BATCH:
        return True
    for _ in range(11):
        unpacker.skip()
    head = data[: unpacker.tell()]
    check = struct.pack(">I", unpacker.unpack())
    return size >= 15 and hashlib.sha1(head, usedforsecurity=False).digest()[:4] == check


class Follower:
    """One shard of a subscriber of section 8."""

    def __init__(self, prefix: str, number: int, bound: float) -> None:
        self.prefix, self.number, self.bound = prefix, number, bound
        self.clock = float("inf")
        self.phase = "connecting"
        self.shown = Copy()
        self.load: Copy | None = None
        self.kept: list[list[Any]] = []
        self.bulk: list[bytes] = []
        self.ids: dict[int, bytes] = {}
        self.heard = self.proved = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.dictionaries: dict[int, bytes] = {}

    def lacking(self, fields: list[Any]) -> set[int]:
        """The dictionaries that a batch needs and that are not known."""
        return {needed(data) for data in fields[14]} - {0} - self.dictionaries.keys()

    @property
    def copy(self) -> Copy:
        """The copy that a read fills."""
        return self.load or self.shown

    def enter(self, event: str) -> None:
        """Go where the document's table says."""
        self.counts[event] += 1
        before, cell = self.phase, PHASES[event][self.phase]
        self.phase = before if cell == "-" else cell
        if self.phase == "loading" and before != "loading":
            self.load = None
            self.ids.clear()

    def subscribed(self) -> None:
        """The server confirmed."""
        self.heard = time.monotonic()
        self.kept.clear()
        if self.phase == "loading":
            self.load = None
        self.enter("subscribed")

    def packet(self, data: bytes) -> None:
        """Handle a message of the channel."""
        fields = msgpack.unpackb(data)
        bulk, self.bulk = self.bulk, []
        if (
            fields[0] != VERSION
            or fields[1] not in (BATCH, HEARTBEAT, NOTICE)
            or fields[2] != self.number
            or not head_fits(data)
            or not stood_for(fields, bulk)
        ):
            return
        self.heard = time.monotonic()
        if self.phase in ("loading", "catching_up"):
            self.kept += [fields] if fields[1] == BATCH else []
        else:
            self.take(fields)

    def take(self, fields: list[Any]) -> str:
        """Classify, apply, enter."""
        if fields[1] == NOTICE and fields[3] == self.shown.epoch:
            return "no event"
        event = self.classify(fields)
        if event == "next" and self.lacking(fields):
            self.enter("late")
            return "late"
        if event == "next" and self.phase in ("live", "stale"):
            self.apply(fields, self.shown)
        if event in ("next", "current"):
            now, published = time.monotonic(), fields[7] / 1000
            self.clock = min(self.clock, now - published)
            self.proved = published + self.clock
            event = "late" if now - self.proved > self.bound else event
        self.enter(event)
        return event

    def classify(self, fields: list[Any]) -> str:  # noqa: PLR0911 - a return for each line
        """The first line of the table that fits."""
        _, kind, _, epoch, offset, batch_id, previous, *_ = fields
        mine = self.shown
        if epoch != mine.epoch:
            return "fork"
        if offset == mine.offset:
            if batch_id != mine.id:
                return "fork"
            return "current" if kind == HEARTBEAT else "duplicate"
        if offset < mine.offset and (kind == HEARTBEAT or offset not in self.ids):
            return "behind"
        if offset < mine.offset:
            return "duplicate" if self.ids[offset] == batch_id else "fork"
        if kind == HEARTBEAT or offset > mine.offset + 1:
            return "gap"
        return "next" if previous == mine.id else "fork"

    def apply(self, fields: list[Any], copy: Copy) -> None:
        """Fold a batch into a copy and move its position."""
        _, _, _, copy.epoch, copy.offset, copy.id = fields[:6]
        self.ids[copy.offset] = copy.id
        for data in fields[14]:
            chunk = read_chunk(data, self.dictionaries)
            self.counts["skipped"] += chunk is None
            if chunk is None:
                continue
            if len(chunk) > 6:
                known = copy.tables.apply(chunk[1], chunk[2], chunk[6], copy.offset)
                self.counts["skipped"] += not known
            for op, keys, values, *_ in chunk[5]:
                for n, key in enumerate(keys):
                    if copy.floors.get(key, 0) >= copy.offset:
                        self.counts["superseded"] += 1
                    elif op == SET:
                        copy.values[key] = values[n]
                    elif op == DELETE:
                        copy.values.pop(key, None)
                    elif (now := total(copy.values.get(key, 0), values[n])) is not None:
                        copy.values[key] = now
                    else:
                        self.counts["refused"] += 1

    def catch_up(self, client: Any) -> None:
        """Read one page of head and log."""
        copy, asked = self.copy, time.monotonic()
        head, quiet, entries = self.head(client, copy.offset)
        if head is None or head[0] != copy.epoch or head[1] < copy.offset:
            return self.enter("cut")
        for entry in entries:
            fields = msgpack.unpackb(entry[b"b"])
            bulk = [entry[name] for name in sorted(entry, key=len) if name.startswith(b"c")]
            if (
                not head_fits(entry[b"b"])
                or not stood_for(fields, bulk)
                or (fields[1], fields[3], fields[4], fields[6])
                != (*(BATCH, copy.epoch, copy.offset + 1, copy.id),)
            ):
                return self.enter("cut")
            for number in self.lacking(fields):
                (field,) = client.hmget(self.prefix + "dicts", str(number))
                if (known := dictionary(number, field)) is not None:
                    self.dictionaries[number] = known
            self.apply(fields, copy)
        if copy.offset < head[1]:
            return None if entries else self.enter("cut")
        newest = max(copy.tables.newest, *copy.floors.values(), 0)
        if copy.id != head[2] or newest > copy.offset:
            return self.enter("cut")
        copy.floors.clear()
        self.shown, self.load = copy, None
        self.proved, self.clock = asked, asked - self.answered
        self.enter("caught_up" if quiet <= self.bound else "quiet")
        kept, self.kept = [one for one in self.kept if one[4] > copy.offset], []
        all(self.take(fields) == "next" for fields in kept)
        return None

    def head(self, client: Any, after: int) -> tuple[list[Any] | None, float, list[Any]]:
        """(Epoch, offset, id, snapshot's offset and id), seconds of quiet, log entries."""
        pipe = client.pipeline(transaction=True)
        pipe.time()
        names = ("epoch", "offset", "id", "snap_offset", "snap_id", "covered", "published_at")
        pipe.hmget(self.prefix + "meta", names)
        pipe.xrange(self.prefix + "log", f"{after + 1}-0", "+", count=3)
        (seconds, micros), found, entries = pipe.execute()
        epoch, offset, batch_id, snap_offset, snap_id, _, at = found
        if epoch is None:
            return None, 0, []
        head = [epoch, int(offset or 0), batch_id or ZEROS, int(snap_offset or 0), snap_id or ZEROS]
        self.answered = seconds + micros / 1e6
        quiet = self.answered - int(at or 0) / 1000
        return head, quiet, [fields for _, fields in entries]

    def read_state(self, client: Any) -> None:
        """Load the full-state hash aside."""
        run = client.info("server")["run_id"]
        head, _, _ = self.head(client, 0)
        if head is None:
            return
        self.load = load = Copy(head[0], head[3], head[4])
        cursor = -1
        while cursor:
            cursor, page = client.hscan(self.prefix + "state", max(cursor, 0), count=7)
            for key, packed in page.items():
                check, offset, flags = struct.unpack(">IQB", packed[:13])
                assert (check, flags) == (zlib.crc32(key + packed[4:]), 0)
                load.values[key.decode()] = msgpack.unpackb(packed[13:])
                if offset > load.offset:
                    load.floors[key.decode()] = offset
        fields, cursor = {}, -1
        while cursor:
            cursor, page = client.hscan(self.prefix + "tables", max(cursor, 0), count=2)
            fields |= {name.decode(): packed for name, packed in page.items()}
        load.tables = Tables.loaded(fields, load.offset)
        if client.info("server")["run_id"] == run:
            self.enter("loaded")


class Reader:
    """A subscriber of section 8; it moves on when pumped."""

    def __init__(self, client: Any, path: Path, user: str, namespace: str, bound: float) -> None:
        self.client, self.bound = client, bound
        self._login = (path, user)
        config = f"sb:{{{namespace}}}:config"
        version, shards, words = client.hmget(config, "protocol", "shards", "features")
        assert (version, words) == (b"3", WORDS)
        prefixes = [prefix_of(namespace, n, int(shards)) for n in range(int(shards))]
        self.shards = [Follower(prefix, n, bound) for n, prefix in enumerate(prefixes)]
        self.by_channel = {f"{one.prefix}live:0".encode(): one for one in self.shards}
        self.by_bulk = {f"{one.prefix}bulk:0".encode(): one for one in self.shards}
        self.drop: Callable[[bytes], bool] = lambda _data: False
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        """Subscribe on a new connection."""
        self.close()
        path, user = self._login
        self.replies = hiredis.Reader()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        channels = [name.decode() for name in (*self.by_bulk, *self.by_channel)]
        for words in (["AUTH", user, PASSWORD], ["SUBSCRIBE", *channels]):
            packed = b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
            self.socket.sendall(b"*%d\r\n" % len(words) + packed)

    def close(self) -> None:
        """Break the connection."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
            for shard in self.shards:
                shard.enter("lost")

    def pump(self) -> None:
        """Handle what arrived, then send the reads that are needed, once."""
        if self.socket is None:
            self.connect()
        assert self.socket is not None
        if select.select([self.socket], [], [], 0.005)[0]:
            self.replies.feed(self.socket.recv(1 << 20))
        self.take_replies()
        if time.monotonic() - max(shard.heard for shard in self.shards) > self.bound:
            self.connect()
        for shard in self.shards:
            if time.monotonic() - shard.proved > self.bound:
                shard.enter("silence")
            if shard.phase == "loading":
                shard.read_state(self.client)
            elif shard.phase == "catching_up":
                shard.catch_up(self.client)

    def take_replies(self) -> None:
        """Pass replies to their shards."""
        while (reply := self.replies.gets()) is not False:
            if reply == b"OK":
                continue
            kind, channel, data = reply
            if kind == b"subscribe":
                if channel in self.by_channel:
                    self.by_channel[channel].subscribed()
            elif not self.drop(data):
                if channel in self.by_bulk:
                    self.by_bulk[channel].bulk.append(data)
                else:
                    self.by_channel[channel].packet(data)

    @property
    def is_live(self) -> bool:
        """Whether every shard is complete and proved current."""
        return {shard.phase for shard in self.shards} == {"live"}

    @property
    def values(self) -> dict[str, Any]:
        """The whole content."""
        return {
            key: value_of(one) for each in self.shards for key, one in each.shown.values.items()
        }

    def table(self, name: str, kind: str) -> dict[Any, tuple[float, int]]:
        """A table's whole content: key -> (value, timestamp)."""
        found: dict[Any, tuple[float, int]] = {}
        for one in self.shards:
            if (name, kind) in one.shown.tables.tables:
                found |= one.shown.tables.tables[name, kind].content()
        return found

    def until(self, predicate: Callable[[], object], what: str) -> None:
        """Pump until a condition holds."""
        deadline = time.monotonic() + SECONDS
        while not predicate():
            phases = [(one.phase, one.shown.offset, dict(one.counts)) for one in self.shards]
            assert time.monotonic() < deadline, f"{what}: {phases}"
            self.pump()
