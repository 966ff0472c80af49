"""The health of workers: events and their times in, a verdict out.

No I/O and no clock: all times are arguments, in seconds of one monotonic clock. A verdict is "" for
green, or the reason in one line, which does not change while the fault lasts.
"""

from __future__ import annotations

from typing import Final

GREEN: Final = ""

MAX_SILENT_INTERVALS: Final = 3
MIN_BOUND_S: Final = 0.5
MAX_TICK_S: Final = 1.0
MAX_ROUNDS: Final = 3
MIN_ROUND_BOUND_S: Final = 10.0
RENEW_TIMEOUT_S: Final = 4.0


class _Health:
    """Keeps the last verdict while a new one would be unreliable.

    Args:
        tick: seconds between two calls of `verdict`.
        now: when the worker started.
    """

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        self._asked_at = now
        self._last_verdict = GREEN

    def verdict(self, now: float) -> str:
        """Return the current verdict.

        After a much too long interval it is the last one: the process was suspended, and has not
        read yet what arrived meanwhile.
        """
        was_away = now - self._asked_at > 2 * self.tick + MIN_BOUND_S
        self._asked_at = now
        if not was_away:
            self._last_verdict = self._current_verdict(now)
        return self._last_verdict

    def _current_verdict(self, now: float) -> str:
        raise NotImplementedError


class FlushHealth(_Health):
    """A flush worker is green while due chunks are published and arrive on the channel.

    Args:
        shards: how many.
        interval: heartbeat interval in seconds; three of them are the bound.
        now: when the worker started.

    Attributes:
        condition: what is wrong with the server although it answers; empty if nothing is.
    """

    def __init__(self, shards: int, interval: float, now: float) -> None:
        super().__init__(min(MAX_TICK_S, interval), now)
        self.interval = interval
        self.bound = max(MIN_BOUND_S, MAX_SILENT_INTERVALS * interval)
        self._began = now
        self._answered_at = now
        # Shard -> (start of the first of the failing polls, error of the last one).
        self._failing: dict[int, tuple[float, str]] = {}
        self._due: dict[int, float | None] = {}
        self._full: set[int] = set()
        self._received_at = dict.fromkeys(range(shards), now)
        self._awaited: dict[int, tuple[float, int]] = {}
        self._epochs: dict[int, bytes] = {}
        self._subscription_error = ""
        self._wake_error = ""
        self.condition = ""

    # -- reported by the poll ---------------------------------------------------------------------

    def answered(self, now: float) -> None:
        """Redis executed a command."""
        self._answered_at = now

    def failed(self, began: float, reason: str, shard: int = 0) -> None:
        """A poll of a shard that started at `began` failed."""
        self._failing[shard] = (self._failing.get(shard, (began, ""))[0], reason)
        # The history may be rewritten when the server is back.
        self._awaited.pop(shard, None)

    def succeeded(self, shard: int = 0) -> None:
        """A poll of a shard succeeded."""
        self._failing.pop(shard, None)

    def due(self, shard: int, at: float | None) -> None:
        """The next batch is due at this time; None: nothing is pending."""
        self._due[shard] = at

    def drained(self, shard: int, at: float | None) -> None:
        """Everything due is published; the next batch is due at this time, as in `due`."""
        self._due[shard] = at
        self._full.discard(shard)

    def log_full(self, shard: int) -> None:
        """The log of the shard is full, until the next `drained`."""
        self._full.add(shard)

    def published(self, shard: int, offset: int, now: float) -> None:
        """This worker published a batch, which its own subscription must receive."""
        since, expected = self._awaited.get(shard, (now, offset))
        # A lower offset than before: the history was rewritten.
        self._awaited[shard] = (since, expected) if expected <= offset else (now, offset)

    def wakes(self) -> None:
        """Waiting for wake-ups works."""
        self._wake_error = ""

    def wake_refused(self, reason: str) -> None:
        """The server does not let this worker wait for wake-ups, until `wakes`."""
        self._wake_error = reason

    # -- reported by the canary -------------------------------------------------------------------

    def received(self, shard: int, epoch: bytes, offset: int, now: float) -> None:
        """A batch or heartbeat arrived on the shard's channel."""
        self._received_at[shard] = now
        self._subscription_error = ""
        is_other = self._epochs.get(shard, epoch) != epoch
        self._epochs[shard] = epoch
        if shard in self._awaited and (is_other or offset >= self._awaited[shard][1]):
            del self._awaited[shard]

    def subscription_failed(self, reason: str) -> None:
        """The subscription broke or was refused, until something is received."""
        self._subscription_error = reason

    # -- the verdict ------------------------------------------------------------------------------

    def _current_verdict(self, now: float) -> str:
        over = f"for over {self.bound:g} s"
        since, error = min(self._failing.values(), default=(now, ""))
        if now - since > self.bound:
            return f"polls have failed {over}: {error}"
        if now - self._answered_at > self.bound:
            why = f": {error}" if error else ""
            return f"Redis has not answered {over}{why}"
        if self.condition:
            return self.condition
        if self._full:
            return f"shard {min(self._full)}: the log is full; is a scheduler running?"
        for shard, at in self._due.items():
            if at is not None and now - max(at, self._began) > self.bound:
                return f"shard {shard}: something has been due and unpublished {over}"
        return self._missing_messages(now, over)

    def _missing_messages(self, now: float, over: str) -> str:
        why = f" ({self._subscription_error})" if self._subscription_error else ""
        for shard, (since, _) in self._awaited.items():
            if now - since > self.bound:
                return (
                    f"shard {shard}: the published batch did not arrive on its channel {over}{why}"
                )
        for shard, at in self._received_at.items():
            if now - at > self.bound:
                return f"shard {shard}: nothing arrived on its channel {over}{why}"
        if self._wake_error:
            return (
                f"wake-ups are refused, so it polls every {self.interval:g} s and publishes up to "
                f"that late: {self._wake_error}; see `statebroker acl flusher`"
            )
        return GREEN


