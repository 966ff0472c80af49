"""A producer's chunks whose dictionary Redis lacks: sent without it, under the same numbers."""

from __future__ import annotations

from broker.core.buffer import ProducerBuffer
from broker.core.sent_chunks import Packed
from broker.protocol.codec import decode_chunk
from broker.protocol.frames import FrameReader, trained
from broker.protocol.operations import OP_SET
from broker.protocol.values import admit_key
from tests.unit.protocol.test_dictionaries import NUMBER, samples


def filled(buffer: ProducerBuffer, first: int) -> Packed:
    """Return the next chunk, of a few sets."""
    for n in range(first, first + 3):
        key = f"vehicle/{n:05d}/state"
        buffer.add(0, OP_SET, key, "departed", admit_key(key) + 10, None, 1.0)
    buffer.close_all()
    packed, _ = buffer.next_chunk(0, 1.0, 0.0, 9)
    assert packed is not None
    return packed


def test_chunks_are_sent_without_a_dictionary_that_is_gone() -> None:
    """Number, deltas and content stay; bytes are counted exactly; later ones do without it too."""
    dictionary, reader = trained(samples(), 4096, NUMBER), FrameReader()
    reader.learn(NUMBER, dictionary)
    buffer = ProducerBuffer(
        node="n1",
        shards=1,
        max_bytes=1 << 20,
        max_count=100,
        chunk_bytes=1 << 16,
        keep_s=60,
        keep_bytes=1 << 20,
        level=1,
    )
    buffer.lanes[0].begin(5)
    buffer.use_dictionary(0, NUMBER, dictionary)
    chunks = [filled(buffer, n) for n in (0, 10, 20)]
    assert [one.dictionary for one in chunks] == [NUMBER] * 3
    assert all(one.saved > 0 for one in chunks)
    buffer.accepted(0, 2.0)
    buffer.requeue(0)
    assert buffer.bytes == sum(len(one.data) for one in chunks[1:])
    buffer.forgo_dictionary(0, reader)
    again = [buffer.next_chunk(0, 3.0, 0.0, 9)[0] for _ in range(2)]
    for before, after in zip(chunks[1:], again, strict=True):
        assert after is not None
        assert (after.number, after.deltas, after.total) == (
            *(before.number, before.deltas, before.total),
        )
        assert (after.dictionary, after.saved) == (0, 0)
        # It needs no reader of frames any more.
        assert decode_chunk(after.data) == decode_chunk(before.data, reader)
    assert buffer.bytes == sum(len(one.data) for one in again if one)
    assert filled(buffer, 30).dictionary == 0
    # What was accepted, and lost after that, is found when it is sent again.
    buffer.rewind(0, 1, 0, 4.0)
    first, _ = buffer.next_chunk(0, 4.0, 0.0, 9)
    assert first == chunks[0]
    buffer.requeue(0)
    buffer.forgo_dictionary(0, reader)
    first, _ = buffer.next_chunk(0, 4.0, 0.0, 9)
    assert first is not None
    assert first.dictionary == 0
    for now in (5.0, 6.0, 7.0, 8.0):
        if now > 5:
            assert buffer.next_chunk(0, now, 0.0, 9)[0] is not None
        buffer.accepted(0, now)
    assert (buffer.bytes, buffer.pending) == (0, 0)
