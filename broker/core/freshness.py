"""How old the proof is that a shard's content is all that was accepted. No I/O."""

from __future__ import annotations


class Freshness:
    """The last moment as of which the content is proved to hold everything that was accepted.

    A proof has the age of the moment at which it was true, not of its arrival: a packet that waited
    in a queue proves little. Chunks that were accepted and are not published yet are in no content,
    so it is never later than the moment at which the oldest of them was accepted.

    Attributes:
        as_of: that moment, in seconds of `broker.runtime.clock`, never later than the truth; None:
            no proof yet.
        published_at: the moment at which the last packet was published, or the read was sent.
        is_behind: whether the last proof told of something that is accepted and not published.
    """

    def __init__(self) -> None:
        self.as_of: float | None = None
        self.published_at = float("-inf")
        self.is_behind = False
        # Publication times are those of the Redis clock. This is an upper bound of its difference
        # from the local clock, from the replies to reads and from every packet.
        self._clock = float("inf")

    def age(self, now: float) -> float:
        """Seconds since `as_of`; inf if there was no proof."""
        return now - self.as_of if self.as_of is not None else float("inf")

    def take_packet(self, time_ms: int, now: float, since_ms: int | None = None) -> None:
        """Take the proof of a packet.

        Args:
            time_ms: when it was published, by the Redis clock.
            now: when it arrived, by the local clock.
            since_ms: when the oldest pending chunk was accepted, by the Redis clock; None: nothing
                is pending.
        """
        self._clock = min(self._clock, now - time_ms / 1000)
        self._take(time_ms / 1000, None if since_ms is None else since_ms / 1000)

    def take_read(self, time_s: float, asked_at: float, since_s: float | None = None) -> None:
        """Take the proof of a read of the whole history.

        Args:
            time_s: when it was answered, by the Redis clock.
            asked_at: when it was sent, by the local clock.
            since_s: as `since_ms` of `take_packet`, or an earlier moment.
        """
        # The Redis clock may have been set, or be another server's: discard the bound of packets.
        self._clock = asked_at - time_s
        self._take(time_s, since_s)

    def _take(self, time_s: float, since_s: float | None) -> None:
        self.is_behind = since_s is not None
        self.published_at = time_s + self._clock
        self.as_of = min(time_s, time_s if since_s is None else since_s) + self._clock
