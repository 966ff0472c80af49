"""One shard of a replica as a state machine: packets and read pages in, effects out. No I/O.

Invariants:
1. `content` is exactly the fold of the history up to its position, at all times. A load is built
   separately and replaces it in one step, when it has caught up with the head.
2. A batch is applied only if it names the batch before it, `position.batch_id`.
3. A packet that fits nowhere makes the shard read the server. It never guesses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from broker.core.bulk_chunks import BulkChunks
from broker.core.changes import ChangeColumns, differences, observer, repairs
from broker.core.content import Content
from broker.core.effects import (
    ChangesVisible,
    DeltasRefused,
    Effect,
    ForeignHistory,
    FullStateWritten,
    KeysRepaired,
    LoadAltered,
    LoadState,
    PhaseChanged,
    Read,
    ReadLog,
    Reconnect,
    StopReading,
)
from broker.core.fold import decode_chunks
from broker.core.foreign import ForeignHistories
from broker.core.kept_batches import KeptBatches
from broker.core.recent_ids import RecentIds
from broker.core.recent_writers import RecentWriters
from broker.core.replay import LogReplay, Progress
from broker.core.shard_view import ShardView
from broker.core.transitions import TRANSITIONS, Event
from broker.errors import DecodeError
from broker.model import Status
from broker.protocol.codec import decode_packet
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Batch, Head, Heartbeat, LogEntry, Notice, Packet, Position
from broker.protocol.refusal import shown

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables
    from broker.protocol.digest import Digest

LOADS_BEFORE_GIVING_UP = 30
# What a batch is that was applied and needs no further read.
_APPLIED = (Event.NEXT, Event.UNPUBLISHED)


class ShardState(ShardView):
    """One shard of a replica: its inputs, which change what `ShardView` shows.

    Every input returns the effects that the caller has to carry out, see `broker.core.effects`.
    `watched` says whether there are readers of changes; if not, whole columns are applied at once.

    Args:
        shard: number of the shard.
        staleness_bound: seconds without proof after which the shard is no longer live.
        frames: opens compressed chunks; None: the namespace lacks the word `compress`.
    """

    def __init__(
        self, shard: int, staleness_bound: float, frames: FrameReader | None = None
    ) -> None:
        super().__init__(shard, staleness_bound)
        self._frames = frames
        self._effects: list[Effect] = []
        self._request: Read | None = None
        self._watched = False
        self._subscribed = False
        self._load: Content | None = None
        self._loads_in_a_row = 0
        self._kept = KeptBatches()
        self._recent = RecentIds()
        self._writers = RecentWriters()
        self._bulk = BulkChunks()
        self._foreign = ForeignHistories()
        self._altered: frozenset[int] = frozenset()

    @property
    def reading_from(self) -> Position:
        """The position after which the log has to be read."""
        return (self._load or self.content).position

    @property
    def loads_in_a_row(self) -> int:
        """Full loads since a packet last followed the position."""
        return self._loads_in_a_row

    # -- the subscription -------------------------------------------------------------------------

    def subscribed(self, now: float) -> Sequence[Effect]:
        """The server confirmed the subscription; packets sent before that may be missing."""
        self._notice_silence(now)
        self._subscribed = True
        self._arrived_at = now
        self._kept.take()
        self._foreign.clear()
        self._enter(Event.SUBSCRIBED)
        if self._load is not None:
            # The pages read so far may come from another server than the next ones.
            self._load = self._request = None
            self._enter(Event.CUT)
        return self._answer()

    def disconnected(self) -> Sequence[Effect]:
        """The subscription's connection broke."""
        self._subscribed = False
        self._kept.take()
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
            self._enter(self.why_overdue(now))

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
        self.counts.bytes_received += len(data)
        self._bulk.add(data)

    def packet(self, data: bytes, now: float, *, watched: bool = False) -> Sequence[Effect]:
        """Apply, keep or count one packet from the channel; count one that cannot be decoded."""
        self._watched = watched
        self.counts.packets += 1
        self.counts.bytes_received += len(data)
        bulk = self._bulk.take()
        try:
            packet = decode_packet(data, bulk)
        except DecodeError:
            self.counts.packets_unreadable += 1
            return ()
        if packet.shard != self.shard:
            self.counts.packets_unreadable += 1
            return ()
        # A tuple: a union would be made anew for each packet, which costs more.
        if isinstance(packet, (Batch, Heartbeat)):
            self.doubts.note_rhythm(packet)
        if packet.epoch in self._foreign:
            # It proves nothing, not even that this shard's packets arrive.
            self.counts.packets_foreign += 1
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
        event = self._recent.classify(packet, self.position)
        if packet.epoch != self.position.epoch:
            self._foreign.suspect(packet.epoch)
        if event is Event.NEXT and isinstance(packet, Batch):
            if self._frames is not None and self._frames.lacks_for(packet.chunks):
                # It is read from the log, with the dictionary that it needs.
                self._enter(Event.LATE)
                return Event.LATE
            self._apply(packet, self.content)
        if event in (Event.NEXT, Event.CURRENT):
            since_ms = packet.pending_since_ms if isinstance(packet, (Batch, Heartbeat)) else None
            self.freshness.take_packet(packet.time_ms, now, since_ms)
            self._loads_in_a_row = 0
            self.trouble = ""
            if now - self.freshness.published_at > self.staleness_bound:
                event = Event.LATE
            elif self.overdue(now) > 0:
                event = Event.UNPUBLISHED
        self._enter(event)
        return event

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
        content = self._load or self.content
        mine = content.position
        if head is None or head.position.epoch != mine.epoch or head.position.offset < mine.offset:
            self._enter(Event.CUT)
            return
        replay = LogReplay(mine)
        for entry in entries:
            try:
                batch = replay.take(entry)
            except DecodeError:
                self._enter(Event.CUT)
                return
            self._apply(batch, content)
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
        self.trouble = ""
        self.freshness.take_read(head.time_s, asked_at, head.pending_since_s)
        self.doubts.note_settings(head)
        # Not the larger of the two: after a roll-back the head covers less.
        self.content.covered = head.covered
        if head.quiet_s > self.staleness_bound:
            self._enter(Event.QUIET)
        else:
            self._enter(Event.UNPUBLISHED if self.overdue(asked_at) > 0 else Event.CAUGHT_UP)
        if (foreign := self._foreign.own(head.position.epoch)) is not None:
            self._effects.append(ForeignHistory(foreign))
        first = self.position.offset
        for batch in self._kept.take():
            if batch.epoch in self._foreign:
                continue
            # If one of them is missing, the log is read again; it has them all.
            if batch.offset > first and self._take(batch, asked_at) not in _APPLIED:
                break

    # -- reading the full state -------------------------------------------------------------------

    def begin_load(self, head: Head) -> Sequence[Effect]:
        """Start a load: the full-state hash will be read next, page by page."""
        self.counts.loads += 1
        self._loads_in_a_row += 1
        if self._loads_in_a_row > LOADS_BEFORE_GIVING_UP:
            self._enter(Event.GIVE_UP)
        else:
            self._load = Content(head.snapshot)
        return self._answer()

    def load_page(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> None:
        """Add one page of the full-state hash to the load."""
        if self._load is not None:
            self._load.add_page(keys, fields)

    def load_tables(self, fields: Mapping[str, bytes], known: Digest | None = None) -> None:
        """Add the tables hash to the load.

        Args:
            fields: all of them.
            known: the digest of what schedulers wrote; None: it is not known.
        """
        if self._load is not None:
            self._load.add_tables(fields, known)

    def end_load(self, altered: Collection[int] | None = ()) -> Sequence[Effect]:
        """End the load's pages. The log is read next, or the full state once more if it is altered.

        Args:
            altered: key ranges in which it is not what schedulers wrote; None: not known yet.
        """
        if (load := self._load) is not None:
            self._request = None
            load.compared(altered)
            if load.altered and load.altered != self._altered:
                # Once more: it is rare, and may have been mended meanwhile.
                self._altered, self._load = load.altered, None
            else:
                self._altered = frozenset()
                if load.altered:
                    self.counts.loads_altered += 1
                    self._effects.append(LoadAltered(load.altered))
                self._enter(Event.LOADED)
        return self._answer()

    def out_of_memory(self) -> Sequence[Effect]:
        """Load anew: an input raised MemoryError, so the content may hold half of a batch."""
        self._load = self._request = None
        self._enter(Event.CUT)
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
        repaired = self.content.repair(right, among)
        self._note_repaired([key for _, key, _ in repaired])
        self._show_changes(repairs(repaired, self.position, self.shard))
        return self._answer()

    def repair_tables(self, right: ShardTables, keys: Sequence[str]) -> Sequence[Effect]:
        """Replace the tables by those of the history at `position`.

        Args:
            right: the tables.
            keys: that differ.
        """
        self.content.tables = right
        self._note_repaired(keys)
        return self._answer()

    def _note_repaired(self, keys: Sequence[str]) -> None:
        self.counts.keys_repaired += len(keys)
        if keys:
            self._effects.append(KeysRepaired(keys))

    def writer_of(self, key: str) -> str | None:
        """Return the node that set a key last; None if that was too long ago. On any thread."""
        return self._writers.node_of(key)

    def self_checked(self, *, keys_differ: bool, tables_differ: bool) -> None:
        """Count a self-check that finished comparing."""
        self.counts.self_checks += 1
        self.doubts.note_decided()
        self.counts.self_checks_failed += keys_differ + tables_differ

    def self_check_undecided(self, reason: str) -> None:
        """Count a self-check that could not be finished."""
        self.counts.self_checks_undecided += 1
        self.doubts.note_undecided(reason)

    def compared(self, altered: Collection[int]) -> None:
        """Note in which key ranges the visible content is not what schedulers wrote.

        Count a full state that was changed, but not by a scheduler.
        """
        self.content.compared(altered)
        self.counts.full_state_altered += bool(altered)

    def compared_tables(self, doubted: tuple[str, ...]) -> None:
        """Note what of the tables' full state cannot be read, or is not what schedulers wrote."""
        self.content.doubted_tables = doubted
        self.counts.full_state_altered += bool(doubted)

    # -- shared -----------------------------------------------------------------------------------

    def _apply(self, batch: Batch, content: Content) -> None:
        chunks, bad = decode_chunks(batch, self._frames)
        self.counts.chunks_skipped += len(bad)
        self.counts.batches_applied += 1
        changes: list[ChangeColumns] = []
        is_watched = self._watched and content is self.content
        observe = observer(changes, batch.position, self.shard) if is_watched else None
        tally = content.apply(batch, chunks, observe, self._fault, self._note_refused)
        self.tally.add(tally)
        if tally.refused and self.refused:
            self._effects.append(DeltasRefused(tuple(self.refused)))
        self._recent.add(batch)
        self._writers.add(chunks)
        self._show_changes(changes)

    def _note_refused(self, key: str, node: str) -> None:
        self.refused.append(f"{shown(key)} by {node}")

    def _fault(self, _fault: str) -> None:
        self.counts.chunks_skipped += 1

    def _show(self, load: Content) -> None:
        """Replace the content with a finished load; report the keys that differ."""
        # It has caught up with its newest field: no batch to come is at or below a floor.
        load.floors.clear()
        before, self.content = self.content, load
        if self._watched:
            self._show_changes(differences(before, load, self.shard))

    def _show_changes(self, changes: list[ChangeColumns]) -> None:
        if changes and self._watched:
            self._effects.append(ChangesVisible(changes))

    def _enter(self, event: Event) -> None:
        self.events[event] += 1
        before, self.phase = self.phase, TRANSITIONS[self.phase][event]
        if self.phase is Status.LOADING and before is not Status.LOADING:
            self._load = None
            self._recent.clear()
            self._writers.clear()
        if self.phase is not before or event is Event.UNPUBLISHED:
            # Stale as before, but now the reason is known better.
            self.phase_reason = event
        if self.phase is not before:
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
        if isinstance(packet, Batch) and packet.offset > self.reading_from.offset:
            self._kept.add(packet, size)
