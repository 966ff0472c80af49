"""A digest of a state in two kilobytes: a sum of products for each of 256 key ranges. No I/O.

A sum of hashes can be updated entry by entry, in any order (incremental hashing by addition,
Bellare and Micciancio, EUROCRYPT 1997). So the scheduler updates it at the cost of the changes, a
replica computes it from its content, and both are equal if the contents are. An entry is the
product of two check sums, of the key and of key and content: a sum of CRC-32 alone would not notice
values that changed places. It detects faults, not attacks: it misses one wrong value in 2^32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from broker.errors import DecodeError

RANGES: Final = 256
DIGEST_BYTES: Final = 8 * RANGES

_SUMS = struct.Struct(f">{RANGES}Q")
# The upper bits: the lower ones may choose the shard already.
_RANGE_SHIFT: Final = 24
_WRAP: Final = (1 << 64) - 1


def range_of(key: str | bytes) -> int:
    """Return the key range of a key, 0 to 255: the upper 8 bits of the CRC-32 of its UTF-8."""
    raw = key.encode() if isinstance(key, str) else key
    return crc32(raw) >> _RANGE_SHIFT


def entry_of(key: str | bytes, packed: bytes) -> Entry:
    """Return the key range and the entry of a key with this content.

    Args:
        key: the key, or its UTF-8 bytes.
        packed: its content, as for `Digest.add`.
    """
    name = crc32(key.encode() if isinstance(key, str) else key)
    return Entry(name >> _RANGE_SHIFT, (name + 1) * (crc32(packed, name) + 1))


class Entry(NamedTuple):
    """What a key adds to the sum of its key range."""

    at: int
    number: int


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
        self.add_entry(entry_of(key, packed), times)

    def add_entry(self, entry: Entry, times: int = 1) -> None:
        """Add an entry that was computed before, or with `times=-1` remove it."""
        self.sums[entry.at] = (self.sums[entry.at] + times * entry.number) & _WRAP

    def add_all(self, keys: Sequence[bytes], packed: Iterable[bytes], times: int = 1) -> None:
        """Add an entry for each key, at a third of the cost of `add`; arguments in columns.

        Args:
            keys: as UTF-8 bytes.
            packed: as many contents.
            times: 1 or -1.
        """
        names = [*map(crc32, keys)]
        found = [0] * RANGES
        for name, content in zip(names, map(crc32, packed, names), strict=True):
            found[name >> _RANGE_SHIFT] += (name + 1) * (content + 1)
        self.sums = [
            (one + times * more) & _WRAP for one, more in zip(self.sums, found, strict=True)
        ]

    def differing(self, other: Digest) -> set[int]:
        """Return the key ranges that differ."""
        return {at for at in range(RANGES) if self.sums[at] != other.sums[at]}
