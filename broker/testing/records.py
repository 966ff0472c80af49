"""What a history consists of: one frozen dataclass for each thing that a process can witness.

All times are seconds of the machine's monotonic clock, which all its processes share and which no
wall-clock step moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack

from broker.protocol.constants import NO_ID


class Place(NamedTuple):
    """A position of one shard."""

    shard: int
    epoch: bytes
    offset: int = 0
    id: bytes = NO_ID


@dataclass(frozen=True, slots=True)
class Appended:
    """A producer heard that Redis accepted a chunk.

    Attributes:
        duplicate: Redis had it before; `append` may then be a later number.
    """

    at: float
    node: str
    incarnation: int
    shard: int
    number: int
    deltas: int
    digest: bytes
    append: int
    epoch: bytes
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Logged:
    """The witness read a batch from the log; at `at` it had been published for certain.

    Attributes:
        deltas: as many as the header says.
        chunks: bytes, as they were appended.
    """

    at: float
    place: Place
    previous: bytes
    deltas: int
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Headed:
    """The witness read the head of a shard, some time between `at` and `until`."""

    at: float
    until: float
    place: Place


@dataclass(frozen=True, slots=True)
class Applied:
    """A replica applied a batch.

    Attributes:
        loading: to a full state that was not visible yet.
        loads: how many full states the replica had read by then.
        digest: of the chunks.
        deltas: of the header; the four numbers behind it say what became of them.
    """

    at: float
    replica: str
    place: Place
    previous: bytes
    loading: bool
    loads: int
    digest: bytes
    deltas: int
    applied: int
    superseded: int
    refused: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a replica said of itself at one moment."""

    at: float
    replica: str
    status: str
    lag: float
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """The whole content of one shard that a replica showed at a position."""

    at: float
    replica: str
    status: str
    place: Place
    digest: bytes


@dataclass(frozen=True, slots=True)
class Torn:
    """A replica showed parts of what was written together."""

    at: float
    replica: str
    group: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The counters of a producer at one moment.

    Attributes:
        incarnations: of its process, in the order of the shards.
        reported: deltas lost, as told by `DataLostError` so far.
        keeps: seconds for which it keeps accepted chunks.
        final: the producer was alive and flushed when the run ended.
        called: deltas of the calls that returned without an error, counted by the caller.
    """

    at: float
    node: str
    incarnations: tuple[int, ...]
    counters: Mapping[str, int]
    reported: int
    keeps: float
    final: bool = False
    called: int = 0


@dataclass(frozen=True, slots=True)
class Tallied:
    """The counters of a replica at one moment, between two batches."""

    at: float
    replica: str
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Balanced:
    """The counters of one shard as Redis held them at one moment, all read in one step.

    Attributes:
        place: the head.
        accepted: deltas, since the shard's epoch began.
        published: deltas, likewise.
        by_node: deltas that wait, added up over the counters of the nodes.
        in_order: deltas that wait, added up over the entries of the order list.
    """

    at: float
    place: Place
    accepted: int
    published: int
    by_node: int
    in_order: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Something that has a bound."""

    at: float
    what: str
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Forgot:
    """From here on the server may have held less than it had accepted."""

    at: float
    why: str


@dataclass(frozen=True, slots=True)
class Died:
    """A process of this node ended between these times, its buffer with it."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """A producer heard that another process took its node name, and stopped.

    Attributes:
        incarnations: its own, in the order of the shards; 0 where it never appended.
        told: the words of the error.
    """

    at: float
    node: str
    incarnations: tuple[int, ...]
    told: str


@dataclass(frozen=True, slots=True)
class Final:
    """The content of one shard that somebody held in the end."""

    at: float
    who: str
    place: Place
    digest: bytes


Record = (
    Appended
    | Logged
    | Headed
    | Applied
    | Seen
    | Content
    | Torn
    | Counted
    | Tallied
    | Balanced
    | Measured
    | Forgot
    | Died
    | Fenced
    | Final
)


def digest_of(content: Mapping[str, Any]) -> bytes:
    """Return a digest of a state, the same for equal states whatever the order of their keys."""
    total = sha256()
    for key in sorted(content):
        total.update(msgpack.packb([key, content[key]], datetime=True))
    return total.digest()


def digest_of_chunks(chunks: tuple[bytes, ...] | list[bytes]) -> bytes:
    """Return a digest of a batch's chunks: their bytes, their borders and their order."""
    total = sha256()
    for chunk in chunks:
        total.update(len(chunk).to_bytes(4, "big"))
        total.update(chunk)
    return total.digest()
