"""Values of Redis keys as others may have written them: read as the protocol says, or refused."""

from __future__ import annotations

from typing import Final, NamedTuple

from broker.errors import DamagedError
from broker.protocol.constants import MAX_SHARDS, NO_ID, PROTOCOL_VERSION
from broker.protocol.features import unknown_in, words_in
from broker.protocol.names import is_name
from broker.protocol.refusal import shown

# Lua reads all numbers as doubles, which are exact up to here.
MAX_NUMBER: Final = 1 << 53
ID_BYTES: Final = len(NO_ID)
# Before a record whose holder is asked whether it lives, with a text of the asking command.
ASKED: Final = b"idle"


def is_number(value: bytes) -> bool:
    """Whether this is a number as the protocol writes it: decimal digits, 0 to 2**53."""
    return len(value) <= len(str(MAX_NUMBER)) and value.isdigit() and int(value) <= MAX_NUMBER


def number(key: str, field: str, value: bytes | None) -> int:
    """Return a number of a hash; an absent one is 0.

    Raises:
        DamagedError: it is none; the text names key and field.
    """
    if value is None:
        return 0
    if not is_number(value):
        raise DamagedError(key, f"{field} is {shown(value)}, not a number from 0 to 2**53")
    return int(value)


def number_or_none(value: bytes | None) -> int | None:
    """Return a number of a hash that is for information only; None if it is absent or none."""
    return int(value) if value is not None and is_number(value) else None


def id_of(key: str, field: str, value: bytes | None) -> bytes:
    """Return an id of a hash; an absent one is 8 zero bytes.

    Raises:
        DamagedError: it has not 8 bytes.
    """
    if value is None:
        return NO_ID
    if len(value) != ID_BYTES:
        raise DamagedError(key, f"{field} is {shown(value)}, not {ID_BYTES} bytes")
    return value


def writer_record(key: str, node: str, record: bytes) -> tuple[int, str, int, int]:
    """Return (incarnation, token, last chunk number, deltas) of a node, asked for or not.

    Raises:
        DamagedError: the record is not these four.
    """
    parts = record.split(b" ")
    if is_asked(record):
        del parts[:2]
    if (
        len(parts) != 4  # noqa: PLR2004 - the four that are returned
        or not all(map(is_number, (parts[0], parts[2], parts[3])))
        or not (parts[1] and parts[1].isascii())
    ):
        raise DamagedError(key, f"the record of node {node} is {shown(record)}")
    return int(parts[0]), parts[1].decode(), int(parts[2]), int(parts[3])


def is_asked(record: bytes) -> bool:
    """Whether the holder of a writer's record has to write it again, lest it is forgotten."""
    return record.startswith(ASKED + b" ")


def worker_record(record: bytes) -> tuple[str, int, str] | None:
    """Return (role, ms when it was last seen, why it is red) of a worker; None if unreadable."""
    role, _, rest = record.partition(b" ")
    seen_at, _, reason = rest.partition(b" ")
    if not role.isalpha() or not role.isascii() or not is_number(seen_at):
        return None
    return role.decode(), int(seen_at), reason.decode(errors="replace")


def node_name(name: bytes) -> str | None:
    """Return the name of a node, None if no node can have it."""
    text = name.decode(errors="replace")
    return text if is_name(text) else None


class MadeAs(NamedTuple):
    """How a namespace was made.

    Attributes:
        protocol: its protocol version.
        shards: how many it has.
        features: its feature words; empty if another version made it, whose words nobody knows.
    """

    protocol: int
    shards: int
    features: tuple[str, ...] = ()

    def refusal(self) -> str:
        """Return why this program must not use the namespace, and the fix; empty if it may."""
        if self.protocol != PROTOCOL_VERSION:
            return (
                f"has protocol version {self.protocol}, this release has version "
                f"{PROTOCOL_VERSION}; use a release with that version, or another namespace"
            )
        unknown = unknown_in(self.features)
        if not unknown:
            return ""
        words, them = ("word", "it") if len(unknown) == 1 else ("words", "them")
        return (
            f"needs the feature {words} {', '.join(unknown)}, which this release does not know; "
            f"use a release that knows {them}, or another namespace"
        )


def made_as(
    key: str, protocol: bytes | None, shards: bytes | None, features: bytes | None
) -> MadeAs | None:
    """Return how a namespace was made; None if it does not exist.

    Raises:
        DamagedError: protocol or shards is missing or not such a number, features are no words.
    """
    if not protocol and not shards:
        return None
    for field, value, most in (
        ("protocol", protocol, MAX_NUMBER),
        ("shards", shards, MAX_SHARDS),
    ):
        if not value or not is_number(value) or not 1 <= int(value) <= most:
            raise DamagedError(
                key,
                f"{field} is {shown(value or None)}, not a number from 1 to {most}",
                fix="run `statebroker repair --shards N` with the number it was made with",
            )
    if int(protocol or 0) != PROTOCOL_VERSION:
        return MadeAs(int(protocol or 0), int(shards or 0))
    words = words_in(features or b"")
    if words is None:
        raise DamagedError(
            key,
            f"features is {shown(features)}, not words in alphabetical order",
            fix="run `statebroker repair --shards N` with the number it was made with",
        )
    return MadeAs(PROTOCOL_VERSION, int(shards or 0), words)
