"""Values of Redis keys as others may have written them: read as the protocol says, or refused."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from struct import Struct
from typing import Final, NamedTuple

from broker.errors import DamagedError
from broker.protocol.constants import MAX_SHARDS, NO_ID, PROTOCOL_VERSION
from broker.protocol.features import PACKAGES, unknown_in, words_in
from broker.protocol.names import is_name
from broker.protocol.refusal import shown

# Lua reads all numbers as doubles, which are exact up to here.
MAX_NUMBER: Final = 1 << 53
ID_BYTES: Final = len(NO_ID)
# Before a record whose holder is asked whether it lives, with a text of the asking command.
_ASKED: Final = re.compile(rb"^idle [^ ]+ ")
# Epoch, appends, accepted, pending bytes, due, due by count, covered.
_HEAD: Final = Struct(">8s6Q")
# Incarnation, token, last chunk number, deltas, append number, deltas counted, edge, bytes since.
_RECORD: Final = Struct(">Q8s3QI2Q")
# The field of the intake hash with its head; no node has such a name.
INTAKE_HEAD: Final = ":head"
# The field with the numbers of dictionaries.
INTAKE_DICTS: Final = ":dicts"
# An entry of the queue: form, flags, due, append number, deltas; then the node's name.
ENTRY_FORM: Final = 1
_NUMBER: Final = Struct(">I")  # of a dictionary
_ENTRY: Final = Struct(">BBQQI")


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


@dataclass(frozen=True, slots=True)
class IntakeHead:
    """What the intake hash says about a shard.

    Attributes:
        epoch: a copy of that in meta.
        appends: the last append number.
        accepted: deltas ever accepted.
        pending_bytes: of the chunks in the queue.
        due_ms: when something in the queue is due by age; 0: nothing is.
        count_due: append number up to which chunks are due by count.
        covered: a copy of that in meta.
    """

    epoch: bytes
    appends: int
    accepted: int
    pending_bytes: int
    due_ms: int
    count_due: int
    covered: int

    def packed(self) -> bytes:
        """Return the form in which it is stored."""
        return _HEAD.pack(*astuple(self))


def intake_head(head: bytes | None) -> IntakeHead | None:
    """Return the head of an intake hash; None if it is absent, or has to be made anew."""
    if head is None or len(head) != _HEAD.size:
        return None
    found = IntakeHead(*_HEAD.unpack(head))
    numbers = (found.appends, found.accepted, found.pending_bytes)
    return found if max(numbers) <= MAX_NUMBER and found.covered <= found.appends else None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What the intake hash says about a node.

    Attributes:
        incarnation: number of the process that holds the name.
        token: of that process.
        number: of its last accepted chunk.
        deltas: up to that chunk.
        append: append number of the node's last chunk, also of a process before; 0: none.
        count: its deltas since none of its chunks was pending, as of then.
        edge: an append number of the node; `own_bytes` are those of its chunks after it.
        own_bytes: they count for its share of what may be pending until the edge is published.
    """

    incarnation: int
    token: bytes
    number: int
    deltas: int
    append: int = 0
    count: int = 0
    edge: int = 0
    own_bytes: int = 0

    def packed(self) -> bytes:
        """Return the form in which it is stored."""
        return _RECORD.pack(*astuple(self))


def node_record(key: str, node: str, record: bytes) -> NodeRecord:
    """Return the record of a node, asked for or not.

    Raises:
        DamagedError: it has another form.
    """
    bare = _ASKED.sub(b"", record)
    if len(bare) == _RECORD.size:
        found = NodeRecord(*_RECORD.unpack(bare))
        if max(found.incarnation, found.number, found.deltas) <= MAX_NUMBER:
            return found
    raise DamagedError(key, f"the record of node {node} is {shown(record)}", field=node)


def is_asked(record: bytes) -> bool:
    """Whether the holder of a writer's record has to write it again, lest it is forgotten."""
    return _ASKED.match(record) is not None


def worker_record(record: bytes) -> tuple[str, int, str] | None:
    """Return (role, ms when it was last seen, why it is red) of a worker; None if unreadable."""
    role, _, rest = record.partition(b" ")
    seen_at, _, reason = rest.partition(b" ")
    if not role.isalpha() or not role.isascii() or not is_number(seen_at):
        return None
    return role.decode(), int(seen_at), reason.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """What follows a chunk in the queue.

    Attributes:
        due_ms: when the chunk is due by age.
        append: its append number.
        deltas: as its producer said.
        node: that appended it.
    """

    due_ms: int
    append: int
    deltas: int
    node: str

    @property
    def accepted_ms(self) -> int:
        """When it was accepted: append numbers are microseconds."""
        return self.append // 1000


def queue_entry(element: bytes) -> QueueEntry | None:
    """Return the entry that an element of the queue is; None for a chunk, and for anything else."""
    if len(element) <= _ENTRY.size or element[0] != ENTRY_FORM:
        return None
    if (node := node_name(element[_ENTRY.size :])) is None:
        return None
    _, _, due_ms, append, deltas = _ENTRY.unpack_from(element)
    return QueueEntry(due_ms, append, deltas, node)


def node_name(name: bytes) -> str | None:
    """Return the name of a node, None if no node can have it."""
    text = name.decode(errors="replace")
    return text if is_name(text) else None


def dictionaries_in(field: bytes | None) -> tuple[int, ...]:
    """Return the numbers in a field `:dicts`, the newest last; none if it cannot be read."""
    if not field or len(field) % _NUMBER.size:
        return ()
    numbers = tuple(number for (number,) in _NUMBER.iter_unpack(field))
    return numbers if sorted(set(numbers)) == [*numbers] else ()


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
        lacking = [PACKAGES[word] for word in unknown if word in PACKAGES]
        if len(lacking) == len(unknown):
            return (
                f"needs the feature word {', '.join(unknown)}, and the package "
                f"{', '.join(lacking)} is not installed here; install it, or use another namespace"
            )
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
