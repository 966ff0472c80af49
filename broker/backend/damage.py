"""A damage: something in Redis that statebroker did not write."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that statebroker did not write.

    Attributes:
        key: the Redis key.
        what: one sentence of bounded length.
        is_other_type: the key holds another type than it should.
        is_content: a part of the full state; what it held is lost.
        field: of the hash, if it can be deleted by itself.
    """

    key: str
    what: str
    is_other_type: bool = False
    field: bytes | None = None
    is_content: bool = False

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.key}: {self.what}"
