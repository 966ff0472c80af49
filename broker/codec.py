"""Model to bytes and back; the layout is told in PROTOCOL.md. No I/O.

Columns, not rows: a chunk holds a column of keys and a column of values, so that one call of the
MessagePack library reads a thousand deltas (measured on CPython 3.11: 136 ns a delta against 835
for rows).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NoReturn

import msgpack

from broker.errors import DecodeError
from broker.model import (
    Batch,
    Chunk,
    Heartbeat,
    Notice,
    Packet,
    Position,
    Run,
    TablePart,
    Value,
)
from broker.protocol import (
    BATCH_ID_BYTES,
    EPOCH_BYTES,
    KIND_BATCH,
    KIND_HEARTBEAT,
    KIND_NOTICE,
    MAX_CHUNK_BYTES,
    MAX_KEY_BYTES,
    OFFSET_PREFIX_BYTES,
    OP_DELETE,
    OP_INCREMENT,
    OP_SET,
    PROTOCOL_VERSION,
)
from broker.tableruns import checked_part, packed_part
from broker.values import CONTAINERS, within_depth

_PREFIX = struct.Struct(">BBBBHBB8sBQBB8sBB8sBQBQ")
_BATCH_TAIL = struct.Struct(">BBQBIBI")
_BIN32 = struct.Struct(">BI")
_OFFSET = struct.Struct(">Q")
_ARRAY32 = struct.Struct(">BI")

_PREFIX_FIELDS = 9
_BATCH_FIELDS = 13
_CHUNK_FIELDS = 6
_RUN_FIELDS = 4
_UTF8_MOST = 4  # bytes of one character

_AMOUNTS = frozenset((int, float))


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"unknown extension type {code}")


def pack_value(value: Value) -> bytes:
    """Return one admitted value as MessagePack."""
    return msgpack.packb(value, datetime=True)  # type: ignore[no-any-return]


def unpack(data: bytes) -> Any:
    """Read exactly one MessagePack object of our value domain.

    Raises:
        DecodeError: damaged, cut short, bytes left over, or an extension we do not know.
    """
    try:
        return msgpack.unpackb(data, timestamp=3, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException, OverflowError, RecursionError) as error:
        raise DecodeError(
            f"not MessagePack of our domain: {error or type(error).__name__}"
        ) from None


def encode_chunk(chunk: Chunk) -> bytes:
    """Return the bytes a producer appends."""
    fields: list[Any] = [
        *(PROTOCOL_VERSION, chunk.node, chunk.incarnation, chunk.number, chunk.time_ms),
        [[run.op, run.keys, run.values, run.timestamps] for run in chunk.runs],
    ]
    if chunk.tables:
        fields.append([packed_part(part) for part in chunk.tables])
    return msgpack.packb(fields, datetime=True)  # type: ignore[no-any-return]


def decode_chunk(data: bytes) -> Chunk:
    """Read one chunk; every reader refuses exactly the same chunks, by the rules of PROTOCOL.md.

    Raises:
        DecodeError: a rule is broken; the whole chunk has to be skipped.
    """
    if len(data) > MAX_CHUNK_BYTES:
        raise DecodeError(f"chunk of {len(data)} bytes, limit {MAX_CHUNK_BYTES}")
    fields = unpack(data)
    if type(fields) is not list or len(fields) < _CHUNK_FIELDS:
        raise DecodeError("chunk is not an array of at least 6")
    version, node, incarnation, number, time_ms, runs = fields[:_CHUNK_FIELDS]
    if version != PROTOCOL_VERSION or type(version) is not int:
        raise DecodeError(f"chunk of protocol version {version!r}, this is {PROTOCOL_VERSION}")
    if type(node) is not str or type(runs) is not list:
        raise DecodeError("chunk without node name or runs")
    if any(type(n) is not int or n < 0 for n in (incarnation, number, time_ms)):
        raise DecodeError("incarnation, number or time is not an unsigned integer")
    checked = [_checked_run(run) for run in runs]
    tables, fault = _tables(fields[_CHUNK_FIELDS]) if len(fields) > _CHUNK_FIELDS else ([], "")
    return Chunk(node, incarnation, number, time_ms, checked, tables, fault)


def _tables(parts: Any) -> tuple[list[TablePart], str]:
    """Read what a chunk has for tables; a fault there leaves the rest of the chunk as it is."""
    if type(parts) is not list:
        return [], "what a chunk has for tables is not an array"
    try:
        return [checked_part(part, _check_keys) for part in parts], ""
    except DecodeError as error:
        return [], str(error)


def _checked_run(run: Any) -> Run:
    if type(run) is not list or len(run) < _RUN_FIELDS:
        raise DecodeError("run is not an array of at least 4")
    op, keys, values, timestamps = run[:_RUN_FIELDS]
    _check_keys(keys)
    if type(op) is not int:
        raise DecodeError(f"unknown operation {op!r}")
    if op == OP_DELETE:
        if values is not None:
            raise DecodeError("delete run with values")
    elif op in (OP_SET, OP_INCREMENT):
        if type(values) is not list or len(values) != len(keys):
            raise DecodeError("columns of keys and values differ in length")
        kinds = set(map(type, values))
        if op == OP_INCREMENT and not kinds <= _AMOUNTS:
            raise DecodeError("increment by something that is not a number")
        if not kinds.isdisjoint(CONTAINERS) and not all(map(within_depth, values)):
            raise DecodeError("value nests too deep or has a map key that is not a str")
    else:
        raise DecodeError(f"unknown operation {op!r}")
    if timestamps is not None and (
        type(timestamps) is not list
        or len(timestamps) != len(keys)
        or set(map(type, timestamps)) - {int}
    ):
        raise DecodeError("column of timestamps is not as many integers as keys")
    return Run(op, keys, values, timestamps)


def _check_keys(keys: Any) -> None:
    if type(keys) is not list or not keys or set(map(type, keys)) != {str}:
        raise DecodeError("column of keys is not a non-empty array of str")
    lengths = list(map(len, keys))
    if min(lengths) == 0:
        raise DecodeError("empty key")
    if max(lengths) * _UTF8_MOST > MAX_KEY_BYTES and any(
        len(key.encode()) > MAX_KEY_BYTES for key in keys
    ):
        raise DecodeError(f"key over {MAX_KEY_BYTES} bytes")


def encode_packet(packet: Packet) -> bytes:
    """Return a packet byte for byte as the Lua commands build it; for tests and tools."""
    kind = {Batch: KIND_BATCH, Heartbeat: KIND_HEARTBEAT, Notice: KIND_NOTICE}[type(packet)]
    fields = _BATCH_FIELDS if isinstance(packet, Batch) else _PREFIX_FIELDS
    head = _PREFIX.pack(
        *(0x90 | fields, PROTOCOL_VERSION, kind, 0xCD, packet.shard),
        *(0xC4, EPOCH_BYTES, packet.epoch, 0xCF, packet.offset),
        *(0xC4, BATCH_ID_BYTES, packet.id, 0xC4, BATCH_ID_BYTES, packet.previous_id),
        *(0xCF, packet.time_ms, 0xCF, packet.covered),
    )
    if not isinstance(packet, Batch):
        return head
    tail = _BATCH_TAIL.pack(
        *(packet.trigger, 0xCF, packet.oldest_ms, 0xCE, packet.deltas),
        *(0xDD, len(packet.chunks)),
    )
    framed = ((_BIN32.pack(0xC6, len(chunk)), chunk) for chunk in packet.chunks)
    return b"".join((head, tail, *chain.from_iterable(framed)))


def decode_packet(data: bytes) -> Packet:
    """Read a packet from a shard's channel or log; chunks stay bytes.

    Raises:
        DecodeError: not a packet of this protocol version; skip it whole.
    """
    fields = unpack(data)
    if type(fields) is not list or len(fields) < _PREFIX_FIELDS:
        raise DecodeError("packet is not an array of at least 9")
    version, kind, shard, epoch, offset, batch_id, previous_id, time_ms, covered = fields[
        :_PREFIX_FIELDS
    ]
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise DecodeError(f"packet of protocol version {version!r}, this is {PROTOCOL_VERSION}")
    if any(type(n) is not int or n < 0 for n in (kind, shard, offset, time_ms, covered)):
        raise DecodeError("packet numbers are not unsigned integers")
    if any(
        type(raw) is not bytes or len(raw) != size
        for raw, size in (
            (epoch, EPOCH_BYTES),
            (batch_id, BATCH_ID_BYTES),
            (previous_id, BATCH_ID_BYTES),
        )
    ):
        raise DecodeError("packet ids are not 8 bytes each")
    prefix = (shard, epoch, offset, batch_id, previous_id, time_ms, covered)
    if kind == KIND_HEARTBEAT:
        return Heartbeat(*prefix)
    if kind == KIND_NOTICE:
        return Notice(*prefix)
    if kind != KIND_BATCH or len(fields) < _BATCH_FIELDS:
        raise DecodeError(f"unknown packet kind {kind} of {len(fields)} fields")
    trigger, oldest_ms, deltas, chunks = fields[_PREFIX_FIELDS:_BATCH_FIELDS]
    if any(type(n) is not int or n < 0 for n in (trigger, oldest_ms, deltas)):
        raise DecodeError("batch numbers are not unsigned integers")
    if type(chunks) is not list or any(type(chunk) is not bytes for chunk in chunks):
        raise DecodeError("chunks are not an array of bin")
    return Batch(*prefix, trigger, oldest_ms, deltas, chunks)


def decode_following(data: bytes, position: Position) -> Batch:
    """Read the batch of a log that comes right after a position.

    Raises:
        DecodeError: it is not a batch, or not the one: another epoch, offset or predecessor.
    """
    batch = decode_packet(data)
    if (
        not isinstance(batch, Batch)
        or batch.epoch != position.epoch
        or batch.offset != position.offset + 1
        or batch.previous_id != position.batch_id
    ):
        raise DecodeError(f"the log does not continue at offset {position.offset + 1}")
    return batch


def decode_keys(keys: Iterable[bytes]) -> list[str]:
    """Read keys of the full-state hash.

    Raises:
        DecodeError: one is not UTF-8.
    """
    try:
        return [key.decode() for key in keys]
    except UnicodeDecodeError:
        raise DecodeError("a key of the full-state hash is not UTF-8") from None


def pack_field(offset: int, value: Value) -> bytes:
    """Return a field of the full-state hash: the offset it was folded at, then the packed value."""
    return _OFFSET.pack(offset) + pack_value(value)


def unpack_fields(fields: Sequence[bytes]) -> tuple[list[int], list[Value]]:
    """Read fields of the full-state hash as two columns, offsets and values.

    One call of the MessagePack library reads all of them, as with a chunk's column: a byte before
    each field makes its offset an item too.

    Raises:
        DecodeError: a field is cut short or damaged.
    """
    if any(len(field) <= OFFSET_PREFIX_BYTES for field in fields):
        raise DecodeError("a field of the full-state hash has no value")
    items = unpack(
        _ARRAY32.pack(0xDD, 2 * len(fields)) + b"".join([b"\xcf" + field for field in fields])
    )
    offsets, values = items[::2], items[1::2]
    # A damaged value may take the next field for its own content, and another give it back.
    prefixes = b"".join([field[:OFFSET_PREFIX_BYTES] for field in fields])
    if len(items) != 2 * len(fields) or prefixes != _packed_offsets(offsets):
        raise DecodeError("a field of the full-state hash is not exactly one value")
    return offsets, values


def _packed_offsets(offsets: Sequence[Value]) -> bytes | None:
    try:
        return struct.pack(f">{len(offsets)}Q", *offsets)
    except struct.error:
        return None
