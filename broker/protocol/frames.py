"""Zstandard frames, of which the compressed part of a chunk is one. No I/O.

`zstandard` does the work, for it keeps what decompresses one frame for the next; without it the
`compression.zstd` of Python 3.14, which needs 8 us more a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.errors import DecodeError
from broker.protocol.constants import MAX_CHUNK_BYTES

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]
try:
    from compression import zstd
except ImportError:
    zstd = None

MAGIC: Final = b"\x28\xb5\x2f\xfd"
PACKAGE: Final = "zstandard"  # what to install where nothing of the two is there
MAX_LEVEL: Final = 19

# Of the header behind the magic number, by two bits of its first byte.
_DICTIONARY_SIZES: Final = (0, 1, 2, 4)
_CONTENT_SIZES: Final = (0, 2, 4, 8)
_SHORT: Final = 2  # bytes of a size of which 256 were subtracted
_LONGEST_HEADER: Final = 18


def is_available() -> bool:
    """Whether this program can make and open frames."""
    return zstandard is not None or zstd is not None


def content_size(frame: bytes) -> int:
    """Return how many bytes the header of a frame says that it holds.

    Raises:
        DecodeError: the header is not one of a frame that a reader may open: it is cut short, names
            no size, or one or a window above `MAX_CHUNK_BYTES`, or a dictionary.
    """
    if frame[:4] != MAGIC:
        raise DecodeError("the compressed part is not a zstd frame")
    if len(frame) < len(MAGIC) + 1:
        raise DecodeError("the zstd frame is cut short")
    flags = frame[4]
    is_one_segment = bool(flags & 0x20)
    at = 5 + (not is_one_segment)
    end = at + _DICTIONARY_SIZES[flags & 3]
    dictionary = int.from_bytes(frame[at:end], "little")
    width = _CONTENT_SIZES[flags >> 6] or int(is_one_segment)
    if not width:
        raise DecodeError("the zstd frame does not name the size of its content")
    if len(frame) < end + width:
        raise DecodeError("the zstd frame is cut short")
    size = int.from_bytes(frame[end : end + width], "little") + (256 if width == _SHORT else 0)
    window = size if is_one_segment else _window(frame[5])
    if max(size, window) > MAX_CHUNK_BYTES:
        raise DecodeError(
            f"the zstd frame holds {size} bytes with a window of {window}, limit {MAX_CHUNK_BYTES}"
        )
    if dictionary:
        raise DecodeError(f"the zstd frame needs dictionary {dictionary}, which is not known")
    return size


def _window(descriptor: int) -> int:
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)


def size_within(chunk: bytes) -> int:
    """Return about how many bytes a chunk has once it is opened; as it is, if not compressed."""
    at = chunk.find(MAGIC, 0, 128)
    try:
        return content_size(chunk[at : at + _LONGEST_HEADER]) if at > 0 else len(chunk)
    except DecodeError:
        return len(chunk)


class FrameReader:
    """Opens frames; any thread may use it.

    Attributes:
        frames: how many were opened.
        frame_bytes: their size.
        content_bytes: the size of what they held.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.frame_bytes = 0
        self.content_bytes = 0
        # One for each thread that ever opened a frame at the same time as others.
        self._idle: list[Callable[[bytes, int], bytes]] = []

    def content(self, frame: bytes) -> bytes:
        """Return what a frame holds; memory is asked for only within the limit of a chunk.

        Raises:
            DecodeError: it is not exactly one frame that a reader may open, or holds another number
                of bytes than its header says.
        """
        size = content_size(frame)
        try:
            one = self._idle.pop()
        except IndexError:
            one = _opener()
        try:
            content = one(frame, size)
        finally:
            self._idle.append(one)
        if len(content) != size:
            raise DecodeError(f"the zstd frame holds {len(content)} bytes, and says {size}")
        self.frames += 1
        self.frame_bytes += len(frame)
        self.content_bytes += size
        return content


class FrameWriter:
    """Makes frames; one thread at a time may use it.

    Args:
        level: of the compression, 1 to `MAX_LEVEL`.
    """

    def __init__(self, level: int) -> None:
        self._level = level
        self._compress: Callable[[bytes], bytes] | None = None

    def frame(self, content: bytes) -> bytes:
        """Return a frame that holds `content`, at most `MAX_CHUNK_BYTES`."""
        if self._compress is None:
            self._compress = _compressor(self._level)
        return self._compress(content)


def _opener() -> Callable[[bytes, int], bytes]:
    """Return a function that opens a frame, whose header was checked, of so many bytes."""
    if zstandard is None:
        return _opened_by_stdlib
    one = zstandard.ZstdDecompressor()

    def opened(frame: bytes, _: int) -> bytes:
        try:
            return one.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DecodeError(f"the zstd frame cannot be opened: {error}") from None

    return opened


def _opened_by_stdlib(frame: bytes, size: int) -> bytes:
    # It is for one frame.
    one = zstd.ZstdDecompressor()
    try:
        content: bytes = one.decompress(frame, size + 1)
    except zstd.ZstdError as error:
        raise DecodeError(f"the zstd frame cannot be opened: {error}") from None
    if not one.eof or one.unused_data:
        raise DecodeError("the zstd frame does not end where the compressed part does")
    return content


def _compressor(level: int) -> Callable[[bytes], bytes]:
    # Both write the size of the content into the header, and no check sum: a chunk has its own.
    if zstandard is not None:
        return zstandard.ZstdCompressor(level=level).compress
    one = zstd.ZstdCompressor(level=level)
    return lambda content: one.compress(content, one.FLUSH_FRAME)
