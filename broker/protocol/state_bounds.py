"""Bounds of a namespace's state, and what a shard says once it is above one. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_FULL: Final = re.compile(rb"(keys|bytes) ([0-9]{1,16}) ([0-9]{1,16})")
_SETTINGS: Final = {"keys": "max_keys", "bytes": "max_state_bytes"}


@dataclass(frozen=True, slots=True)
class StateFull:
    """A shard's full state is above a bound.

    Attributes:
        what: "keys" or "bytes".
        value: how many there are.
        bound: how many there may be, in this shard.
    """

    what: str
    value: int
    bound: int

    @property
    def setting(self) -> str:
        """The setting that bounds it."""
        return _SETTINGS[self.what]

    def __str__(self) -> str:
        """Return how many there are and may be."""
        return f"{self.value} {self.what} of at most {self.bound}"

    def packed(self) -> bytes:
        """Return the form in which meta holds it."""
        return f"{self.what} {self.value} {self.bound}".encode()


def state_full(text: bytes | None) -> StateFull | None:
    """Return what meta says; None if the state is not full, or it cannot be read."""
    match = _FULL.fullmatch(text or b"")
    return None if match is None else StateFull(match[1].decode(), int(match[2]), int(match[3]))


@dataclass(frozen=True, slots=True)
class StateBounds:
    """What each shard of a namespace may hold; 0: no bound.

    Attributes:
        keys: keys with values.
        bytes: of memory that the full state takes in Redis, tables included.
    """

    keys: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, max_keys: int, max_state_bytes: int, shards: int) -> StateBounds:
        """Return a shard's part of the bounds of a namespace, rounded up."""
        return cls(-(-max_keys // shards), -(-max_state_bytes // shards))

    def passed_by(self, keys: int, size: int) -> StateFull | None:
        """Return which bound so many keys and bytes are above; None if none.

        Args:
            keys: any number if there is no bound.
            size: bytes, likewise.
        """
        if self.keys and keys > self.keys:
            return StateFull("keys", keys, self.keys)
        if self.bytes and size > self.bytes:
            return StateFull("bytes", size, self.bytes)
        return None
