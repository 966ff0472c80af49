"""The records of a history: one frozen dataclass for each kind of observation.

All times are seconds of the monotonic clock, which all processes of a machine share and which steps
of the wall clock do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import msgpack

from broker.protocol.constants import NO_ID


class ShardPosition(NamedTuple):
    """A position in the history of one shard."""

    shard: int
    epoch: bytes
    offset: int = 0
    id: bytes = NO_ID


@dataclass(frozen=True, slots=True)
class Appended:
    """A producer learned that Redis accepted a chunk.

    Attributes:
        duplicate: Redis had accepted it before; `append` may then be a later number.
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
    """The witness read a batch, which was published before `at`.

    Attributes:
        deltas: number in the header.
        chunks: bytes, as appended; or, where that takes a dictionary, the same without compression.
        originals: as appended, where one differs from those; else empty.
    """

    at: float
    place: ShardPosition
    previous: bytes
    deltas: int
    chunks: tuple[bytes, ...]
    originals: tuple[bytes, ...] = ()

    @property
    def appended(self) -> tuple[bytes, ...]:
        """The chunks as producers sent them and replicas received them."""
        return self.originals or self.chunks


@dataclass(frozen=True, slots=True)
class Headed:
    """The witness read the head of a shard between `at` and `until`."""

    at: float
    until: float
    place: ShardPosition


@dataclass(frozen=True, slots=True)
class Applied:
    """A replica applied a batch.

    Attributes:
        loading: whether it was applied to a full state that was not visible yet.
        loads: number of full states that the replica had read.
        digest: of the chunks.
        deltas: number in the header, the sum of the four fields after it.
    """

    at: float
    replica: str
    place: ShardPosition
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
    """Status, lag and positions that a replica reported at one time."""

    at: float
    replica: str
    status: str
    lag: float
    places: tuple[ShardPosition, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """A digest of the content of one shard of a replica at a position."""

    at: float
    replica: str
    status: str
    place: ShardPosition
    digest: bytes


@dataclass(frozen=True, slots=True)
class Torn:
    """A replica showed only a part of keys that were written together."""

    at: float
    replica: str
    group: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The counters of a producer at one time.

    Attributes:
        incarnations: of its process, by shard.
        reported: lost deltas, as reported by `DataLostError` so far.
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
    """The counters of a replica at one time, between two batches."""

    at: float
    replica: str
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Balanced:
    """The counters of one shard in Redis, read in one atomic step.

    Attributes:
        place: the head.
        accepted: deltas, since the shard's epoch began.
        published: deltas, likewise.
        in_queue: pending deltas, summed over the entries of the queue.
    """

    at: float
    place: ShardPosition
    accepted: int
    published: int
    in_queue: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A value that has a limit."""

    at: float
    what: str
    value: float
    limit: float


@dataclass(frozen=True, slots=True)
class Forgot:
    """From here on the server may have lost accepted data."""

    at: float
    why: str


@dataclass(frozen=True, slots=True)
class Died:
    """A process of this node ended, and its buffer was lost."""

    at: float
    node: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """A producer was fenced by another process with its node name, and stopped.

    Attributes:
        incarnations: its own, by shard; 0 where it never appended.
        message: the text of the error.
    """

    at: float
    node: str
    incarnations: tuple[int, ...]
    message: str


@dataclass(frozen=True, slots=True)
class Final:
    """A digest of the final content of one shard, as `who` holds it."""

    at: float
    who: str
    place: ShardPosition
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
    """Return a digest of the chunks of a batch: bytes, boundaries and order."""
    total = sha256()
    for chunk in chunks:
        total.update(len(chunk).to_bytes(4, "big"))
        total.update(chunk)
    return total.digest()
