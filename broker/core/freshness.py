"""How old the proof is that a shard's content is the whole history. No I/O."""

from __future__ import annotations


class Freshness:
    """The last moment as of which the content is proved to be the whole history.

    A proof has the age of the moment at which it was true, not of its arrival: a packet that waited
    in a queue proves little.

    Attributes:
        as_of: that moment, in monotonic seconds, never later than the truth; None: no proof yet.
    """

    def __init__(self) -> None:
        self.as_of: float | None = None
        # Publication times are those of the Redis clock. This is an upper bound of its difference
        # from the local clock, from the replies to reads and from every packet.
        self._clock = float("inf")

    def age(self, now: float) -> float:
        """Seconds since `as_of`; inf if there was no proof."""
        return now - self.as_of if self.as_of is not None else float("inf")

    def take_packet(self, time_ms: int, now: float) -> None:
        """Take the proof of a packet that was published at this time of the Redis clock."""
        time_s = time_ms / 1000
        self._clock = min(self._clock, now - time_s)
        self.as_of = time_s + self._clock

    def take_read(self, time_s: float, asked_at: float) -> None:
        """Take the proof of a read that was sent at `asked_at` and answered with Redis' time."""
        self.as_of = asked_at
        # The Redis clock may have been set, or be another server's: discard the bound of packets.
        self._clock = asked_at - time_s