class ScheduleHealth(_Health):
    """A scheduler is green while it can renew its leases and write full states under them.

    A standby, without a lease, is green while it can ask for one.

    Args:
        interval: seconds between full states; three of them, but at least 10 s, are the bound.
        tick: seconds between two renewals.
        now: when the scheduler started.

    Attributes:
        condition: what is wrong with the server although it answers; empty if nothing is.
    """

    def __init__(self, interval: float, tick: float, now: float) -> None:
        super().__init__(tick, now)
        self.condition = ""
        self._unreadable: dict[int, str] = {}
        self.bound = max(MIN_ROUND_BOUND_S, MAX_ROUNDS * interval)
        # Shards of which this scheduler holds the lease -> the last round that succeeded.
        self._written_at: dict[int, float] = {}
        self._errors: dict[int, str] = {}
        self._failing: dict[int, tuple[float, str]] = {}

    def renewed(self, shard: int, now: float, *, is_held: bool) -> None:
        """The server answered a request for the lease."""
        self._failing.pop(shard, None)
        if is_held:
            self._written_at.setdefault(shard, now)
        else:
            self._written_at.pop(shard, None)
            self._errors.pop(shard, None)

    def not_renewed(self, shard: int, began: float, reason: str) -> None:
        """An attempt to acquire or renew the lease, started at `began`, failed."""
        self._failing[shard] = (self._failing.get(shard, (began, ""))[0], reason)

    def wrote(self, shard: int, now: float, *, is_held: bool) -> None:
        """The full state is up to date, or another scheduler holds the lease."""
        self.renewed(shard, now, is_held=is_held)
        self._errors.pop(shard, None)
        if is_held:
            self._written_at[shard] = now

    def progressed(self, shard: int, at: float) -> None:
        """A portion of a long write was committed at this time."""
        if shard in self._written_at:
            self._written_at[shard] = max(at, self._written_at[shard])

    def failed(self, shard: int, reason: str) -> None:
        """Writing a full state failed."""
        self._errors[shard] = reason

    def unreadable(self, shard: int, what: str) -> None:
        """This of the full state cannot be read, "" for nothing; as far as it had to be."""
        self._unreadable[shard] = what

    def _current_verdict(self, now: float) -> str:
        for shard, (since, reason) in self._failing.items():
            if now - since > RENEW_TIMEOUT_S:
                return (
                    f"shard {shard}: the lease could not be renewed for over "
                    f"{RENEW_TIMEOUT_S:g} s: {reason}"
                )
        if self.condition:
            return self.condition
        for shard, at in self._written_at.items():
            if now - at > self.bound:
                why = self._errors.get(shard, "still writing")
                return f"shard {shard}: no full state was written for over {self.bound:g} s: {why}"
        for shard, what in self._unreadable.items():
            if what and shard in self._written_at:
                return (
                    f"shard {shard}: {what} of the full state cannot be read; write them again, "
                    "then run `statebroker verify --accept`"
                )
        return GREEN
