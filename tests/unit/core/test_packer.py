"""Columns and ids become chunks; test_buffer.py and test_key_ids.py test it with the buffer."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from broker.core.chunk_size import CHUNK_HEAD_BYTES
from broker.core.columns import Columns
from broker.core.lane import Lane
from broker.core.packer import DEFINED_ALONG_BYTES, Packer
from broker.protocol.cells import cell_of
from broker.protocol.codec import decode_chunk
from broker.protocol.constants import MAX_CHUNK_BYTES
from broker.protocol.frames import FrameReader
from broker.protocol.messages import TableDefine, TableKey
from broker.protocol.operations import OP_SET
from broker.protocol.values import admit_key
from tests.unit.exactness import read

NAMES = TableKey("t", "str-f64")


def lane_of(*closed: dict[str, Any]) -> Lane:
    """Return a lane with closed columns of these sets."""
    lane = Lane(0, incarnation=3)
    for sets in closed:
        for key, value in sets.items():
            cell, size = cell_of(value)
            lane.open.append(OP_SET, key, cell, None, admit_key(key) + size)
        lane.close_open()
    return lane


def bytes_of(lane: Lane) -> int:
    """Return what the closed columns of a lane count for."""
    return sum(columns.size for columns in lane.closed)


@pytest.mark.parametrize("conflates", [False, True])
def test_columns_are_joined_and_free_what_they_were_counted_for(conflates: bool) -> None:  # noqa: FBT001
    """One chunk in a backlog; only its exact bytes count from then on."""
    lane = lane_of({"a": 1, "b": 2}, {"a": 3})
    before = bytes_of(lane)
    packed, freed = Packer("n1", 1 << 16, conflates=conflates).pack(lane)
    (run,) = decode_chunk(packed.data).runs
    assert run.keys == (["b", "a"] if conflates else ["a", "b", "a"])
    assert (packed.number, packed.deltas, packed.ticket) == (1, len(run.keys), 2)
    assert before - freed == len(packed.data)
    assert lane.conflated == conflates


def test_chunks_are_compressed_where_that_saves_something() -> None:
    """What the buffer counts, and what was saved, is exact; a small chunk stays as it is."""
    packer, reader = Packer("n1", 1 << 16, conflates=False, level=1), FrameReader()
    plain = Packer("n1", 1 << 16, conflates=False)
    many = {f"vehicle/{n:05d}": "departed" for n in range(50)}
    lane, before = lane_of(many), bytes_of(lane_of(many))
    packed, freed = packer.pack(lane)
    uncompressed, _ = plain.pack(lane_of(many))
    assert before - freed == len(packed.data)
    assert packed.saved == len(uncompressed.data) - len(packed.data) > 0
    assert decode_chunk(packed.data, reader) == decode_chunk(uncompressed.data)
    assert uncompressed.saved == 0
    small, _ = packer.pack(lane_of({"a": 1}))
    assert (small.saved, decode_chunk(small.data).deltas) == (0, 1)


def test_random_numbers_are_tried_once_and_then_left_alone() -> None:
    """A lane whose chunks do not become smaller pays for a few tries only."""
    noise = Random(1)
    packer = Packer("n1", 1 << 16, conflates=False, level=1)
    lane = Lane(0, incarnation=3)
    tries = 0
    for _ in range(20):
        for n in range(10):
            lane.open.append(OP_SET, f"{n}", noise.randbytes(100), None, 110)
        lane.close_open()
        due = lane.compression._left_out == 0
        tries += due
        packed, _ = packer.pack(lane)
        assert packed.saved == 0
    assert tries == 5  # the first, and after pauses of 1, 2, 4, 8


def test_ids_that_are_defined_again_are_compressed() -> None:
    """Names of keys are much alike."""
    lane = lane_of()
    names = [f"station/{n:06d}" for n in range(3000)]
    for name in names:
        lane.names.add(NAMES, name, admit_key(name))
    packer = Packer("n1", 1 << 16, conflates=False, level=1)
    packed, _ = packer.pack_ids(lane, Columns())
    chunk = decode_chunk(packed.data, FrameReader())
    assert packed.saved > len(packed.data)
    assert sum(len(one.keys) for one in chunk.tables if isinstance(one, TableDefine)) == 3000


def test_joined_columns_keep_what_was_packed() -> None:
    """Whichever of them has values that were packed at the call, beside others."""
    shapes: list[dict[str, Any]] = [{"a": 1}, {"b": {"x": [1]}, "c": b"\xc0"}, {"d": "text"}]
    for closed in (shapes, shapes[::-1], shapes[:2], shapes[1:]):
        packed, _ = Packer("n1", 1 << 16, conflates=False).pack(lane_of(*closed))
        (run,) = decode_chunk(packed.data).runs
        expected = {key: value for one in closed for key, value in one.items()}
        assert read(dict(zip(run.keys, run.values or (), strict=True))) == expected


def test_columns_beyond_the_size_of_a_chunk_are_not_joined() -> None:
    """Numbers and totals go on from chunk to chunk."""
    lane = lane_of({"a": 1}, {"b": 2})
    packer = Packer("n1", CHUNK_HEAD_BYTES, conflates=False)
    chunks = [packer.pack(lane)[0] for _ in range(2)]
    assert [(one.number, one.total, one.ticket) for one in chunks] == [(1, 1, 1), (2, 2, 2)]
    assert [decode_chunk(one.data).runs[0].keys for one in chunks] == [["a"], ["b"]]


def test_ids_go_first_and_alone_if_they_do_not_fit_beside_the_deltas() -> None:
    """The chunk of ids has no deltas, and the ticket of the columns that wait."""
    lane = lane_of({"a": 1})
    keys = [f"{n:01000d}" for n in range(DEFINED_ALONG_BYTES // 1000 + 2)]
    counted = 0
    for key in keys:
        counted += lane.names.head_bytes(NAMES) + admit_key(key)
        lane.names.add(NAMES, key, admit_key(key))
    packer = Packer("n1", 1 << 16, conflates=False)
    ids, freed = packer.pack(lane)
    (define,) = decode_chunk(ids.data).tables
    assert isinstance(define, TableDefine)
    assert define.keys == keys
    assert (ids.deltas, ids.ticket, counted - freed) == (0, 1, len(ids.data))
    deltas, _ = packer.pack(lane)
    assert (deltas.number, deltas.deltas, dict(deltas.defined)) == (2, 1, {NAMES: len(keys)})


def test_a_chunk_has_the_node_its_incarnation_and_the_time() -> None:
    """As readers and Redis tell chunks apart."""
    lane, packer = lane_of({"a": 1}), Packer("n1", 1 << 16, conflates=False)
    packer.time_ms = 1234
    lane.closed[0].since = 5.0
    packed, _ = packer.pack(lane)
    chunk = decode_chunk(packed.data)
    assert (chunk.node, chunk.incarnation, chunk.number, chunk.time_ms) == ("n1", 3, 1, 1234)
    assert packed.since == 5.0
    assert isinstance(lane.open, Columns)


def test_columns_that_are_too_large_are_packed_all_the_same() -> None:
    """Ids that do not exist must not go first, again and again."""
    lane = lane_of({"a": 1})
    lane.closed[0].size = MAX_CHUNK_BYTES + 1
    packed, _ = Packer("n1", 1 << 16, conflates=False).pack(lane)
    assert packed.deltas == 1
    assert not lane.closed
