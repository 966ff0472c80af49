"""Parse the wire format of Redis as far as a proxy needs: the ends and kinds of frames.

Frames stay bytes and are forwarded unchanged. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

CRLF = b"\r\n"
_LINES = frozenset(b"+-:_,#(")
_BULKS = frozenset(b"$=!")
_ARRAYS = frozenset(b"*~>")
_MAPS = frozenset(b"%|")

SUBSCRIBING = frozenset(
    (
        *(b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"),
        *(b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"),
    )
)
_CONFIRMATIONS = frozenset(name.lower() for name in SUBSCRIBING)
_MESSAGES = frozenset((b"message", b"pmessage", b"smessage"))


class _IncompleteError(Exception):
    """The frame is not complete yet."""


class Frames:
    """Splits a stream of bytes into frames.

    A stream in another format is forwarded as it is.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._foreign = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add received bytes; yield every frame that is complete now."""
        if self._foreign:
            yield data
            return
        self._held += data
        start = 0
        try:
            while start < len(self._held):
                end = _end(self._held, start)
                yield bytes(self._held[start:end])
                start = end
        except _IncompleteError:
            pass
        except ValueError:
            self._foreign = True
            yield bytes(self._held[start:])
            start = len(self._held)
        del self._held[:start]


def _line(data: bytearray, start: int) -> tuple[bytes, int]:
    end = data.find(CRLF, start)
    if end < 0:
        raise _IncompleteError
    return bytes(data[start + 1 : end]), end + len(CRLF)


def _end(data: bytearray, start: int) -> int:
    if start >= len(data):
        raise _IncompleteError
    kind = data[start]
    text, at = _line(data, start)
    if kind in _LINES:
        return at
    if kind in _BULKS:
        size = int(text)
        end = at if size < 0 else at + size + len(CRLF)
        if end > len(data):
            raise _IncompleteError
        return end
    if kind in _ARRAYS or kind in _MAPS:
        for _ in range(int(text) * (2 if kind in _MAPS else 1)):
            at = _end(data, at)
        return at
    # An inline command.
    return at


def words(frame: bytes, limit: int = 3) -> list[bytes]:
    """Return the first plain elements of an array of bulk strings, or the words of a line."""
    data = bytearray(frame)
    if data[0] not in _ARRAYS:
        return frame.split()[:limit]
    count, at = _line(data, 0)
    found: list[bytes] = []
    for _ in range(min(limit, int(count))):
        if data[at] not in _BULKS:
            break
        size, at = _line(data, at)
        found.append(bytes(data[at : at + max(0, int(size))]))
        at += max(0, int(size)) + len(CRLF)
    return found


def command(frame: bytes) -> bytes:
    """Return the name of the command that a request calls, in capitals."""
    return (words(frame, 1) or [b""])[0].upper()


def is_message(frame: bytes) -> bool:
    """Whether a frame is a pub/sub message."""
    return frame[:1] in (b"*", b">") and (words(frame, 1) or [b""])[0] in _MESSAGES


def is_confirmation(frame: bytes) -> bool:
    """Whether a frame confirms that a subscription began or ended."""
    return frame[:1] in (b"*", b">") and (words(frame, 1) or [b""])[0] in _CONFIRMATIONS
