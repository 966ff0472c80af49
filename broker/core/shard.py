"""One shard of a replica as a state machine: packets and read pages in, effects out. No I/O.

Invariants:
1. `values` is exactly the fold of the history up to `position`, at all times. A load is built
   separately and replaces `values` in one step, when it has caught up with the head.
2. A batch is applied only if it names the batch before it, `position.batch_id`. Offsets alone
   cannot distinguish a rewritten history from the one that is held.
3. A packet that fits nowhere makes the shard read the server. It never guesses.
4. A proof has the age of the moment at which it was true, not of its arrival: a packet that waited
   in a queue proves little. Publication times are those of the Redis clock. `_clock` is an upper
   bound of its difference from the local clock, from the replies to reads and from every packet.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from broker.core.bulk_chunks import BulkChunks
from broker.core.effects import (
    ChangesVisible,
    Effect,
    FullStateWritten,
    KeysRepaired,
    LoadState,
    PhaseChanged,
    Read,
    ReadLog,
    Reconnect,
    StopReading,
)
from broker.core.fold import Tally, decode_chunks, fold
from broker.core.replay import LogReplay, Progress
from broker.core.tables import new_tables
from broker.core.transitions import TRANSITIONS, Event
from broker.errors import DecodeError
from broker.model import Change, Status
from broker.protocol.codec import (
    decode_keys,
    decode_packet,
    pack_value,
    unpack_fields,
)
from broker.protocol.messages import Batch, Head, Heartbeat, LogEntry, Notice, Packet, Position
from broker.protocol.operations import Operation

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

RECENT_IDS = 4096
KEPT_PACKETS_BYTES = 32 << 20
LOADS_BEFORE_GIVING_UP = 30


@dataclass(slots=True)
class _Load:
    """A full state on its way in, not visible yet."""

    position: Position
    tables: ShardTables | None
    values: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, int] = field(default_factory=dict)
    newest: int = 0


class ShardState:
    """One shard of a replica: its content, its position, and how current it is proved to be.

    Args:
        shard: number of the shard.
        staleness_bound: seconds without proof after which the shard is no longer live.

    Every input returns the effects that the caller has to carry out, see `broker.core.effects`.
    `watched` says whether there are readers of changes; if not, whole columns are applied at once.
    """

    def __init__(self, shard: int, staleness_bound: float) -> None:
        self.shard = shard
        self.staleness_bound = staleness_bound
        self.phase = Status.CONNECTING
        self.moved_by: Event | None = None
        self.values: dict[str, Any] = {}
        self.tables = new_tables()
        self.position = Position()
        self.covered = 0
        self.proved_at: float | None = None
        self.counts: Counter[str] = Counter()
        self.tally = Tally()
        self._effects: list[Effect] = []
        self._request: Read | None = None
        self._watched = False
        self._subscribed = False
        self._arrived_at = 0.0
        self._clock = float("inf")
        self._load: _Load | None = None
        self._loads_in_a_row = 0
        self._kept: deque[tuple[Batch, int]] = deque()
        self._kept_bytes = 0
        self._ids: dict[int, bytes] = {}
        self._bulk = BulkChunks()

    @property
    def reading_from(self) -> Position:
        """The position after which the log has to be read."""
        return self._load.position if self._load else self.position

    @property
    def loads_in_a_row(self) -> int:
        """Full loads since a packet last followed the position."""
        return self._loads_in_a_row

    def lag(self, now: float) -> float:
        """Seconds since the moment for which the content is proved to be the whole history.

        inf if it never was.
        """
        return now - self.proved_at if self.proved_at is not None else float("inf")

    def overdue(self, now: float) -> float:
        """Seconds by which proof is older than the staleness bound; below 0 while it is not."""
        return self.lag(now) - self.staleness_bound

    def status(self, now: float) -> Status:
        """The status at this moment, whether or not `tick` was called in time."""
        is_overdue = self.overdue(now) > 0
        # The phase is read last: another thread may apply a proof between the two reads.
        phase = self.phase
        return Status.STALE if phase is Status.LIVE and is_overdue else phase

    # -- the subscription -------------------------------------------------------------------------

    def subscribed(self, now: float) -> Sequence[Effect]:
        """The server confirmed the subscription; packets sent before that may be missing."""
        self._notice_silence(now)
        self._subscribed = True
        self._arrived_at = now
        self._drop_kept()
        self._enter(Event.SUBSCRIBED)
        if self._load is not None:
            # The pages read so far may come from another server than the next ones.
            self._load = self._request = None
            self._enter(Event.CUT)
        return self._answer()

    def disconnected(self) -> Sequence[Effect]:
        """The subscription's connection broke."""
        self._subscribed = False
        self._drop_kept()
        self._enter(Event.LOST)
        return self._answer()

    def tick(self, now: float) -> Sequence[Effect]:
        """Become stale if the proof is too old, and `Reconnect` if nothing arrived for as long.

        Packets that prove nothing (repeated ones, notices) must not keep the shard live. While it
        is live there is no `Reconnect`: the reason of the change would be "lost", not "silence".
        """
        self._notice_silence(now)
        if self.phase is not Status.LIVE and now - self._arrived_at > self.staleness_bound:
            self._effects.append(Reconnect())
        return self._answer()

    def _notice_silence(self, now: float) -> None:
        if self.status(now) is not self.phase:
            self._enter(Event.SILENCE)

    def close(self) -> Sequence[Effect]:
        """Stop; `values` stays readable."""
        self._enter(Event.CLOSE)
        return self._answer()

    def give_up(self) -> Sequence[Effect]:
        """Fail; the content must not be trusted any more."""
        self._enter(Event.GIVE_UP)
        return self._answer()

    def bulk(self, data: bytes) -> None:
        """Keep one chunk from the channel of bulk chunks; the packet of its batch comes next."""
        self.counts["bytes"] += len(data)
        self._bulk.add(data)

    def packet(self, data: bytes, now: float, *, watched: bool = False) -> Sequence[Effect]:
        """Apply, keep or count one packet from the channel; count one that cannot be decoded."""
        self._watched = watched
        self.counts["packets"] += 1
        self.counts["bytes"] += len(data)
        bulk = self._bulk.take()
        try:
            packet = decode_packet(data, bulk)
        except DecodeError:
            self.counts["packets_unreadable"] += 1
            return ()
        if packet.shard != self.shard:
            self.counts["packets_unreadable"] += 1
            return ()
        # A reader may have seen `stale` before this packet: the status changes must include it.
        self._notice_silence(now)
        self._arrived_at = now
        if self.phase in (Status.LOADING, Status.CATCHING_UP):
            self._keep(packet, len(data) + sum(map(len, bulk)))
        elif self.phase in (Status.LIVE, Status.STALE):
            self._take(packet, now)
        return self._answer()

    def _take(self, packet: Packet, now: float) -> Event | None:
        if isinstance(packet, Notice) and packet.epoch == self.position.epoch:
            self._effects.append(FullStateWritten(packet.offset))
            return None
        event = self._classify(packet)
        if event is Event.NEXT and isinstance(packet, Batch):
            self._apply(packet, self.values, None)
        if event in (Event.NEXT, Event.CURRENT):
            self.proved_at = self._published_at(packet, now)
            self._loads_in_a_row = 0
            if self.lag(now) > self.staleness_bound:
                event = Event.LATE
        self._enter(event)
        return event

    def _published_at(self, packet: Packet, now: float) -> float:
        """When a packet was published, by the local clock; never later than the true time."""
        time_s = packet.time_ms / 1000
        self._clock = min(self._clock, now - time_s)
        return time_s + self._clock

    def _classify(self, packet: Packet) -> Event:  # noqa: PLR0911 - one return a rule
        mine = self.position
        if packet.epoch != mine.epoch:
            return Event.FORK
        if packet.offset == mine.offset:
            if packet.id != mine.batch_id:
                return Event.FORK
            return Event.CURRENT if isinstance(packet, Heartbeat) else Event.DUPLICATE
        if packet.offset < mine.offset:
            known = self._ids.get(packet.offset)
            if isinstance(packet, Heartbeat) or known is None:
                return Event.BEHIND
            return Event.DUPLICATE if known == packet.id else Event.FORK
        if isinstance(packet, Batch) and packet.offset == mine.offset + 1:
            return Event.NEXT if packet.previous_id == mine.batch_id else Event.FORK
        return Event.GAP

    # -- reading the log --------------------------------------------------------------------------

    def log_page(
        self,
        head: Head | None,
        entries: Sequence[LogEntry],
        asked_at: float,
        *,
        watched: bool = False,
    ) -> Sequence[Effect]:
        """Apply the result of one atomic read of head and log, the log after `reading_from`.

        Args:
            head: the shard's meta hash; None if the shard does not exist (yet, or any more).
            entries: batches in the order of the log; may stop before the head.
            asked_at: monotonic seconds when the read was sent; its result is true of that moment
                or a later one.
            watched: whether there are readers of changes.
        """
        self._watched = watched
        # Without a subscription it could catch up, but not stay current.
        if self.phase is Status.CATCHING_UP and self._subscribed:
            self._request = None
            self._follow_log(head, entries, asked_at)
        return self._answer()

    def _follow_log(self, head: Head | None, entries: Sequence[LogEntry], asked_at: float) -> None:
        mine = self.reading_from
        if head is None or head.position.epoch != mine.epoch or head.position.offset < mine.offset:
            self._enter(Event.CUT)
            return
        values, floors = (
            (self._load.values, self._load.floors) if self._load else (self.values, None)
        )
        replay = LogReplay(mine)
        for entry in entries:
            try:
                batch = replay.take(entry)
            except DecodeError:
                self._enter(Event.CUT)
                return
            self._apply(batch, values, floors)
        # If a page does not move the position, the log begins beyond it.
        progress = replay.progress(head.position, is_at_end=not entries)
        is_ahead = self._load is not None and self._load.newest > head.position.offset
        if progress is Progress.MOVED or (progress is Progress.DONE and is_ahead):
            self._enter(Event.CUT)
        elif progress is Progress.DONE:
            self._caught_up(head, asked_at)

    def _caught_up(self, head: Head, asked_at: float) -> None:
        if self._load is not None:
            self._show(self._load)
            self._load = None
        self.proved_at = asked_at
        # The Redis clock may have been set, or be another server's: discard the bound of packets.
        self._clock = asked_at - head.time_s
        # Not the larger of the two: after a roll-back the head covers less.
        self.covered = head.covered
        quiet = head.quiet_s > self.staleness_bound
        self._enter(Event.QUIET if quiet else Event.CAUGHT_UP)
        kept = [batch for batch, _ in self._kept if batch.offset > self.position.offset]
        self._drop_kept()
        for batch in kept:
            # If one of them is missing, the log is read again; it has them all.
            if self._take(batch, asked_at) is not Event.NEXT:
                break

    # -- reading the full state -------------------------------------------------------------------

    def begin_load(self, head: Head) -> Sequence[Effect]:
        """Start a load: the full-state hash will be read next, page by page."""
        self.counts["loads"] += 1
        self._loads_in_a_row += 1
        if self._loads_in_a_row > LOADS_BEFORE_GIVING_UP:
            self._enter(Event.GIVE_UP)
        else:
            self._load = _Load(head.snapshot, new_tables())
        return self._answer()

    def load_page(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> None:
        """Add one page of the full-state hash to the load.

        Raises:
            DecodeError: a key or field is damaged.
        """
        load = self._load
        if load is None or not fields:
            return
        offsets, values = unpack_fields(fields)
        names = decode_keys(keys)
        load.values.update(zip(names, values, strict=True))
        newest = max(offsets)
        if newest > load.position.offset:
            # A snapshot is being written right now: these keys are ahead of the position.
            load.newest = max(load.newest, newest)
            load.floors.update(
                (name, offset)
                for name, offset in zip(names, offsets, strict=True)
                if offset > load.position.offset
            )

    def load_tables(self, fields: Mapping[str, bytes]) -> None:
        """Add the tables hash to the load.

        Raises:
            DecodeError: a field is damaged.
        """
        load = self._load
        if load is not None and load.tables is not None:
            load.tables = type(load.tables).loaded(fields, load.position.offset)
            load.newest = max(load.newest, load.tables.newest)

    def end_load(self) -> Sequence[Effect]:
        """End the load's pages; the log is read next."""
        if self._load is not None:
            self._request = None
            self._enter(Event.LOADED)
        return self._answer()

    # -- self-check --------------------------------------------------------------------------

    def repair(
        self, right: Mapping[str, Any], among: Iterable[str], *, watched: bool = False
    ) -> Sequence[Effect]:
        """Correct keys to the history at `position`; `KeysRepaired` if any differed.

        Args:
            right: key -> value; keys of `among` that it lacks do not exist.
            among: the keys to compare, besides those of `right`.
            watched: whether there are readers of changes.
        """
        self._watched = watched
        changes = []
        for key in {*among, *right}:
            is_held = key in self.values
            if key in right:
                if not is_held or pack_value(self.values[key]) != pack_value(right[key]):
                    self.values[key] = right[key]
                    changes.append(self._repaired("set", key, right[key]))
            elif is_held:
                del self.values[key]
                changes.append(self._repaired("delete", key, None))
        self.counts["keys_repaired"] += len(changes)
        if changes:
            self._effects.append(KeysRepaired([change.key for change in changes]))
            self._show_changes(changes)
        return self._answer()

    def _repaired(self, operation: Operation, key: str, value: Any) -> Change:
        return Change(key, value, operation, self.position, self.shard, resync=True)

    # -- shared -----------------------------------------------------------------------------------

    def _apply(self, batch: Batch, values: dict[str, Any], floors: dict[str, int] | None) -> None:
        position = batch.position
        chunks, bad = decode_chunks(batch)
        self.counts["chunks_skipped"] += len(bad)
        self.counts["batches"] += 1
        changes: list[Change] = []

        def observe(
            operation: Operation, keys: Iterable[str], values: Iterable[Any], stamps: Iterable[int]
        ) -> None:
            same = repeat(operation), repeat(position), repeat(self.shard)
            columns = zip(keys, values, *same, stamps, repeat(False))  # noqa: FBT003 - a column
            changes.extend(map(_change, columns))

        load = self._load if self._load is not None and values is self._load.values else None
        watched = self._watched and load is None
        self.tally.add(
            fold(
                *(values, batch, chunks, floors, observe if watched else None),
                tables=self.tables if load is None else load.tables,
                note_fault=self._fault,
            )
        )
        self._remember(batch)
        if load is not None:
            load.position = position
        else:
            self.position = position
            self.covered = batch.covered
        self._show_changes(changes)

    def _fault(self, _fault: str) -> None:
        self.counts["chunks_skipped"] += 1

    def _remember(self, batch: Batch) -> None:
        self._ids[batch.offset] = batch.id
        self._ids.pop(batch.offset - RECENT_IDS, None)

    def _show(self, load: _Load) -> None:
        """Replace the content with a finished load; report the keys that differ."""
        before, self.values = self.values, load.values
        self.tables = load.tables
        self.position = load.position
        if self._watched:
            self._show_changes(_differences(before, load.values, load.position, self.shard))

    def _show_changes(self, changes: list[Change]) -> None:
        if changes and self._watched:
            self._effects.append(ChangesVisible(changes))

    def _enter(self, event: Event) -> None:
        self.counts[event] += 1
        before, self.phase = self.phase, TRANSITIONS[self.phase][event]
        if self.phase is Status.LOADING and before is not Status.LOADING:
            # Ids of another history must not make one of its batches look like a duplicate.
            self._load = None
            self._ids.clear()
        if self.phase is not before:
            self.moved_by = event
            self._effects.append(PhaseChanged(before, self.phase, event))

    def _answer(self) -> Sequence[Effect]:
        """Return the effects of one input, including the next read."""
        self._request_read()
        effects = self._effects
        if not effects:
            return ()
        self._effects = []
        return effects

    def _request_read(self) -> None:
        """Request the read that the phase needs, once; none while packets could be missed."""
        if not self._subscribed or self.phase not in (Status.LOADING, Status.CATCHING_UP):
            if self._request is not None:
                self._request = None
                self._effects.append(StopReading())
        elif self.phase is Status.LOADING:
            if not isinstance(self._request, LoadState):
                self._request = LoadState(self._loads_in_a_row)
                self._effects.append(self._request)
        elif not isinstance(self._request, ReadLog):
            self._request = ReadLog(self.reading_from)
            self._effects.append(self._request)

    def _keep(self, packet: Packet, size: int) -> None:
        """Keep a batch until a read ends; if too many, drop the oldest: the log has them."""
        if not isinstance(packet, Batch) or packet.offset <= self.reading_from.offset:
            return
        self._kept.append((packet, size))
        self._kept_bytes += size
        while self._kept_bytes > KEPT_PACKETS_BYTES:
            self._kept_bytes -= self._kept.popleft()[1]

    def _drop_kept(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0


# The n-th field of the tuple is the n-th of `Change`; without a step of Python for each delta.
_change: Callable[[Iterable[Any]], Change] = partial(tuple.__new__, Change)


def _differences(
    before: dict[str, Any], after: dict[str, Any], position: Position, shard: int
) -> list[Change]:
    """What changed between two states, as changes marked `resync`."""
    gone = [
        Change(key, None, "delete", position, shard, resync=True)
        for key in before
        if key not in after
    ]
    # Compared as bytes: 1, 1.0 and True are equal to Python but not to a reader.
    absent = object()
    return gone + [
        Change(key, value, "set", position, shard, resync=True)
        for key, value in after.items()
        if (old := before.get(key, absent)) is absent or pack_value(old) != pack_value(value)
    ]
