"""Frames: made by either library, opened by either, and refused before memory is asked for."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from random import Random
from threading import Barrier
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import DecodeError
from broker.protocol import frames
from broker.protocol.codec import decode_chunk, encode_chunk, encode_compressed
from broker.protocol.constants import MAX_CHUNK_BYTES
from broker.protocol.frames import MAGIC, FrameReader, FrameWriter, header_of, size_within
from broker.protocol.messages import Chunk, Run, TableDefine, TableKey
from broker.protocol.operations import OP_SET

LIBRARIES = ("zstandard", "compression.zstd")
# What only a few bytes say: a segment of 2^62 bytes, in a block of one repeated byte.
BOMB = MAGIC + b"\xe0" + (1 << 62).to_bytes(8, "little") + b"\x03\x00\x10x"


def choose(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one of the two libraries."""
    if name == "compression.zstd":
        monkeypatch.setattr(frames, "zstandard", None)
        monkeypatch.setattr(frames, "zstd", frames.zstd or import_module("backports.zstd"))


def repeating(keys: int) -> Chunk:
    """A chunk in which much repeats."""
    names = [f"vehicle/{number:05d}" for number in range(keys)]
    return Chunk("n1", 1, 7, 9, [Run(OP_SET, names, [float(n) for n in range(keys)])])


@pytest.mark.parametrize("level", [1, 3, frames.MAX_LEVEL])
@pytest.mark.parametrize("opened_by", LIBRARIES)
@pytest.mark.parametrize("made_by", LIBRARIES)
@given(content=st.binary(max_size=3000) | st.integers(1, 20).map(lambda n: b"abc" * n * 1000))
def test_what_one_library_makes_the_other_opens(
    made_by: str, opened_by: str, level: int, content: bytes
) -> None:
    """With the size of the content in its header, no dictionary and no check sum of its own."""
    with pytest.MonkeyPatch.context() as patch:
        choose(made_by, patch)
        frame = FrameWriter(level).frame(content)
    assert header_of(frame) == (len(content), 0)
    assert not frame[4] & 0b0111, "the flags for a check sum and a dictionary"
    with pytest.MonkeyPatch.context() as patch:
        choose(opened_by, patch)
        reader = FrameReader()
        assert reader.content(frame) == content
    counts = (reader.frames, reader.frame_bytes, reader.content_bytes)
    assert counts == (1, len(frame), len(content))


def test_a_bomb_is_refused_by_its_declared_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked to open it, so no memory is asked for."""

    def opened(*_: Any) -> bytes:
        raise AssertionError("opened")

    monkeypatch.setattr(frames, "_opener", lambda _: opened)
    large = zstandard.ZstdCompressor().compress(bytes(MAX_CHUNK_BYTES + 1))
    assert len(large) < 1000
    for frame in (BOMB, large):
        with pytest.raises(DecodeError, match="limit 4194304"):
            FrameReader().content(frame)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_lie_about_the_size_is_refused(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is more or less, and whoever opens it; a good frame is opened after that."""
    choose(library, monkeypatch)
    reader, good = FrameReader(), zstandard.ZstdCompressor().compress(b"x" * 1000)
    for size in (999, 1001, 300, 65_000):
        lie = good[:5] + (size - 256).to_bytes(2, "little") + good[7:]
        assert header_of(lie) == (size, 0)
        with pytest.raises(DecodeError, match="zstd frame"):
            reader.content(lie)
    assert reader.content(good) == b"x" * 1000
    assert reader.frames == 1


@given(frame=st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: MAGIC + rest))
def test_any_bytes_are_opened_or_refused(frame: bytes) -> None:
    """Nothing else is raised, whatever they are, and no more is returned than they say."""
    for cut in (frame, BOMB[: len(frame)]):
        try:
            content = FrameReader().content(cut)
        except DecodeError:
            continue
        assert len(content) == header_of(cut)[0]


