"""The content of a shard: pages of a full state, batches of the log, repairs."""

from __future__ import annotations

from broker.core.content import Content
from broker.core.fold import decode_chunks
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import TRIGGER_AGE
from broker.protocol.fields import pack_field
from broker.protocol.messages import Batch, Chunk, Position, Run
from broker.protocol.operations import OP_INCREMENT
from tests.unit.exactness import exact

EPOCH = b"epoch--1"
AT_TWO = Position(EPOCH, 2, b"batch--2")


def batch(offset: int, key: str) -> Batch:
    """Return a batch that adds 1 to a key."""
    chunk = encode_chunk(Chunk("n1", 1, offset, 0, [Run(OP_INCREMENT, [key], [1])]))
    place = Position(EPOCH, offset, b"batch-%2d" % offset)
    return Batch(
        *(0, place.epoch, place.offset, place.batch_id, b"before--"),
        *(0, offset, TRIGGER_AGE, 0, 1, [chunk]),
    )


def apply(content: Content, offset: int, key: str) -> tuple[int, int]:
    """Apply a batch; return how many deltas were applied, and how many were superseded."""
    one = batch(offset, key)
    tally = content.apply(one, decode_chunks(one)[0])
    return tally.applied, tally.superseded


def test_a_batch_moves_values_position_and_coverage_together() -> None:
    """After it the content is that of the batch's position."""
    content = Content(AT_TWO)
    assert apply(content, 3, "a") == (1, 0)
    assert (content.values, content.position.offset, content.covered) == ({"a": 1}, 3, 3)


def test_a_field_that_is_ahead_is_not_counted_twice() -> None:
    """Deltas up to the field's offset are superseded, those of later batches are applied."""
    content = Content(AT_TWO)
    content.add_page([b"a", b"b"], [pack_field("a", 4, 10), pack_field("b", 2, 20)])
    assert (content.newest, content.floors) == (4, {"a": 4})
    assert [apply(content, offset, "a") for offset in (3, 4, 5)] == [(0, 1), (0, 1), (1, 0)]
    assert content.values == {"a": 11, "b": 20}


def test_an_empty_page_adds_nothing() -> None:
    """HSCAN may return a page without fields."""
    content = Content(AT_TWO)
    content.add_page([], [])
    assert (content.values, content.newest) == ({}, 0)


def test_a_damaged_field_is_left_out_and_named() -> None:
    """The other fields of its page count; a key that is returned again, and readable, does too."""
    content = Content(AT_TWO)
    content.add_page(
        [b"a", b"b", b"\xff"], [b"damaged", pack_field("b", 1, 2), pack_field(b"\xff", 1, 1)]
    )
    assert (content.values, content.damaged) == ({"b": 2}, {"a", "\\xff"})
    content.add_page([b"a", b"b"], [pack_field("a", 1, 3), b"damaged"])
    assert (content.values, content.damaged) == ({"a": 3}, {"b", "\\xff"})


def test_a_repair_corrects_adds_and_deletes_and_returns_only_that() -> None:
    """Values are compared as bytes: 1, 1.0 and True are different; equal keys stay as they are."""
    content = Content(AT_TWO, {"same": [1], "type": True, "surplus": 1, "other": 1})
    repaired = content.repair({"same": [1], "type": 1, "missing": "x"}, ["surplus", "absent"])
    assert sorted(repaired, key=lambda one: one[1]) == [
        ("set", "missing", "x"),
        ("delete", "surplus", None),
        ("set", "type", 1),
    ]
    assert exact(content.values) == exact({"same": [1], "type": 1, "other": 1, "missing": "x"})
