"""The values that producers and replicas return, all frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final, NamedTuple

from broker.errors import TokenError
from broker.protocol.messages import Position, Value
from broker.protocol.operations import Operation


class Status(StrEnum):
    """A replica's status; the worst shard decides.

    Only `LIVE` means complete, and proved current within the staleness bound.
    """

    CONNECTING = "connecting"
    LOADING = "loading"
    CATCHING_UP = "catching_up"
    LIVE = "live"
    STALE = "stale"
    CLOSED = "closed"
    FAILED = "failed"


class Change(NamedTuple):
    """One key's change as a reader of `changes()` sees it.

    A named tuple, because one is made for every watched delta: from columns, that takes a sixth of
    the time of a frozen dataclass.

    Attributes:
        key: the key.
        value: its value after the change; None after a delete.
        operation: "set", "delete" or "increment".
        position: the position of the shard after the batch that carried it.
        shard: the key's shard.
        timestamp_ms: the producer's wall clock (the delta's own if the producer sends it, else
            the chunk's); 0 if unknown, as after a load.
        resync: True if it was found by comparison with a newly loaded state: the changes in
            between are not known, only the outcome.
    """

    key: str
    value: Value
    operation: Operation
    position: Position
    shard: int = 0
    timestamp_ms: int = 0
    resync: bool = False


class Absent(Enum):
    """The one value that means: there is no such key."""

    ABSENT = auto()


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value in a replica differs from Redis' history.

    Attributes:
        key: the key.
        shard: its shard.
        offset: of the position at which both were compared.
        replica: the value in the replica; ABSENT if none. Packed, if it cannot be read.
        history: the value by full state and log, likewise.
    """

    key: str
    shard: int
    offset: int
    replica: Value | Absent
    history: Value | Absent


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a comparison of a replica with Redis' history.

    Attributes:
        keys: how many keys were compared, by digests of 256 key ranges a shard.
        ranges: how many key ranges' digests differed.
        differences: keys that differ, sorted, in those ranges.
        bytes_read: of digests, log and fields; of the state only ranges that differ were read.
        damaged: what of the full state cannot be read, keys that the replica lacks for that and
            tables, and rows that are not what schedulers wrote.
    """

    keys: int
    ranges: int
    differences: tuple[Difference, ...]
    bytes_read: int
    damaged: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether the replica is proved to equal the history."""
        return not self.ranges and not self.damaged


@dataclass(frozen=True, slots=True)
class StatusChange:
    """One change of a replica's status, for `statuses()` and `on_status`.

    Attributes:
        before: the status until then.
        after: the status from then on; the same as `before` only in the first that `statuses()`
            yields, which reports the status at the start.
        reason: the event that moved the worst shard, one of those in PROTOCOL.md: "subscribed",
            "lost", "next", "current", "late", "gap", "behind", "fork", "loaded", "caught_up",
            "quiet", "cut", "silence", "give_up", "close"; "open" before the first.
        shard: the worst shard; None where it is not about one.
        at: seconds since 1970 by this machine's clock; for people, not used in any decision.
    """

    before: Status
    after: Status
    reason: str
    shard: int | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a replica is fine now.

    Attributes:
        ok: it is live, and nothing speaks against its content. Slow readers of its changes do not
            matter.
        reasons: if it is not ok, for people: the status, since when, why, and what to do; or what
            is damaged in the full state, so that a live replica lacks it.
    """

    ok: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """A point that a replica can wait for: everything flushed before it was made.

    `str(token)` and `Token.parse(text)` carry it between processes.

    Attributes:
        marks: shard -> (epoch, append number); shards never written to are absent.
    """

    marks: Mapping[int, tuple[bytes, int]]

    def __str__(self) -> str:
        """Text form: `shard:epoch-in-hex:append` joined by commas; empty if nothing was written."""
        return ",".join(
            f"{shard}:{epoch.hex()}:{append}"
            for shard, (epoch, append) in sorted(self.marks.items())
        )

    @classmethod
    def parse(cls, text: str) -> Token:
        """Return the token of a text that `str()` made.

        Raises:
            TokenError: the text has another form.
        """
        marks = {}
        try:
            for part in filter(None, text.strip().split(",")):
                shard, epoch, append = part.split(":")
                marks[int(shard)] = (bytes.fromhex(epoch), int(append))
        except ValueError:
            raise TokenError(
                f"not a token: {text!r}; expected 'shard:epoch:append' joined by commas"
            ) from None
        return cls(marks)
