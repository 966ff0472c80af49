"""When a worker is red: what it did and heard, and when, go in; a verdict comes out.

No I/O and no clock: every time is given, in seconds of one monotonic clock. A verdict is "" for
green, or the reason in one line that stays the same while the fault does.
"""

from __future__ import annotations

from typing import Final

GREEN: Final = ""

SILENT_INTERVALS: Final = 3
MIN_BOUND: Final = 0.5
MAX_TICK: Final = 1.0
ROUNDS: Final = 3
MIN_ROUND_BOUND: Final = 10.0
RENEW_PATIENCE: Final = 4.0


class _Judge:
    """Remembers the last verdict, for the moments in which a new one would be unfair.

    Args:
        tick: seconds after which `judge` is asked again.
        now: when the worker began.
    """

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._asked_at = now
        self._verdict = GREEN

    def judge(self, now: float) -> str:
        """Return the verdict of this moment.

        Asked much too late, it is the last one: the process did not run, and what came meanwhile
        is not read yet. The next one counts again.
        """
        was_away = now - self._asked_at > 2 * self.tick + MIN_BOUND
        self._asked_at = now
        if not was_away:
            self._verdict = self._judged(now)
        return self._verdict

    def _judged(self, now: float) -> str:
        raise NotImplementedError


class FlushHealth(_Judge):
    """A flush worker is green while what is due is published, and heard on the channel.

    Args:
        shards: how many.
        interval: seconds, the heartbeat interval; three of them are the bound.
        now: when the worker began.
    """

    def __init__(self, shards: int, interval: float, now: float) -> None:
        super().__init__(min(MAX_TICK, interval), now)
        self.interval = interval
        self.bound = max(MIN_BOUND, SILENT_INTERVALS * interval)
        self._began = now
        self._answered_at = now
        # Shard -> when the first of the polls that failed since began, why the last one failed.
        self._failing: dict[int, tuple[float, str]] = {}
        self._due: dict[int, float | None] = {}
        self._full: set[int] = set()
        self._heard_at = dict.fromkeys(range(shards), now)
        self._unheard: dict[int, tuple[float, int]] = {}
        self._epochs: dict[int, bytes] = {}
        self._deaf = ""

    # -- told by the poll -------------------------------------------------------------------------

    def answered(self, now: float) -> None:
        """Redis did what it was asked."""
        self._answered_at = now

    def failed(self, began: float, reason: str, shard: int = 0) -> None:
        """A poll of a shard that began then failed."""
        self._failing[shard] = (self._failing.get(shard, (began, ""))[0], reason)
        # The history may be another one when the server is back.
        self._unheard.pop(shard, None)

    def worked(self, shard: int = 0) -> None:
        """A poll of a shard did all it had to do."""
        self._failing.pop(shard, None)

    def due(self, shard: int, at: float | None) -> None:
        """Something has to be published at that time; None: nothing is pending."""
        self._due[shard] = at

    def drained(self, shard: int, at: float | None) -> None:
        """What was due is published; the next is due at that time, as in `due`."""
        self._due[shard] = at
        self._full.discard(shard)

    def refused(self, shard: int) -> None:
        """The shard's log is full; until the next `drained`."""
        self._full.add(shard)

    def published(self, shard: int, offset: int, now: float) -> None:
        """This worker published a batch, which its own subscription has to hear."""
        since, expected = self._unheard.get(shard, (now, offset))
        # A lower offset than before: the history was rewritten.
        self._unheard[shard] = (since, expected) if expected <= offset else (now, offset)

    # -- told by the canary -----------------------------------------------------------------------

    def heard(self, shard: int, epoch: bytes, offset: int, now: float) -> None:
        """A batch or heartbeat arrived on the shard's channel."""
        self._heard_at[shard] = now
        self._deaf = ""
        is_other = self._epochs.get(shard, epoch) != epoch
        self._epochs[shard] = epoch
        if shard in self._unheard and (is_other or offset >= self._unheard[shard][1]):
            del self._unheard[shard]

    def deaf(self, reason: str) -> None:
        """The subscription broke, or was refused; until something is heard."""
        self._deaf = reason

    # -- the verdict ------------------------------------------------------------------------------

    def _judged(self, now: float) -> str:
        over = f"for over {self.bound:g} s"
        since, told = min(self._failing.values(), default=(now, ""))
        if now - since > self.bound:
            return f"polls have failed {over}: {told}"
        if now - self._answered_at > self.bound:
            why = f": {told}" if told else ""
            return f"Redis has not answered {over}{why}"
        if self._full:
            return f"shard {min(self._full)}: the log is full; is a scheduler running?"
        for shard, at in self._due.items():
            if at is not None and now - max(at, self._began) > self.bound:
                return f"shard {shard}: something has been due and unpublished {over}"
        return self._unheard_of(now, over)

    def _unheard_of(self, now: float, over: str) -> str:
        why = f" ({self._deaf})" if self._deaf else ""
        for shard, (since, _) in self._unheard.items():
            if now - since > self.bound:
                return f"shard {shard}: what was published was not heard on its channel {over}{why}"
        for shard, at in self._heard_at.items():
            if now - at > self.bound:
                return f"shard {shard}: nothing was heard on its channel {over}{why}"
        return GREEN


class ScheduleHealth(_Judge):
    """A scheduler is green while it can renew, and full states succeed where it holds the lease.

    One that holds no lease stands by: green as long as it can ask for one.

    Args:
        interval: seconds between full states; three of them, but at least 10 s, are the bound.
        tick: seconds between two renewals.
        now: when the scheduler began.
    """

    def __init__(self, interval: float, tick: float, now: float) -> None:
        super().__init__(tick, now)
        self.bound = max(MIN_ROUND_BOUND, ROUNDS * interval)
        # Shards of which this scheduler holds the lease -> the last round that succeeded.
        self._written_at: dict[int, float] = {}
        self._errors: dict[int, str] = {}
        self._failing: dict[int, tuple[float, str]] = {}

    def renewed(self, shard: int, now: float, *, is_held: bool) -> None:
        """The server answered whose lease it is."""
        self._failing.pop(shard, None)
        if is_held:
            self._written_at.setdefault(shard, now)
        else:
            self._written_at.pop(shard, None)
            self._errors.pop(shard, None)

    def not_renewed(self, shard: int, began: float, reason: str) -> None:
        """An attempt to take or renew the lease, begun then, failed."""
        self._failing[shard] = (self._failing.get(shard, (began, ""))[0], reason)

    def wrote(self, shard: int, now: float, *, is_held: bool) -> None:
        """The full state is up to the head, or it is not this scheduler's turn."""
        self.renewed(shard, now, is_held=is_held)
        self._errors.pop(shard, None)
        if is_held:
            self._written_at[shard] = now

    def progressed(self, shard: int, at: float) -> None:
        """At that time a portion of a long write was done; a round need not be over for it."""
        if shard in self._written_at:
            self._written_at[shard] = max(at, self._written_at[shard])

    def failed(self, shard: int, reason: str) -> None:
        """A full state was not written."""
        self._errors[shard] = reason

    def _judged(self, now: float) -> str:
        for shard, (since, reason) in self._failing.items():
            if now - since > RENEW_PATIENCE:
                return (
                    f"shard {shard}: the lease could not be renewed for over "
                    f"{RENEW_PATIENCE:g} s: {reason}"
                )
        for shard, at in self._written_at.items():
            if now - at > self.bound:
                why = self._errors.get(shard, "still writing")
                return f"shard {shard}: no full state was written for over {self.bound:g} s: {why}"
        return GREEN
