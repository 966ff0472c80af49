"""Dictionaries: made by either library, known by number, and never believed when damaged."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import pytest

from broker.errors import DecodeError
from broker.protocol.codec import content_in, decode_chunk, encode_chunk, encode_compressed
from broker.protocol.constants import FIRST_DICTIONARY, LAST_DICTIONARY, MAX_DICTIONARY_BYTES
from broker.protocol.dictionaries import content_of, dictionary_of
from broker.protocol.frames import (
    DICTIONARY_MAGIC,
    KEPT_DICTIONARIES,
    MAX_MISSED,
    FrameReader,
    FrameWriter,
    header_of,
    number_in,
    trained,
)
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_SET
from tests.unit.protocol.test_frames import LIBRARIES, choose

NUMBER = 40_000


def chunk(number: int) -> Chunk:
    """A small chunk, as those of a fleet are."""
    keys = [f"vehicle/{number * 7919 % 100_000:05d}/{name}" for name in ("lat", "lon", "state")]
    return Chunk("n1", 1, number, 9, [Run(OP_SET, keys, [number / 7, -number / 3, "departed"])])


def samples() -> list[bytes]:
    """Contents of many such chunks."""
    return [content_in(encode_chunk(chunk(n)), FrameReader()) for n in range(1500)]


@pytest.fixture(scope="module")
def dictionary() -> bytes:
    """One that was trained with them."""
    return trained(samples(), 4096, NUMBER)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_dictionary_has_the_number_that_it_was_given(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside, where frames name it; too few samples are an error."""
    choose(library, monkeypatch)
    for number in (FIRST_DICTIONARY, LAST_DICTIONARY):
        made = trained(samples(), 4096, number)
        assert number_in(made) == number
        assert len(made) <= 4096
        frame = FrameWriter(1, made, number).frame(samples()[0])
        assert header_of(frame) == (len(samples()[0]), number)
    with pytest.raises(ValueError, match=r"."):
        trained([b"a", b"b"], 4096, NUMBER)


@pytest.mark.parametrize("opened_by", LIBRARIES)
@pytest.mark.parametrize("made_by", LIBRARIES)
def test_small_chunks_become_half_as_large(made_by: str, opened_by: str, dictionary: bytes) -> None:
    """What one library makes the other opens, if it has the dictionary, and only then."""
    one = chunk(77_777)
    with pytest.MonkeyPatch.context() as patch:
        choose(made_by, patch)
        data, saved = encode_compressed(one, FrameWriter(1, dictionary, NUMBER))
    assert saved > len(data) / 2
    with pytest.MonkeyPatch.context() as patch:
        choose(opened_by, patch)
        reader = FrameReader()
        with pytest.raises(DecodeError, match=f"needs dictionary {NUMBER}, which is not there"):
            decode_chunk(data, reader)
        assert reader.lacks_for([encode_chunk(one), data])
        assert reader.lacking([b"x" + data, data]) == {NUMBER}
        reader.learn(NUMBER, dictionary)
        assert decode_chunk(data, reader) == one
        assert not reader.lacks_for([encode_chunk(one), data])
        assert reader.lacking([data]) == set()
        # Without one, and with the same object.
        plain, _ = encode_compressed(
            Chunk("n", 1, 1, 1, [Run(OP_SET, ["k"] * 99, [1] * 99)]), FrameWriter(1)
        )
        assert decode_chunk(plain, reader).deltas == 99
        assert reader.frames == 2


def test_a_reader_keeps_the_newest(dictionary: bytes) -> None:
    """A process that runs for months does not keep all."""
    reader = FrameReader()
    numbers = range(NUMBER, NUMBER + KEPT_DICTIONARIES + 5)
    for number in numbers:
        reader.learn(number, dictionary)
    known = [number for number in numbers if reader.dictionary(number) is not None]
    assert known == [*numbers][5:]
    assert reader.dictionary(0) == b""


def test_a_missing_one_is_told_once() -> None:
    """However many chunks need it."""
    reader = FrameReader()
    assert [reader.misses(7), reader.misses(7), reader.misses(8)] == [True, False, True]


def test_what_is_not_there_is_noted_in_bounded_memory() -> None:
    """Anybody may claim any number; after so many each is news again."""
    reader = FrameReader()
    assert all(reader.misses(number) for number in range(3 * MAX_MISSED))
    assert len(reader._missed) <= MAX_MISSED


def test_what_looks_like_a_frame_needs_nothing_that_cannot_be() -> None:
    """Numbers that no dictionary has are not asked for."""
    reader, noise = FrameReader(), Random(1)
    made = [
        b"\x28\xb5\x2f\xfd\x23" + number.to_bytes(4, "little") + b"\x05" + noise.randbytes(9)
        for number in (1, FIRST_DICTIONARY - 1, FIRST_DICTIONARY, LAST_DICTIONARY + 1)
    ]
    assert reader.lacking(made) == {FIRST_DICTIONARY}
    assert reader.lacking([b"".join(made)]) == {FIRST_DICTIONARY}
    assert reader.lacking([b"\x28\xb5\x2f\xfd", b""]) == set()


def test_a_field_is_believed_only_if_it_fits(dictionary: bytes) -> None:
    """By check sum, number inside and size."""
    good = content_of(NUMBER, dictionary)
    assert dictionary_of(NUMBER, good) == dictionary
    flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    other = content_of(NUMBER + 1, dictionary)
    large = dictionary + bytes(MAX_DICTIONARY_BYTES)
    bad: list[Any] = [None, b"", good[:3], good[:-1], flipped, content_of(NUMBER, b"raw content")]
    # Anybody can write head, number and check sum.
    garbage = DICTIONARY_MAGIC + NUMBER.to_bytes(4, "little") + b"\xff" * 200
    for content in [*bad, content_of(NUMBER, large), content_of(NUMBER, garbage)]:
        assert dictionary_of(NUMBER, content) is None
    assert dictionary_of(NUMBER + 1, good) is None
    assert dictionary_of(NUMBER + 1, other) is None, "another number inside"


def test_the_content_of_a_chunk_is_what_would_be_compressed(dictionary: bytes) -> None:
    """The same of a compressed and a plain one: samples are alike."""
    one, reader = chunk(5), FrameReader()
    reader.learn(NUMBER, dictionary)
    data, saved = encode_compressed(one, FrameWriter(1, dictionary, NUMBER))
    assert saved
    assert content_in(data, reader) == content_in(encode_chunk(one), reader)
    with pytest.raises(DecodeError):
        content_in(msgpack.packb([1]), reader)
