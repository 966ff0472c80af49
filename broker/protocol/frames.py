"""Zstandard frames, of which the compressed part of a chunk is one. No I/O.

`zstandard` does the work, for it keeps what decompresses one frame for the next; without it the
`compression.zstd` of Python 3.14, which needs 8 us more a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from broker.errors import DecodeError
from broker.protocol.constants import (
    FIRST_DICTIONARY,
    LAST_DICTIONARY,
    MAX_CHUNK_BYTES,
    MAX_DICTIONARY_BYTES,
)

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]
try:
    from compression import zstd
except ImportError:
    zstd = None

MAGIC: Final = b"\x28\xb5\x2f\xfd"
DICTIONARY_MAGIC: Final = b"\x37\xa4\x30\xec"
MAX_MISSED: Final = 1000  # numbers of dictionaries that are not there, which anybody may claim
KEPT_DICTIONARIES: Final = 16  # of a reader; twice as many as are kept in a namespace
PACKAGE: Final = "zstandard"  # what to install where nothing of the two is there
MAX_LEVEL: Final = 19

# Of the header behind the magic number, by two bits of its first byte.
_DICTIONARY_SIZES: Final = (0, 1, 2, 4)
_CONTENT_SIZES: Final = (0, 2, 4, 8)
_SHORT: Final = 2  # bytes of a size of which 256 were subtracted
_LONGEST_HEADER: Final = 18
_HEAD_BYTES: Final = 128  # of a chunk, within which its compressed part begins


def is_available() -> bool:
    """Whether this program can make and open frames."""
    return zstandard is not None or zstd is not None


def header_of(frame: bytes) -> tuple[int, int]:
    """Return how many bytes a frame says that it holds, and its dictionary; 0: it needs none.

    Raises:
        DecodeError: the header is not one of a frame that a reader may open: it is cut short, names
            no size, or one or a window above `MAX_CHUNK_BYTES`.
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
    return size, dictionary


def _window(descriptor: int) -> int:
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)


def size_within(chunk: bytes) -> int:
    """Return about how many bytes a chunk has once it is opened; as it is, if not compressed."""
    return _glance(chunk, chunk.find(MAGIC, 0, _HEAD_BYTES))[0] or len(chunk)


def dictionary_for(chunk: bytes) -> int:
    """Return the number of the dictionary that a chunk seems to need; 0: none."""
    at = chunk.find(MAGIC, 0, _HEAD_BYTES)
    return _glance(chunk, at)[1] if at >= 0 else 0


