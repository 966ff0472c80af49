"""One lane's packed chunks: in flight, to be sent again, or kept once accepted. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from broker.protocol.messages import TableKey


@dataclass(frozen=True, slots=True)
class Packed:
    """A numbered chunk, ready to be appended.

    Attributes:
        number: 1, 2, 3 ... in its lane.
        deltas: how many it holds.
        total: deltas of the lane up to and including this chunk.
        since: monotonic seconds of its oldest delta.
        ticket: that of its columns.
        data: the bytes.
        saved: how many more there would be without compression.
        dictionary: number of the one that its readers need; 0: none.
        defined: table -> how many ids of text keys the chunks before it define.
    """

    number: int
    deltas: int
    total: int
    since: float
    ticket: int
    data: bytes
    saved: int = 0
    dictionary: int = 0
    defined: Mapping[TableKey, int] = field(default_factory=dict)


@dataclass(slots=True)
class SentChunks:
    """The chunks of one lane from packing on.

    Attributes:
        resend: to be sent again, before any new chunk.
        in_flight: sent and not yet answered, the oldest first.
        kept: accepted by Redis, which may lose them; with the monotonic seconds of that.
        kept_bytes: their size.
        accepted: deltas up to the last accepted chunk; grows only.
        accepted_number: its number.
        resent: deltas of kept chunks that were sent again.
        lost: deltas that Redis lost when they were no longer kept.
    """

    resend: deque[Packed] = field(default_factory=deque)
    in_flight: deque[Packed] = field(default_factory=deque)
    kept: deque[tuple[Packed, float]] = field(default_factory=deque)
    kept_bytes: int = 0
    accepted: int = 0
    accepted_number: int = 0
    resent: int = 0
    lost: int = 0
    _gone: list[tuple[int, int]] = field(default_factory=list)

    @property
    def unaccepted_bytes(self) -> int:
        """Bytes of the chunks that Redis never accepted."""
        chunks = (*self.resend, *self.in_flight)
        return sum(len(one.data) for one in chunks if one.number > self.accepted_number)

    def accept(self, now: float) -> int:
        """Keep the oldest chunk in flight; return its bytes if it was accepted for the first time.

        Args:
            now: monotonic seconds.
        """
        if not self.in_flight:
            return 0
        packed = self.in_flight.popleft()
        size = len(packed.data)
        self.kept.append((packed, now))
        self.kept_bytes += size
        if packed.number <= self.accepted_number:
            return 0
        self.accepted_number, self.accepted = packed.number, packed.total
        return size

    def drop_expired(self, before: float, max_bytes: int) -> None:
        """Drop the chunks that were accepted before a moment, and the oldest beyond a size."""
        while self.kept and (self.kept[0][1] < before or self.kept_bytes > max_bytes):
            packed, _ = self.kept.popleft()
            self.kept_bytes -= len(packed.data)

    def requeue(self) -> None:
        """Send the chunks in flight again: it is unknown whether Redis accepted them."""
        self.resend.extendleft(reversed(self.in_flight))
        self.in_flight.clear()

    def replace(self, change: Callable[[Packed], Packed]) -> int:
        """Change the chunks that are to be sent again; return how many bytes that frees.

        Bytes of those that were accepted before count as kept, or not at all.
        """
        before = self.unaccepted_bytes
        self.resend = deque(map(change, self.resend))
        return before - self.unaccepted_bytes

    def rewind(self, number: int) -> None:
        """Send every chunk from a number on again, as far as it is still kept."""
        again = [packed for packed, _ in self.kept if packed.number >= number]
        self.kept = deque(pair for pair in self.kept if pair[0].number < number)
        self.kept_bytes = sum(len(packed.data) for packed, _ in self.kept)
        self.resent += sum(packed.deltas for packed in again)
        self.requeue()
        self.resend.extendleft(reversed(again))

    def lose(self, first: int, end: int) -> int:
        """Count deltas `first` to before `end` as lost; return how many were not counted before.

        A later loss may reach further back than an earlier one, or repeat it.
        """
        if first >= end:
            return 0
        known = sum(max(0, min(stop, end) - max(start, first)) for start, stop in self._gone)
        kept = [(start, min(stop, first)) for start, stop in self._gone if start < first]
        self._gone = [*kept, (first, end)]
        lost = end - first - known
        self.lost += lost
        return lost

    def outstanding(self, ticket: int) -> bool:
        """Whether a chunk with this ticket or an older one still has to reach Redis."""
        return any(queue and queue[0].ticket <= ticket for queue in (self.in_flight, self.resend))

    def reached(self, last: int) -> int:
        """Return the number up to which Redis has accepted every chunk, `last` at most."""
        return min([last] + [one.number - 1 for one in (*self.resend, *self.in_flight)])
