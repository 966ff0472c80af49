"""A digest of a state in two kilobytes: a sum of hashes for each of 256 key ranges. No I/O.

A sum of hashes can be updated entry by entry, in any order (incremental hashing by addition,
Bellare and Micciancio, EUROCRYPT 1997). So the scheduler updates it at the cost of the changes, a
replica computes it from its content, and both are equal exactly if the contents are. It detects
faults, not attacks: 64 bits of SHA-1 per key range.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from broker.errors import DecodeError
from broker.protocol.sums import sha1

RANGES: Final = 256
DIGEST_BYTES: Final = 8 * RANGES

_SUMS = struct.Struct(f">{RANGES}Q")
_ENTRY = struct.Struct(">Q12x")  # the part of a SHA-1 that counts
_SHA1_BYTES: Final = 20
_HEX_BYTES: Final = 2 * _SHA1_BYTES
_WRAP: Final = (1 << 64) - 1


def range_of(key: str | bytes) -> int:
    """Return the key range of a key, 0 to 255: the first byte of the SHA-1 of its UTF-8 bytes."""
    raw = key.encode() if isinstance(key, str) else key
    return int(sha1(raw).digest()[0])


class Digest:
    """The sums of a state by key range, all 0 for an empty state.

    Args:
        sums: 256 numbers below 2^64, copied; None: an empty state.
    """

    __slots__ = ("sums",)

    def __init__(self, sums: Iterable[int] | None = None) -> None:
        self.sums: list[int] = [0] * RANGES if sums is None else [one & _WRAP for one in sums]

    @classmethod
    def of_bytes(cls, data: bytes) -> Digest:
        """Parse the result of `bytes()`.

        Raises:
            DecodeError: not 2,048 bytes.
        """
        if len(data) != DIGEST_BYTES:
            raise DecodeError(f"a digest of {len(data)} bytes, not {DIGEST_BYTES}")
        return cls(_SUMS.unpack(data))

    def __bytes__(self) -> bytes:
        """Return the 256 sums as big-endian u64, range 0 first."""
        return _SUMS.pack(*self.sums)

    def __eq__(self, other: object) -> bool:
        """Return whether all ranges are equal."""
        return isinstance(other, Digest) and self.sums == other.sums

    __hash__ = None  # type: ignore[assignment] # it changes

    def add(self, key: str | bytes, packed: bytes, times: int = 1) -> None:
        """Add an entry, or with `times=-1` remove it.

        Args:
            key: the key, or its UTF-8 bytes.
            packed: its content: flags and cell, see `content_of`.
            times: 1 or -1.
        """
        raw = key.encode() if isinstance(key, str) else key
        name = sha1(raw).hexdigest()
        entry = sha1(name.encode() + packed).digest()
        at = int(name[:2], 16)
        self.sums[at] = (self.sums[at] + times * int.from_bytes(entry[:8])) & _WRAP

    def add_all(self, keys: Sequence[bytes], packed: Iterable[bytes]) -> None:
        """Add an entry for each key, at half the cost of `add`; arguments in columns.

        Args:
            keys: as UTF-8 bytes.
            packed: as many contents.
        """
        names = b"".join([sha1(key).digest() for key in keys])
        shown = names.hex().encode()
        places = range(0, len(shown), _HEX_BYTES)
        entries = b"".join(
            [
                sha1(shown[at : at + _HEX_BYTES] + value).digest()
                for at, value in zip(places, packed, strict=True)
            ]
        )
        sums = self.sums
        ranges = names[::_SHA1_BYTES]
        for at, (entry,) in zip(ranges, _ENTRY.iter_unpack(entries), strict=True):
            sums[at] += entry
        for at in set(ranges):
            sums[at] &= _WRAP

    def replace_all(
        self,
        keys: Sequence[bytes],
        before: Iterable[bytes | None],
        after: Iterable[bytes | None],
    ) -> None:
        """Replace the entries of keys, at a third of the cost of `add`; arguments in columns.

        Args:
            keys: as UTF-8 bytes.
            before: as many entries that are in the sums; None: the key has none.
            after: as many that shall be; None: none.
        """
        sums = self.sums
        for key, old, new in zip(keys, before, after, strict=True):
            digest = sha1(key).digest()
            name = digest.hex().encode()
            change = 0
            if new is not None:
                change = int.from_bytes(sha1(name + new).digest()[:8])
            if old is not None:
                change -= int.from_bytes(sha1(name + old).digest()[:8])
            sums[digest[0]] += change
        for at in range(RANGES):
            sums[at] &= _WRAP

    def differing(self, other: Digest) -> set[int]:
        """Return the key ranges that differ."""
        return {at for at in range(RANGES) if self.sums[at] != other.sums[at]}
