"""What a state is, in two kilobytes: a sum of hashes for each of 256 key ranges. No I/O.

A sum of entries' hashes can be changed entry by entry, whatever else is in the state, and in any
order (incremental hashing by addition, Bellare and Micciancio, EUROCRYPT 1997). So the scheduler
carries it on at the cost of what changed, a replica computes it from what it holds, and both agree
exactly if the contents do. It finds faults, not forgers: 64 bits of SHA-1 a key range.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha1
from typing import Final

from broker.errors import DecodeError

RANGES: Final = 256
DIGEST_BYTES: Final = 8 * RANGES

_SUMS = struct.Struct(f">{RANGES}Q")
_WRAP: Final = (1 << 64) - 1


def range_of(key: str) -> int:
    """Return the key range of a key, 0 to 255: the first byte of the SHA-1 of its UTF-8 bytes."""
    return sha1(key.encode(), usedforsecurity=False).digest()[0]


class Digest:
    """One state's sums by key range; of an empty state all are 0.

    Args:
        sums: 256 numbers below 2^64, copied; None is the empty state.
    """

    __slots__ = ("sums",)

    def __init__(self, sums: Iterable[int] | None = None) -> None:
        self.sums: list[int] = [0] * RANGES if sums is None else [one & _WRAP for one in sums]

    @classmethod
    def of_bytes(cls, data: bytes) -> Digest:
        """Read what `bytes()` gave.

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
        """Say whether all ranges agree."""
        return isinstance(other, Digest) and self.sums == other.sums

    __hash__ = None  # type: ignore[assignment] # it changes

    def add(self, key: str, packed: bytes, times: int = 1) -> None:
        """Count an entry in, or with `times=-1` out.

        Args:
            key: the key.
            packed: its value as MessagePack in the canonical form of PROTOCOL.md.
            times: 1 or -1.
        """
        name = sha1(key.encode(), usedforsecurity=False).hexdigest()
        entry = sha1(name.encode() + packed, usedforsecurity=False).digest()
        at = int(name[:2], 16)
        self.sums[at] = (self.sums[at] + times * int.from_bytes(entry[:8])) & _WRAP

    def differing(self, other: Digest) -> set[int]:
        """Return the key ranges whose contents differ; empty if none do."""
        return {at for at in range(RANGES) if self.sums[at] != other.sums[at]}
