"""Text that does not become smaller, for tests of the bytes of chunks."""

from __future__ import annotations

from random import Random

# Evenly spread over 94 letters: zstd saves a sixth, too little for a producer to compress.
_LETTERS = bytes(33 + number % 94 for number in range(256))


def noise(seed: int, size: int) -> str:
    """Return so many ASCII letters, the same for the same seed."""
    return Random(seed).randbytes(size).translate(_LETTERS).decode()
