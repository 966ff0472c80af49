"""One shard as Redis holds it, in memory, and a reference state computed independently.

The server's side is told in the plainest words that keep its promises: appends wait, a drain makes
them a batch with the next offset, a random id and the id before it, pages of the full state are
written one by one. Everything can be set back to an earlier copy, or wiped. `Moment`s keep what
every history that ever was held at each of its positions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple, TypeAlias

from broker.core.fold import decode_chunks, fold
from broker.protocol.cells import cell_of
from broker.protocol.codec import bulk_of, decode_packet, encode_chunk, encode_packet
from broker.protocol.constants import INT_MAX, INT_MIN, NO_ID
from broker.protocol.fields import pack_field, unpack_fields
from broker.protocol.messages import (
    Batch,
    Chunk,
    Head,
    Heartbeat,
    LogEntry,
    Notice,
    Packet,
    Position,
    Run,
)
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET

Delta: TypeAlias = tuple[int, str, Any]

BUCKETS = 3
PAGE_KEYS = 1
EARLIER = 12  # writes that a crash can undo


def apply_delta(values: dict[str, Any], delta: Delta) -> bool:
    """Apply one delta to a dict, independent of `broker.core.fold`; false if refused."""
    op, key, given = delta
    if op == OP_SET:
        values[key] = given
    elif op == OP_DELETE:
        values.pop(key, None)
    else:
        base = values.get(key, 0)
        if isinstance(base, bool) or not isinstance(base, int | float):
            return False
        total = base + given
        if isinstance(total, int) and (total < INT_MIN or total > INT_MAX):
            return False
        values[key] = total
    return True


def runs_of(deltas: Iterable[Delta]) -> list[Run]:
    """Put deltas into columns, as a producer does."""
    runs: list[Run] = []
    for op, key, value in deltas:
        if not runs or runs[-1].op != op:
            runs.append(Run(op, [], None if op == OP_DELETE else []))
        runs[-1].keys.append(key)
        column = runs[-1].values
        if column is not None:
            column.append(cell_of(value)[0] if op == OP_SET else value)
    return runs


@dataclass(frozen=True)
class Moment:
    """The content of a history at one position.

    Attributes:
        values: the truth.
        covered: append number up to which it holds everything.
        parent: the position before.
        lives: lives of the server that had this position in their history.
        ended: life -> when the next batch took its place there.
    """

    values: dict[str, Any]
    covered: int
    parent: Position | None
    lives: set[int]
    ended: dict[int, float] = field(default_factory=dict)

    def was_all_at(self, time: float, accepted: Mapping[int, Sequence[float]]) -> bool:
        """Whether this was all that was accepted before this time, in a history that had it.

        Args:
            time: of the server's clock.
            accepted: life -> when each chunk of it was accepted.
        """
        return any(
            self.ended.get(life, inf) >= time
            and all(at >= time for at in accepted[life][self.covered :])
            for life in self.lives
        )


@dataclass
class Stored:
    """What Redis has: everything that a crash can set back."""

    epoch: bytes = b""
    offset: int = 0
    id: bytes = NO_ID
    previous: bytes = NO_ID
    covered: int = 0
    published_at: float = 0.0
    snapshot: tuple[int, bytes] = (0, NO_ID)
    pending: list[tuple[bytes, list[Delta], int]] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    log: dict[int, LogEntry] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)

    def copied(self) -> Stored:
        """Return a copy that later writes do not reach."""
        other = copy(self)
        other.pending, other.log, other.state = [*self.pending], {**self.log}, {**self.state}
        other.accepted = [*self.accepted]
        return other


class Message(NamedTuple):
    """What a subscriber gets: a packet, or on the other channel a bulk chunk."""

    data: bytes
    is_bulk: bool = False


class History:
    """A server with one shard, and all that it ever held.

    Attributes:
        now: the server's clock, in seconds.
        life: goes up with every wipe and every roll back.
        run: goes up when the server's process is another one, as INFO shows it.
        channels: what is on its way to each subscriber, by its name.
        moments: what each position of every history holds.
        accepted: life -> when each chunk of it was accepted, those before it included.
    """

    def __init__(self, shard: int = 0) -> None:
        self.shard = shard
        self.now = 1000.0
        self.life = 0
        self.run = 0
        self.stored = Stored()
        self.accepted: dict[int, list[float]] = {0: self.stored.accepted}
        self.channels: dict[str, list[Message]] = {}
        self.moments: dict[Position, Moment] = {Position(): Moment({}, 0, None, set())}
        self._earlier: deque[Stored] = deque([Stored()], EARLIER)
        self._names = 0
        self._numbers = 0

    def _name(self) -> bytes:
        self._names += 1
        return self._names.to_bytes(8, "big")

    @property
    def head(self) -> Position:
        """The position of the last batch."""
        return Position(self.stored.epoch, self.stored.offset, self.stored.id)

    def written(self) -> None:
        """Note that something was written, for `roll_back`."""
        self._earlier.append(self.stored.copied())

    # -- writing ----------------------------------------------------------------------------------

    def _begin_epoch(self) -> None:
        if not self.stored.epoch:
            self.stored.epoch = self._name()
            self.moments[self.head] = Moment({}, 0, None, {self.life})

    def append(self, node: str, deltas: Sequence[Delta], *, broken: bool = False) -> None:
        """Accept a chunk; a broken one names an operation that does not exist."""
        self._begin_epoch()
        self._numbers += 1
        runs = runs_of(deltas)
        if broken:
            runs.append(Run(9, ["a"], [1]))
        data = encode_chunk(Chunk(node, 1, self._numbers, 0, runs))
        self.stored.pending.append((data, [] if broken else [*deltas], len(deltas)))
        self.stored.accepted.append(self.now)
        self.written()

    def drain(self, chunks: int) -> None:
        """Publish up to so many pending chunks as one batch, and log it."""
        stored = self.stored
        taken, stored.pending = stored.pending[:chunks], stored.pending[chunks:]
        before = self.head
        truth = dict(self.moments[before].values)
        for _, deltas, _ in taken:
            for delta in deltas:
                apply_delta(truth, delta)
        stored.previous, stored.id = stored.id, self._name()
        stored.offset += 1
        stored.covered += len(taken)
        self.moments[self.head] = Moment(truth, stored.covered, before, {self.life})
        self.moments[before].ended[self.life] = self.now
        batch = Batch(
            *self._prefix(),
            trigger=1,
            deltas=sum(promised for *_, promised in taken),
            chunks=[data for data, *_ in taken],
            pending_since_ms=self._pending_since_ms(),
        )
        stored.log[stored.offset] = LogEntry(encode_packet(batch), bulk_of(batch))
        self.publish(batch)
        self.written()

    def heartbeat(self) -> None:
        """Tell the head."""
        self._begin_epoch()
        self.publish(Heartbeat(*self._prefix(), pending_since_ms=self._pending_since_ms()))

    def _pending_since_ms(self) -> int | None:
        stored = self.stored
        return round(stored.accepted[stored.covered] * 1000) if stored.pending else None

    def _prefix(self) -> tuple[int, bytes, int, bytes, bytes, int, int]:
        stored = self.stored
        return (
            *(self.shard, stored.epoch, stored.offset, stored.id, stored.previous),
            *(round(self.now * 1000), stored.covered),
        )

    def publish(self, packet: Packet) -> None:
        """Send a packet to all who are subscribed now."""
        if not isinstance(packet, Notice):
            self.stored.published_at = self.now
        bulk = bulk_of(packet) if isinstance(packet, Batch) else []
        messages = [*(Message(chunk, is_bulk=True) for chunk in bulk)]
        messages.append(Message(encode_packet(packet)))
        for channel in self.channels.values():
            channel.extend(messages)

    # -- accidents --------------------------------------------------------------------------------

    def wipe(self) -> None:
        """Lose everything; the next writer begins another epoch."""
        self.life += 1
        self.stored = Stored()
        self.accepted[self.life] = self.stored.accepted
        self.written()

    def roll_back(self, writes: int) -> None:
        """Lose the last writes, as after a crash or a failover, and go on from there."""
        self.life += 1
        self.run += 1
        while writes > 0 and len(self._earlier) > 1:
            self._earlier.pop()
            writes -= 1
        self.stored = self._earlier[-1].copied()
        self.accepted[self.life] = self.stored.accepted
        position: Position | None = self.head
        while position is not None:
            self.moments[position].lives.add(self.life)
            position = self.moments[position].parent

    # -- reading ----------------------------------------------------------------------------------

    def read_head(self) -> Head | None:
        """Return what the meta hash says."""
        stored = self.stored
        if not stored.epoch:
            return None
        return Head(
            position=self.head,
            snapshot=Position(stored.epoch, *stored.snapshot),
            covered=stored.covered,
            quiet_s=self.now - stored.published_at,
            time_s=self.now,
            # All that is known there is when the last published chunk was accepted.
            pending_since_s=[-inf, *stored.accepted][stored.covered] if stored.pending else None,
        )

    def read_log(self, after: int, count: int) -> tuple[Head | None, list[LogEntry]]:
        """Return head and log of one moment."""
        offsets = sorted(offset for offset in self.stored.log if offset > after)
        return self.read_head(), [self.stored.log[offset] for offset in offsets[:count]]

    def read_bucket(self, bucket: int) -> tuple[list[bytes], list[bytes]]:
        """Return one page of the full state; a key is always in the same one, as with HSCAN."""
        page = {
            key.encode(): packed
            for key, packed in self.stored.state.items()
            if ord(key[-1]) % BUCKETS == bucket
        }
        return list(page), list(page.values())


class SnapshotRun:
    """One run of the scheduler's job, in the steps of `workers.snapshot`: fold, pages, commit."""

    def __init__(self, history: History) -> None:
        self._history = history
        stored = history.stored
        self._position = Position(stored.epoch, *stored.snapshot)
        self._previous = NO_ID
        self._values: dict[str, Any] = {}
        self._floors: dict[str, int] = {}
        self._touched: dict[str, None] = {}
        for offset in range(self._position.offset + 1, stored.offset + 1):
            self._fold(stored.log[offset])
        names = list(self._touched)
        self.pages = [names[n : n + PAGE_KEYS] for n in range(0, len(names), PAGE_KEYS)]

    def _fold(self, entry: LogEntry) -> None:
        batch = decode_packet(entry.packet, entry.bulk)
        assert isinstance(batch, Batch)
        assert batch.previous_id == self._position.batch_id
        chunks, _ = decode_chunks(batch)
        runs = [run for chunk in chunks for run in chunk.runs]
        added = {key for run in runs if run.op == OP_INCREMENT for key in run.keys}
        for key in sorted(added - self._touched.keys()):
            if (found := self._history.stored.state.get(key)) is not None:
                (self._floors[key],), (self._values[key],) = unpack_fields([key.encode()], [found])
        fold(self._values, batch, chunks, self._floors)
        self._touched |= dict.fromkeys(key for run in runs for key in run.keys)
        self._previous, self._position = self._position.batch_id, batch.position

    def write_page(self) -> None:
        """Write the next page of net changes."""
        state = self._history.stored.state
        for key in self.pages.pop(0):
            if key in self._values:
                state[key] = pack_field(key, self._position.offset, self._values[key])
            else:
                state.pop(key, None)
        self._history.written()

    def commit(self, cut: int) -> None:
        """Move the snapshot's position, and cut the log up to an offset that it holds."""
        stored = self._history.stored
        stored.snapshot = (self._position.offset, self._position.batch_id)
        for offset in [one for one in stored.log if one <= min(cut, self._position.offset)]:
            del stored.log[offset]
        self._history.publish(
            Notice(
                *(self._history.shard, stored.epoch, *stored.snapshot, self._previous),
                *(round(self._history.now * 1000), stored.covered),
            )
        )
        self._history.written()