def test_threads_never_share_what_opens_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler opens large frames in threads; one object is for one thread at a time."""
    used: list[object] = []
    together = Barrier(8)

    def opener(_: bytes) -> Any:
        def opened(_: bytes, size: int) -> bytes:
            used.append(opened)
            together.wait(10)
            return bytes(size)

        return opened

    monkeypatch.setattr(frames, "_opener", opener)
    reader, frame = FrameReader(), FrameWriter(1).frame(bytes(1000))
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(reader.content, [frame] * 8)) == [bytes(1000)] * 8
        assert len(set(used[-8:])) == 8
    assert len(set(used)) == 8, "they are used again"


@pytest.mark.parametrize("descriptor", range(12 << 3))
def test_windows_are_those_of_zstd(descriptor: int) -> None:
    """Exponent and mantissa of every window that a reader may open."""
    header = MAGIC + bytes([0xC0, descriptor]) + (5).to_bytes(8, "little")
    expected = zstandard.get_frame_parameters(header).window_size
    assert frames._window(descriptor) == expected


@pytest.mark.parametrize("keys", [20, 2000])
def test_a_chunk_is_compressed_as_a_whole_behind_its_head(keys: int) -> None:
    """Runs and tables; the same chunk comes out, and so many bytes were saved."""
    define = TableDefine(TableKey("t", "str-f64"), 0, [f"stop/{n:04d}" for n in range(keys)])
    for chunk in (repeating(keys), Chunk("n1", 1, 7, 9, [], [define])):
        plain = encode_chunk(chunk)
        data, saved = encode_compressed(chunk, FrameWriter(1))
        assert decode_chunk(data, FrameReader()) == chunk
        assert saved == len(plain) - len(data) > len(plain) // 4
        assert data[1 : plain.index(b"\x09") + 1] == plain[1 : plain.index(b"\x09") + 1]
        assert size_within(data) == pytest.approx(len(plain), abs=40)
        with pytest.raises(DecodeError, match="lacks the word compress"):
            decode_chunk(data)


def test_a_chunk_that_does_not_become_smaller_stays_as_it_is() -> None:
    """Byte for byte; its readers have nothing to open."""
    keys, noise = [f"k{n}" for n in range(60)], Random(1)
    noisy = Run(OP_SET, keys, [noise.randbytes(100) for _ in keys])
    for runs in ([], [Run(OP_SET, ["k"], [1])], [noisy]):
        chunk = Chunk("n1", 1, 7, 9, runs)
        assert encode_compressed(chunk, FrameWriter(1)) == (encode_chunk(chunk), 0)
        assert size_within(encode_chunk(chunk)) == len(encode_chunk(chunk))


def test_without_a_library_the_word_is_not_known() -> None:
    """Such a program works, in namespaces without the word; it says what to install."""
    script = (
        "import sys; sys.modules['zstandard'] = sys.modules['compression'] = None\n"
        "from broker.protocol import features\n"
        "from broker.backend.stored import MadeAs\n"
        "print(features.KNOWN_FEATURES == set(), features.NEW_FEATURES)\n"
        "print(MadeAs(3, 1, ('compress',)).refusal())\n"
        "print(MadeAs(3, 1, ('compress', 'ttl')).refusal())\n"
        "print(bool(MadeAs(3, 1).refusal()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    known, lacking, both, plain = done.stdout.splitlines()
    assert known == "True ()"
    assert "the package zstandard is not installed here" in lacking
    assert "which this release does not know" in both
    assert plain == "False"


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_library_that_returns_another_number_of_bytes_is_not_believed(
    surplus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is: readers must not differ."""
    monkeypatch.setattr(frames, "_opener", lambda *_: lambda _, size: bytes(size + surplus))
    with pytest.raises(DecodeError, match=f"holds {1000 + surplus} bytes, and says 1000"):
        FrameReader().content(FrameWriter(1).frame(bytes(1000)))
