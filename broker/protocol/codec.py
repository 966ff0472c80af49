"""Encode and decode messages; PROTOCOL.md specifies the layout. No I/O.

A chunk holds columns of keys and values, not rows, so that one call of the MessagePack library
decodes all its deltas (CPython 3.11: 136 ns per delta instead of 835).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, NoReturn

import msgpack

from broker.errors import DecodeError
from broker.protocol.columns import kinds_of, length_bounds
from broker.protocol.constants import (
    BATCH_ID_BYTES,
    BULK_BYTES,
    EPOCH_BYTES,
    FACE_BYTES,
    KIND_BATCH,
    KIND_HEARTBEAT,
    KIND_NOTICE,
    MAX_CHUNK_BYTES,
    MAX_KEY_BYTES,
    MAX_TABLE_DELTAS,
    PROTOCOL_VERSION,
    TRIGGER_TIME,
)
from broker.protocol.frames import FrameReader, FrameWriter
from broker.protocol.messages import (
    CELL_TYPES,
    Batch,
    Cell,
    Chunk,
    Heartbeat,
    LogEntry,
    Notice,
    Packet,
    Position,
    Run,
    TableOp,
    Value,
)
from broker.protocol.operations import OPERATIONS, Column, unknown_operation
from broker.protocol.refusal import refuses, shown
from broker.protocol.sums import ANY_CHECK, check_of_head, check_sealed, sealed
from broker.protocol.table_codec import checked_part, packed_part
from broker.speedups import native

_PREFIX = struct.Struct(">BBBBHBB8sBQBB8sBB8sBQBQ")
_PENDING_SINCE = struct.Struct(">15sBQ")
_BATCH_NUMBERS = struct.Struct(">BBQBI")
_CHECK_AND_COUNT = struct.Struct(">BIBI")
_BIN32 = struct.Struct(">BI")
_UINT32 = struct.Struct(">BI")
_STAND_IN = struct.Struct(">BBB")

_PREFIX_FIELDS = 9
_BATCH_FIELDS = 15
_CHECK, _CHUNKS = 13, 14  # places of elements in a batch
_CHUNK_FIELDS = 7
_RUNS, _TABLES = 5, 6  # places of elements in a chunk
RUN_FIELDS = 4
_STAND_IN_FIELDS = 2
# Of what the Lua commands write behind the additions of a batch.
_ITEM_BYTES = 5  # before each chunk; the check, and the header of the chunks, have as many
_STAND_IN_BYTES = 104
# A chunk has to become smaller by this part of itself, or is sent as it is: every reader opens it.
_WORTH = 4
_MAX_UTF8_BYTES = 4  # bytes of one character

# What has a meaning in namespaces with feature words that are not built yet.
_SHARD_CLOCK = "the word `ttl` or `leases`"
_RESERVED_ADDITIONS = {"clock": _SHARD_CLOCK, "ended": "the word `leases`"}

_AMOUNTS = frozenset((int, float))
_NO_KEYS = "column of keys is not a non-empty array of str"


def _refuse_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"unknown extension type {code}")


def pack_value(value: Value) -> bytes:
    """Return a valid value as MessagePack, in the canonical form of PROTOCOL.md."""
    return msgpack.packb(value, datetime=True)  # type: ignore[no-any-return]


def pack_cell(cell: Cell) -> bytes:
    """Return a cell as it stands in a chunk and in the full state."""
    return msgpack.packb(cell)  # type: ignore[no-any-return]


def unpack_by_msgpack(data: bytes) -> Any:
    """Decode bytes, as `unpack`."""
    try:
        return msgpack.unpackb(data, timestamp=3, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException, OverflowError, RecursionError) as error:
        raise DecodeError(
            f"not MessagePack of our domain: {str(error) or type(error).__name__}"
        ) from None


# Decodes exactly one MessagePack object of our value domain. It raises DecodeError for what is
# damaged or truncated, for excess bytes, and for an unknown extension.
unpack: Final[Callable[[bytes], Any]] = (
    unpack_by_msgpack if native is None else native.whole_unpacker(unpack_by_msgpack)
)


def encode_chunk(chunk: Chunk) -> bytes:
    """Return the bytes that a producer appends."""
    return sealed(_packed([*_head(chunk), *_content(chunk), ANY_CHECK]))


def encode_compressed(chunk: Chunk, writer: FrameWriter) -> tuple[bytes, int]:
    """Return the bytes that a producer appends, with runs and tables compressed if that pays.

    Returns:
        The bytes, and how many more `encode_chunk` would return; 0 if it does not pay.
    """
    content = _packed(_content(chunk))
    packed = msgpack.packb(writer.frame(content))
    # In a chunk that is not compressed, its content has no array around it: a byte less.
    saved = len(content) - 1 - len(packed)
    if saved * _WORTH < len(content):
        return encode_chunk(chunk), 0
    head = msgpack.packb(_head(chunk))
    array_of_seven = bytes((0x90 | _CHUNK_FIELDS,))
    end = _UINT32.pack(0xCE, ANY_CHECK)
    return sealed(b"".join((array_of_seven, head[1:], packed, end))), saved


def _head(chunk: Chunk) -> list[Any]:
    return [PROTOCOL_VERSION, chunk.node, chunk.incarnation, chunk.number, chunk.time_ms]


def _content(chunk: Chunk) -> list[Any]:
    """Return what is compressed together, or stands in the chunk."""
    runs = [[run.op, run.keys, run.values, run.timestamps] for run in chunk.runs]
    return [runs, [packed_part(part) for part in chunk.tables]] if chunk.tables else [runs]


def _packed(fields: list[Any]) -> bytes:
    packed = None if native is None else native.pack_fields(fields, 2 * MAX_CHUNK_BYTES)
    return msgpack.packb(fields) if packed is None else packed  # type: ignore[no-any-return]


@refuses
def decode_chunk(data: bytes, frames: FrameReader | None = None) -> Chunk:
    """Decode a chunk; all readers refuse exactly the same chunks, by the rules of PROTOCOL.md.

    Args:
        data: its bytes.
        frames: opens what is compressed; None: the namespace lacks the word `compress`.

    Raises:
        DecodeError: a rule is broken; the whole chunk must be skipped.
    """
    if len(data) > MAX_CHUNK_BYTES:
        raise DecodeError(f"chunk of {len(data)} bytes, limit {MAX_CHUNK_BYTES}")
    check_sealed(data)
    fields = unpack(data)
    if type(fields) is not list or len(fields) < _CHUNK_FIELDS:
        raise DecodeError("chunk is not an array of at least 7")
    version, node, incarnation, number, time_ms, runs = fields[: _RUNS + 1]
    if version != PROTOCOL_VERSION or type(version) is not int:
        raise DecodeError(f"chunk of protocol version {shown(version)}, this is {PROTOCOL_VERSION}")
    if type(node) is not str or type(runs) not in {list, bytes}:
        raise DecodeError("chunk without node name or runs")
    for one in (incarnation, number, time_ms):  # `any` would cost twice as much
        if type(one) is not int or one < 0:
            raise DecodeError("incarnation, number or time is not an unsigned integer")
    parts = fields[_TABLES:-1]
    if type(runs) is bytes:
        runs, *parts = _opened(runs, frames)
    checked = _checked_runs(runs)
    tables, fault = _tables(parts[0]) if parts else ([], "")
    return Chunk(node, incarnation, number, time_ms, checked, tables, fault)


@refuses
def content_in(data: bytes, frames: FrameReader) -> bytes:
    """Return what is compressed in a chunk, or would be.

    Raises:
        DecodeError: it cannot be read.
    """
    fields = unpack(data)
    if type(fields) is not list or len(fields) < _CHUNK_FIELDS:
        raise DecodeError("chunk is not an array of at least 7")
    if type(fields[_RUNS]) is bytes:
        return frames.content(fields[_RUNS])
    return msgpack.packb(fields[_RUNS:-1], datetime=True)  # type: ignore[no-any-return]


def _opened(frame: bytes, frames: FrameReader | None) -> list[Any]:
    """Return the runs, and maybe the part for tables, that a chunk holds compressed."""
    if frames is None:
        raise DecodeError("chunk is compressed, and the namespace lacks the word compress")
    content = unpack(frames.content(frame))
    if type(content) is not list or not content or type(content[0]) is not list:
        raise DecodeError("the compressed part holds no runs")
    return content


def _tables(parts: Any) -> tuple[list[TableOp], str]:
    """Decode the part for tables; a fault in it does not affect the rest of the chunk."""
    if type(parts) is not list:
        return [], "the part for tables is not an array"
    try:
        checked = [checked_part(part, _check_keys) for part in parts]
    except DecodeError as error:
        return [], str(error)
    deltas = sum(part.deltas for part in checked)
    if deltas > MAX_TABLE_DELTAS:
        return [], f"{deltas} deltas on tables in a chunk, limit {MAX_TABLE_DELTAS}"
    return checked, ""


def _checked_runs(runs: list[Any]) -> list[Run]:
    """Decode runs; the keys of all of them are checked at once."""
    checked = [_checked_run(run) for run in runs]
    if len(checked) == 1:  # as in most chunks: no need to copy the keys
        _check_keys(checked[0].keys)
    elif checked:
        _check_keys([key for run in checked for key in run.keys])
    return checked


def _checked_run(run: Any) -> Run:
    """Decode a run; its keys are still to be checked."""
    if type(run) is not list or len(run) < RUN_FIELDS:
        raise DecodeError("run is not an array of at least 4")
    op, keys, values, timestamps = run[:RUN_FIELDS]
    known = OPERATIONS.get(op) if type(op) is int else None
    if known is None:
        raise DecodeError(unknown_operation(op))
    if type(keys) is not list or not keys:
        raise DecodeError(_NO_KEYS)
    if known.column is Column.NOTHING:
        if values is not None:
            raise DecodeError(f"{known.name} run with values")
    else:
        if type(values) is not list or len(values) != len(keys):
            raise DecodeError("columns of keys and values differ in length")
        kinds = kinds_of(values)
        if known.column is Column.AMOUNTS and not kinds <= _AMOUNTS:
            raise DecodeError(f"{known.name} by something that is not a number")
        if not kinds <= CELL_TYPES:
            raise DecodeError("a value is neither a scalar nor a packed value (bin)")
    if timestamps is not None and (
        type(timestamps) is not list
        or len(timestamps) != len(keys)
        or kinds_of(timestamps) != {int}
    ):
        raise DecodeError("column of timestamps is not as many integers as keys")
    return Run(op, keys, values, timestamps)


def _check_keys(keys: Any) -> None:
    if type(keys) is not list or kinds_of(keys) != {str}:
        raise DecodeError(_NO_KEYS)
    shortest, longest = length_bounds(keys)
    if shortest == 0:
        raise DecodeError("empty key")
    if longest * _MAX_UTF8_BYTES > MAX_KEY_BYTES and any(
        len(key.encode()) > MAX_KEY_BYTES for key in keys
    ):
        raise DecodeError(f"key over {MAX_KEY_BYTES} bytes")


def encode_packet(packet: Packet) -> bytes:
    """Return a packet byte for byte as the Lua commands build it; for tests and tools.

    It does not contain the bulk chunks of a batch, see `bulk_of`.
    """
    kind = {Batch: KIND_BATCH, Heartbeat: KIND_HEARTBEAT, Notice: KIND_NOTICE}[type(packet)]
    since = packet.pending_since_ms if isinstance(packet, Batch | Heartbeat) else None
    additions = b"" if since is None else _PENDING_SINCE.pack(b"\x81\xadpending_since", 0xCF, since)
    fields = _BATCH_FIELDS if isinstance(packet, Batch) else _PREFIX_FIELDS + bool(additions)
    head = _PREFIX.pack(
        *(0x90 | fields, PROTOCOL_VERSION, kind, 0xCD, packet.shard),
        *(0xC4, EPOCH_BYTES, packet.epoch, 0xCF, packet.offset),
        *(0xC4, BATCH_ID_BYTES, packet.id, 0xC4, BATCH_ID_BYTES, packet.previous_id),
        *(0xCF, packet.time_ms, 0xCF, packet.covered),
    )
    if not isinstance(packet, Batch):
        return head + additions
    numbers = (packet.trigger, 0xCF, packet.oldest_ms, 0xCE, packet.deltas)
    head += _BATCH_NUMBERS.pack(*numbers) + (additions or b"\x80")
    count = _CHECK_AND_COUNT.pack(0xCE, check_of_head(head), 0xDD, len(packet.chunks))
    return b"".join((head, count, *chain.from_iterable(map(_framed, packet.chunks))))


def _framed(chunk: bytes) -> tuple[bytes, ...]:
    if len(chunk) < BULK_BYTES:
        return (_BIN32.pack(0xC6, len(chunk)), chunk)
    face = chunk[:FACE_BYTES]
    return (_STAND_IN.pack(0x92, 0xC4, len(face)), face, _UINT32.pack(0xCE, len(chunk)))


def bulk_of(batch: Batch) -> list[bytes]:
    """Return the bulk chunks of a batch, in order."""
    return [chunk for chunk in batch.chunks if len(chunk) >= BULK_BYTES]


@refuses
def decode_packet(data: bytes, bulk: Sequence[bytes] = ()) -> Packet:
    """Decode a packet from the channel or the log of a shard; chunks stay bytes.

    Args:
        data: its bytes.
        bulk: the bulk chunks received since the previous packet, or those of the log entry. A batch
            uses the last ones, one for each stand-in.

    Raises:
        DecodeError: not a packet of this protocol version, or a batch without all its bulk chunks;
            it must be skipped as a whole.
    """
    kind, prefix, fields = _read_packet(data)
    if kind == KIND_HEARTBEAT:
        return Heartbeat(*(*prefix, _pending_since(fields[0] if fields else None)))
    if kind == KIND_NOTICE:
        return Notice(*prefix)
    trigger, oldest_ms, deltas, additions, _, items = fields
    for one in (trigger, oldest_ms, deltas):
        if type(one) is not int or one < 0:
            raise DecodeError("batch numbers are not unsigned integers")
    if trigger == TRIGGER_TIME:
        raise DecodeError(
            f"trigger {trigger} (by time) needs {_SHARD_CLOCK}, which this program does not know"
        )
    if type(additions) is not dict:
        raise DecodeError("additions of a batch are not a map")
    for name, words in _RESERVED_ADDITIONS.items():
        if name in additions:
            raise DecodeError(f"addition {name} needs {words}, which this program does not know")
    shard, epoch, offset, batch_id, previous_id, time_ms, covered = prefix
    return Batch(
        *(shard, epoch, offset, batch_id, previous_id, time_ms, covered),
        *(trigger, oldest_ms, deltas, _chunks(items, bulk), _pending_since(additions)),
    )


def _pending_since(additions: Any) -> int | None:
    """Return the named addition that only packets with something pending have."""
    if type(additions) is not dict or "pending_since" not in additions:
        return None
    since = additions["pending_since"]
    if type(since) is not int or since < 0:
        raise DecodeError(f"pending_since {shown(since)} is not an unsigned integer")
    return int(since)


@refuses
def decode_head(data: bytes) -> Heartbeat | None:
    """Return the head in a batch or heartbeat, without need of bulk chunks; None for a notice.

    Raises:
        DecodeError: not a packet of this protocol version.
    """
    kind, prefix, _ = _read_packet(data)
    return None if kind == KIND_NOTICE else Heartbeat(*prefix)


def _read_packet(data: bytes) -> tuple[int, list[Any], list[Any]]:
    """Return the kind, the fields of every packet, and those that only its kind has."""
    fields = unpack(data)
    if type(fields) is not list or len(fields) < _PREFIX_FIELDS:
        raise DecodeError("packet is not an array of at least 9")
    version, kind, *prefix = fields[:_PREFIX_FIELDS]
    shard, epoch, offset, batch_id, previous_id, time_ms, covered = prefix
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise DecodeError(
            f"packet of protocol version {shown(version)}, this is {PROTOCOL_VERSION}"
        )
    for one in (kind, shard, offset, time_ms, covered):
        if type(one) is not int or one < 0:
            raise DecodeError("packet numbers are not unsigned integers")
    for raw, size in (
        (epoch, EPOCH_BYTES),
        (batch_id, BATCH_ID_BYTES),
        (previous_id, BATCH_ID_BYTES),
    ):
        if type(raw) is not bytes or len(raw) != size:
            raise DecodeError("packet ids are not 8 bytes each")
    if kind not in (KIND_BATCH, KIND_HEARTBEAT, KIND_NOTICE) or (
        kind == KIND_BATCH and len(fields) < _BATCH_FIELDS
    ):
        raise DecodeError(f"unknown packet kind {kind} of {len(fields)} fields")
    if kind == KIND_BATCH:
        _check_head(data, fields[_CHECK], fields[_CHUNKS])
    return kind, prefix, fields[_PREFIX_FIELDS:_BATCH_FIELDS]


def _check_head(data: bytes, check: Any, items: Any) -> None:
    """Refuse a batch whose bytes before the check are not those that were published."""
    if type(items) is not list:
        raise DecodeError("chunks are not an array")
    size = sum(map(len, items)) if set(map(type, items)) <= {bytes} else _size_of(items)
    # As the Lua commands write it, counted from the end.
    found = check_of_head(data[: max(0, len(data) - size - _ITEM_BYTES * (len(items) + 2))])
    if found != check:
        # Maybe another form of the same content, or elements behind the chunks.
        found = check_of_head(data[: _end_of_head(data)])
    if found != check or type(check) is not int:
        raise DecodeError(f"check of the batch is {shown(check)}, its bytes give {found}")


def _size_of(items: list[Any]) -> int:
    """Return the bytes of chunks and stand-ins, but for those in front of each."""
    return sum(
        len(item) if type(item) is bytes else _STAND_IN_BYTES - _ITEM_BYTES for item in items
    )


def _end_of_head(data: bytes) -> int:
    """Return where the check of a well-formed batch begins, whatever its form."""
    unpacker = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False)
    unpacker.feed(data)
    unpacker.read_array_header()
    for _ in range(_CHECK):
        unpacker.skip()
    return int(unpacker.tell())


def _chunks(items: list[Any], bulk: Sequence[bytes]) -> list[bytes]:
    """Replace stand-ins by their bulk chunks."""
    kinds = list(map(type, items))
    if kinds.count(bytes) == len(items):
        return items
    count = kinds.count(list)
    if count > len(bulk):
        raise DecodeError(f"{count} bulk chunks belong to the batch, {len(bulk)} came")
    rest = iter(bulk[len(bulk) - count :] if count else ())
    return [
        _matching_bulk(item, next(rest)) if type(item) is list else _chunk(item) for item in items
    ]


def _chunk(item: Any) -> bytes:
    if type(item) is not bytes:
        raise DecodeError("a chunk is neither bin nor array")
    return item


def _matching_bulk(stand_in: list[Any], chunk: bytes) -> bytes:
    face, size = (*stand_in, None, None)[:_STAND_IN_FIELDS]
    if type(face) is not bytes or type(size) is not int:
        raise DecodeError("a stand-in is not an array of face and size")
    if len(chunk) != size or not chunk.startswith(face):
        raise DecodeError(
            f"a bulk chunk of {len(chunk)} bytes is not the one of {shown(size)} bytes expected"
        )
    return chunk


def decode_following(entry: LogEntry, position: Position) -> Batch:
    """Decode the batch of a log entry that directly follows a position.

    Raises:
        DecodeError: not a batch, or another epoch, offset or predecessor.
    """
    batch = decode_packet(entry.packet, entry.bulk)
    if (
        not isinstance(batch, Batch)
        or batch.epoch != position.epoch
        or batch.offset != position.offset + 1
        or batch.previous_id != position.batch_id
    ):
        raise DecodeError(f"the log does not continue at offset {position.offset + 1}")
    return batch
