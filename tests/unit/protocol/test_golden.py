"""Golden bytes: what another language has to write and read, byte for byte.

Changing one is a change of the protocol. The vectors are those of `broker/PROTOCOL.json`; models of
the first ones of each part are here, under the same names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgpack
import numpy as np
import pytest

from broker.core.tables.index import shards_of_numbers
from broker.model import Token
from broker.protocol.cells import cell_of
from broker.protocol.cells import value_of as cell_value
from broker.protocol.codec import (
    decode_chunk,
    decode_packet,
    encode_chunk,
    encode_packet,
    pack_value,
    unpack,
)
from broker.protocol.constants import INT_MAX, INT_MIN, NO_ID
from broker.protocol.fields import pack_field, unpack_fields
from broker.protocol.messages import (
    Batch,
    Chunk,
    Heartbeat,
    IdRange,
    Notice,
    Run,
    TableDefine,
    TableKey,
    TableOp,
    TableRun,
)
from broker.protocol.names import ShardKeys, config_key, shard_of, shard_tag, slot_of
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_RECORDS, OP_SET
from tests.unit.exactness import exact
from tests.unit.protocol.vectors import PARTS, value_of, vectors

EPOCH = bytes.fromhex("e1e2e3e4e5e6e7e8")
ID_A, ID_B = bytes.fromhex("a1a2a3a4a5a6a7a8"), bytes.fromhex("b1b2b3b4b5b6b7b8")
TIME_MS = 1_700_000_000_123
HEAD = ("EWR", 1_700_000_000_000, 7, TIME_MS)


def chunk(*runs: Run) -> Chunk:
    """Return a chunk with the head that all vectors share."""
    return Chunk(*HEAD, [*runs])


def for_tables(*parts: TableOp) -> Chunk:
    """Return a chunk of the same head that is for tables only."""
    return Chunk(*HEAD, [], [*parts])


def column(kind: str, *numbers: float) -> bytes:
    """Return little-endian numbers: of ids I, keys Q, values d or q, times q."""
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)


DELAY, SEATS = TableKey("delay", "str-f64"), TableKey("seats.v2", "u64-i64")

VALUES: dict[str, Any] = {
    "nil": None,
    "false": False,
    "true": True,
    "0": 0,
    "127": 127,
    "128": 128,
    "255": 255,
    "256": 256,
    "65536": 65536,
    "largest of 32 bits": (1 << 32) - 1,
    "beyond 32 bits": 1 << 32,
    "beyond signed 64 bits": 1 << 63,
    "largest": INT_MAX,
    "-1": -1,
    "-32": -32,
    "-33": -33,
    "-129": -129,
    "-32769": -32769,
    "beyond signed 32 bits": -(1 << 31) - 1,
    "smallest": INT_MIN,
    "float": -2.5,
    "float of a whole number": 1.0,
    "negative zero": -0.0,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "empty str": "",
    "str": "Zürich",
    "str of 32 bytes": "x" * 32,
    "empty bin": b"",
    "bin": b"\x00\xff",
    "empty array": [],
    "array": [1, "a", None],
    "array of 16": [0] * 16,
    "empty map": {},
    "map": {"b": 1, "a": [True]},
    "timestamp of whole seconds": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "timestamp of microseconds": datetime(2026, 1, 2, 3, 4, 5, 678_901, UTC),
    "timestamp before 1970": datetime(1969, 12, 31, 23, 59, 59, 500_000, UTC),
    "timestamp of year 1": datetime(1, 1, 1, tzinfo=UTC),
    "timestamp of year 9999": datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
}

CHUNKS: dict[str, Chunk] = {
    "set": chunk(Run(OP_SET, ["AA1"], ["boarding"])),
    "delete": chunk(Run(OP_DELETE, ["AA1", "AA2"], None)),
    "increment": chunk(Run(OP_INCREMENT, ["EWR/late", "EWR/min"], [1, -2.5])),
    "timestamps": chunk(
        Run(OP_SET, ["AA1", "AA2"], [1, None], [TIME_MS - 2, TIME_MS - 1]),
        Run(OP_DELETE, ["AA3"], None, [TIME_MS]),
    ),
    "every value type": chunk(
        Run(OP_SET, list(VALUES), [cell_of(value)[0] for value in VALUES.values()])
    ),
    "no runs": Chunk("n", 0, 0, 0, []),
    "table with text keys": for_tables(
        TableDefine(DELAY, 0, ["JFK/ü", "LGA"]),
        TableRun(
            *(OP_SET, DELAY, column("I", 1, 0)),
            *(column("d", 0.5, float("nan")), column("q", TIME_MS - 1, TIME_MS)),
        ),
        TableRun(OP_SET, DELAY, IdRange(0, 2), column("d", 1.0, -0.0)),
        TableRun(OP_INCREMENT, DELAY, column("I", 0), column("d", 2.5)),
        TableRun(OP_DELETE, DELAY, column("I", 1)),
    ),
    "table with number keys": for_tables(
        TableRun(OP_SET, SEATS, column("Q", (1 << 64) - 1), column("q", INT_MIN)),
        TableRun(OP_INCREMENT, SEATS, column("Q", 0), column("q", 1), column("q", TIME_MS)),
        TableRun(OP_RECORDS, SEATS, column("Q", 7) + column("q", 300, -1)),
    ),
}

SET_BYTES, DELETE_BYTES = encode_chunk(CHUNKS["set"]), encode_chunk(CHUNKS["delete"])

BULK = bytes(range(256)) * 256

PACKETS: dict[str, Batch | Heartbeat | Notice] = {
    "batch without chunks": Batch(0, EPOCH, 1, ID_A, NO_ID, TIME_MS, 0, 2, TIME_MS, 0, []),
    "batch of one chunk": Batch(
        0, EPOCH, 1, ID_A, NO_ID, TIME_MS, 1, 1, TIME_MS - 50, 1, [SET_BYTES]
    ),
    "batch of two chunks": Batch(
        15, EPOCH, 2, ID_B, ID_A, TIME_MS, 3, 2, TIME_MS - 50, 3, [SET_BYTES, DELETE_BYTES]
    ),
    "batch with a bulk chunk": Batch(
        15, EPOCH, 2, ID_B, ID_A, TIME_MS, 3, 2, TIME_MS - 50, 3, [SET_BYTES, BULK]
    ),
    "batch with the largest numbers": Batch(
        *(4095, b"\xff" * 8, (1 << 64) - 1, b"\xff" * 8, b"\xff" * 8, (1 << 64) - 1),
        *((1 << 64) - 1, 2, (1 << 64) - 1, (1 << 32) - 1, [b""]),
    ),
    "heartbeat": Heartbeat(0, EPOCH, 2, ID_B, ID_A, TIME_MS, 3),
    "heartbeat of an empty shard": Heartbeat(3, EPOCH, 0, NO_ID, NO_ID, TIME_MS, 0),
    "notice": Notice(0, EPOCH, 1, ID_A, NO_ID, TIME_MS, 3),
}

KEY = b"EWR/min"
FIELDS: dict[str, tuple[int, Any]] = {
    "number": (2, -2.5),
    "nil": (1, None),
    "map": ((1 << 64) - 1, {"gate": "B7", "late": 12}),
}


def write_field(field: tuple[int, Any]) -> bytes:
    """Write one field of the full-state hash."""
    offset, value = field
    return pack_field(KEY, offset, cell_of(value)[0])


def read_field(data: bytes) -> tuple[int, Any]:
    """Read one field of the full-state hash."""
    (offset,), (cell,) = unpack_fields([KEY], [data])
    return offset, cell_value(cell)


Kind = tuple[dict[str, Any], Callable[[Any], bytes], Callable[[bytes], Any]]
KINDS: dict[str, Kind] = {
    "values": (VALUES, pack_value, unpack),
    "chunks": (CHUNKS, encode_chunk, decode_chunk),
    "packets": (PACKETS, encode_packet, lambda data: decode_packet(data, [BULK])),
    "fields": (FIELDS, write_field, read_field),
}


ALL = [(kind, name) for kind, (models, *_) in KINDS.items() for name in models]


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_has_its_vector(kind: str) -> None:
    """The models are the first vectors, in their order; the others are tried in test_vectors.py."""
    models = KINDS[kind][0]
    assert list(vectors(kind))[: len(models)] == list(models)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_we_write_is_the_golden_bytes(kind: str, name: str) -> None:
    """To the last byte."""
    models, encode, _ = KINDS[kind]
    assert encode(models[name]).hex() == vectors(kind)[name]["hex"]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_we_read_from_the_golden_bytes_is_the_model(kind: str, name: str) -> None:
    """Type for type."""
    models, _, decode = KINDS[kind]
    read = decode(bytes.fromhex(vectors(kind)[name]["hex"]))
    if kind == "values":
        assert exact(read) == exact(models[name])
    else:
        assert repr(read) == repr(models[name])


def in_batch(chunk: bytes) -> bytes | list[Any]:
    """Return what is in a batch in the place of a chunk."""
    return chunk if len(chunk) < 65_536 else [chunk[:96], len(chunk)]


@pytest.mark.parametrize("name", PACKETS)
def test_packets_are_plain_messagepack(name: str) -> None:
    """They are built with `struct`, in Lua and here, but any MessagePack library reads them."""
    fields = msgpack.unpackb(bytes.fromhex(vectors("packets")[name]["hex"]))
    packet = PACKETS[name]
    kind = {Batch: 1, Heartbeat: 2, Notice: 3}[type(packet)]
    prefix = [3, kind, packet.shard, packet.epoch, packet.offset, packet.id, packet.previous_id]
    prefix += [packet.time_ms, packet.covered]
    if isinstance(packet, Batch):
        prefix += [packet.trigger, packet.oldest_ms, packet.deltas, {}]
        *prefix_read, check, chunks = fields
        assert (type(check), chunks) == (int, [*map(in_batch, packet.chunks)])
    else:
        prefix_read = fields
    assert prefix_read == prefix


# -- names ----------------------------------------------------------------------------------------

NAMES = PARTS["names"]


@pytest.mark.parametrize("vector", NAMES["slots"], ids=lambda v: v["tag"])
def test_slots_are_those_of_redis_cluster(vector: dict[str, Any]) -> None:
    """CRC-16/XMODEM modulo 16,384, as `CLUSTER KEYSLOT` says."""
    assert slot_of(vector["tag"]) == vector["slot"]


@pytest.mark.parametrize("vector", NAMES["tags"], ids=lambda v: f"{v['namespace']}-{v['shards']}")
def test_tags_are_the_golden_ones(vector: dict[str, Any]) -> None:
    """An independent computation gives the same result."""
    tags = [
        shard_tag(vector["namespace"], int(shard), vector["shards"]) for shard in vector["tags"]
    ]
    assert dict(zip(vector["tags"], tags, strict=True)) == vector["tags"]


@pytest.mark.parametrize("vector", NAMES["shards"], ids=lambda v: f"{v['key']}-{v['shards']}")
def test_keys_belong_to_the_golden_shards(vector: dict[str, Any]) -> None:
    """CRC-32 of the UTF-8 bytes, or of those of a tag in braces, modulo the shards."""
    assert shard_of(vector["key"], vector["shards"]) == vector["shard"]


@pytest.mark.parametrize("key", {value_of(one["key"]) for one in NAMES["number_shards"]})
def test_number_keys_belong_to_the_golden_shards(key: int) -> None:
    """The upper half of a product modulo 2^64, modulo the shards."""
    for vector in NAMES["number_shards"]:
        if value_of(vector["key"]) == key:
            keys = np.array([key], np.uint64)
            assert shards_of_numbers(keys, vector["shards"]).tolist() == [vector["shard"]]


def test_names_in_redis_are_the_golden_ones() -> None:
    """Another name would be another namespace."""
    keys = ShardKeys.of("default", 0, 1)
    names = {name: getattr(keys, name) for name in keys.__slots__}
    names |= {"config": config_key("default"), "stage of node EWR": keys.stage("EWR")}
    assert names == NAMES["names"]


@pytest.mark.parametrize("vector", NAMES["tokens"], ids=lambda v: v["description"])
def test_tokens_are_the_golden_texts(vector: dict[str, Any]) -> None:
    """They travel between processes, maybe of different versions."""
    token = Token({int(shard): (bytes.fromhex(e), n) for shard, (e, n) in vector["marks"].items()})
    assert str(token) == vector["text"]
    assert Token.parse(vector["text"]) == token
