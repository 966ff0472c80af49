"""Whether compressing a lane's chunks pays, found out by compressing some. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# In fewer bytes little repeats, and they cost as much as a kilobyte.
MIN_BYTES: Final = 160
# With a dictionary nearly all repeats.
MIN_BYTES_WITH_DICTIONARY: Final = 64
MAX_PAUSE: Final = 64


@dataclass(slots=True)
class Compression:
    """Chooses the chunks of a lane that are compressed: each, as long as that pays.

    Attributes:
        min_bytes: of the smallest runs that are compressed.

    After one that did not become smaller, as with random numbers, the next 1, 2, 4 ... chunks are
    left out, at most `MAX_PAUSE` at a time.
    """

    min_bytes: int = MIN_BYTES
    _pause: int = 0
    _left_out: int = 0

    def is_due(self, size: int) -> bool:
        """Whether to try the next chunk; call it once for each.

        Args:
            size: about how many bytes its runs have.
        """
        if size < self.min_bytes:
            return False
        if self._left_out:
            self._left_out -= 1
            return False
        return True

    def tried(self, saved: int) -> None:
        """Note by how many bytes a chunk became smaller; 0: it did not pay."""
        self._pause = 0 if saved else min(2 * self._pause or 1, MAX_PAUSE)
        self._left_out = self._pause