def _glance(data: bytes, at: int) -> tuple[int, int]:
    """Return size and dictionary of what may be a frame at this place; zeros if it is none."""
    try:
        return header_of(data[at : at + _LONGEST_HEADER]) if at >= 0 else (0, 0)
    except DecodeError:
        return 0, 0


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
        self._missed: set[int] = set()
        self._dictionaries: dict[int, bytes] = {0: b""}
        # By dictionary: one for each thread that ever opened a frame at the same time as others.
        self._idle: dict[int, list[Callable[[bytes, int], bytes]]] = {0: []}

    def learn(self, number: int, dictionary: bytes) -> None:
        """Know a dictionary from now on; beyond `KEPT_DICTIONARIES` the oldest are dropped."""
        self._idle[number] = []
        self._dictionaries[number] = dictionary
        while len(self._dictionaries) > KEPT_DICTIONARIES + 1:
            oldest = next(islice(self._dictionaries, 1, None))
            del self._dictionaries[oldest]
            self._idle.pop(oldest, None)

    def misses(self, number: int) -> bool:
        """Note that a dictionary is not there; true the first time, of as many as are kept."""
        if number in self._missed:
            return False
        if len(self._missed) >= MAX_MISSED:
            self._missed.clear()
        self._missed.add(number)
        return True

    def dictionary(self, number: int) -> bytes | None:
        """Return a dictionary; None if it is not known."""
        return self._dictionaries.get(number)

    def lacks_for(self, chunks: Iterable[bytes]) -> bool:
        """Whether one of these chunks seems to need a dictionary that is not known."""
        return any(dictionary_for(chunk) not in self._dictionaries for chunk in chunks)

    def lacking(self, data: Iterable[bytes]) -> set[int]:
        """Return numbers of all dictionaries that chunks somewhere in `data` need, and more.

        Whatever looks like a frame counts: whether a dictionary of that number exists is asked.
        """
        found: set[int] = set()
        for one in data:
            at = one.find(MAGIC)
            while at >= 0:
                found.add(_glance(one, at)[1])
                at = one.find(MAGIC, at + 1)
        return {
            number
            for number in found - self._dictionaries.keys()
            if FIRST_DICTIONARY <= number <= LAST_DICTIONARY
        }

    def content(self, frame: bytes) -> bytes:
        """Return what a frame holds; memory is asked for only within the limit of a chunk.

        Raises:
            DecodeError: it is not exactly one frame that a reader may open, needs a dictionary that
                is not known, or holds another number of bytes than its header says.
        """
        size, number = header_of(frame)
        dictionary, idle = self._dictionaries.get(number), self._idle.get(number)
        if dictionary is None or idle is None:
            raise DecodeError(f"the zstd frame needs dictionary {number}, which is not there")
        try:
            one = idle.pop()
        except IndexError:
            one = _opener(dictionary)
        try:
            content = one(frame, size)
        finally:
            idle.append(one)
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
        dictionary: the content of one; empty: none.
        number: of the dictionary.
    """

    def __init__(self, level: int, dictionary: bytes = b"", number: int = 0) -> None:
        self.number = number
        self._level = level
        self._dictionary = dictionary
        self._compress: Callable[[bytes], bytes] | None = None

    def frame(self, content: bytes) -> bytes:
        """Return a frame that holds `content`, at most `MAX_CHUNK_BYTES`."""
        if self._compress is None:
            self._compress = _compressor(self._level, self._dictionary)
        return self._compress(content)


def trained(samples: Sequence[bytes], size: int, number: int) -> bytes:
    """Return a dictionary of at most `size` bytes, made from samples of what it is for.

    It takes seconds; the interpreter's lock is free meanwhile.

    Raises:
        ValueError: the samples do not suffice.
    """
    try:
        if zstandard is not None:
            made = zstandard.train_dictionary(size, list(samples)).as_bytes()
        else:
            made = zstd.train_dict(samples, size).dict_content
    except (zstandard or zstd).ZstdError as error:
        raise ValueError(str(error)) from error
    return made[:4] + number.to_bytes(4, "little") + made[8:]


def is_usable(dictionary: bytes) -> bool:
    """Whether frames can be made and opened with a dictionary: not each with a head is whole."""
    try:
        _opener(dictionary)
        _compressor(1, dictionary)
    except (ValueError, (zstandard or zstd).ZstdError):
        return False
    return True


def number_in(dictionary: bytes) -> int:
    """Return the number inside a dictionary; 0 if it is none."""
    is_one = dictionary[:4] == DICTIONARY_MAGIC and len(dictionary) <= MAX_DICTIONARY_BYTES
    return int.from_bytes(dictionary[4:8], "little") if is_one else 0


def _opener(dictionary: bytes) -> Callable[[bytes, int], bytes]:
    """Return a function that opens a frame, whose header was checked, of so many bytes."""
    if zstandard is None:
        known = zstd.ZstdDict(dictionary) if dictionary else None
        return lambda frame, size: _opened_by_stdlib(frame, size, known)
    data = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    one = zstandard.ZstdDecompressor(dict_data=data)

    def opened(frame: bytes, _: int) -> bytes:
        try:
            return one.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DecodeError(f"the zstd frame cannot be opened: {error}") from None

    return opened


def _opened_by_stdlib(frame: bytes, size: int, dictionary: Any) -> bytes:
    # It is for one frame.
    one = zstd.ZstdDecompressor(dictionary)
    try:
        content: bytes = one.decompress(frame, size + 1)
    except zstd.ZstdError as error:
        raise DecodeError(f"the zstd frame cannot be opened: {error}") from None
    if not one.eof or one.unused_data:
        raise DecodeError("the zstd frame does not end where the compressed part does")
    return content


def _compressor(level: int, dictionary: bytes) -> Callable[[bytes], bytes]:
    # Both write the size of the content into the header, and no check sum: a chunk has its own.
    if zstandard is not None:
        data = None
        if dictionary:
            data = zstandard.ZstdCompressionDict(dictionary)
            data.precompute_compress(level=level)
        return zstandard.ZstdCompressor(level=level, dict_data=data).compress
    known = zstd.ZstdDict(dictionary) if dictionary else None
    one = zstd.ZstdCompressor(level=level, zstd_dict=known)
    return lambda content: one.compress(content, one.FLUSH_FRAME)
