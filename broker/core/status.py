"""The status of all shards together, its history, and the queues of its readers. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from broker.core.effects import PhaseChanged
from broker.core.queues import ReaderQueue
from broker.core.shard_view import ShardView
from broker.core.transitions import Event
from broker.model import Health, Status, StatusChange

STATUSES_LIMIT = 256
OPENED = "open"

# The worst shard decides; this is the order.
_WORST_FIRST = (
    Status.FAILED,
    Status.CLOSED,
    Status.CONNECTING,
    Status.LOADING,
    Status.STALE,
    Status.CATCHING_UP,
    Status.LIVE,
)

_BY_ITSELF = "nothing to do unless it lasts or comes often"
_WORKERS = "is a flush worker running? (statebroker status)"

# For each reason: what it means, and what to do.
REASON_HELP: dict[str, str] = {
    OPENED: f"the namespace does not exist yet, or Redis did not answer yet; {_WORKERS}",
    Event.SUBSCRIBED: f"subscribed again, and reads the log for missed batches; {_BY_ITSELF}",
    Event.LOST: (
        "the subscription's connection broke, and is opened again; check Redis and the network, "
        "and whether this process is slower than Redis' client-output-buffer-limit pubsub allows"
    ),
    Event.LATE: (
        "packets arrived later than the staleness bound; is this process, the network or Redis "
        "overloaded?"
    ),
    Event.GAP: f"a packet was lost, and its batch is read from the log; {_BY_ITSELF}",
    Event.BEHIND: f"an old packet arrived; the log is read to see if history was cut; {_BY_ITSELF}",
    Event.FORK: f"history was rewritten, as by a failover; the full state is loaded; {_BY_ITSELF}",
    Event.LOADED: f"the full state was loaded, and the log is read now; {_BY_ITSELF}",
    Event.QUIET: f"the log was read, but has no packet within the staleness bound; {_WORKERS}",
    Event.CUT: f"the log does not reach back far enough; the full state is loaded; {_BY_ITSELF}",
    Event.SILENCE: (
        "nothing arrived within the staleness bound that proves the content current; "
        f"{_WORKERS} Does Redis answer?"
    ),
    Event.UNPUBLISHED: (
        "writing stands still or is far behind: Redis accepted writes longer ago than the "
        "staleness bound, and they are not published yet; is the log full, is a scheduler running, "
        "do the flush workers keep up, is local_delta_max_age below the bound? (statebroker status)"
    ),
    Event.GIVE_UP: "it will not become live again; fix the cause and make a new Replica",
    Event.CLOSE: "it was closed, or was opened before a fork of this process; make a new Replica",
}


def worst(statuses: Iterable[Status]) -> Status:
    """Return the worst of some statuses; connecting if there is none."""
    found = set(statuses) or {Status.CONNECTING}
    return next(status for status in _WORST_FIRST if status in found)


class StatusQueue(ReaderQueue[StatusChange, StatusChange]):
    """The status changes that one reader has not read yet.

    Beyond the limit the two oldest changes become one, so that `before` is always the `after` that
    the reader got last. If the two cancel each other out, both are dropped.

    Args:
        notify: called, on the replica's thread, whenever there is something to read.
        limit: most changes that wait, at least 2.
    """

    def __init__(self, notify: Callable[[], object], limit: int = STATUSES_LIMIT) -> None:
        super().__init__(limit, notify)

    def items(self) -> Iterator[StatusChange] | None:
        """Return an iterator over the oldest change only: later ones may still become one."""
        has_ended = self._has_ended
        try:
            return iter((self._waiting.popleft(),))
        except IndexError:
            if has_ended:
                raise self._end() from None
            return None

    def _shrink(self, waiting: deque[StatusChange]) -> None:
        while len(waiting) > self._limit:
            first, second = waiting.popleft(), waiting.popleft()
            self.conflated += 1
            if first.before is second.after:
                self.conflated += 1
            else:
                waiting.appendleft(replace(second, before=first.before))


class StatusTracker:
    """Tracks the status, and puts every change of it into the readers' queues.

    Args:
        clock: returns the time twice: in monotonic seconds, and in seconds since 1970.

    Attributes:
        last: the last change that was reported.
        changes: how many changes were reported.
        trouble: why the namespace cannot be found; empty if it was, or is not there yet.
    """

    def __init__(self, clock: Callable[[], tuple[float, float]]) -> None:
        self._clock = clock
        now, at = clock()
        self.last = StatusChange(Status.CONNECTING, Status.CONNECTING, OPENED, None, at)
        self.changes = 0
        self.trouble = ""
        self._ended: Status | None = None
        self._not_live_since: float | None = now
        self._shards: list[ShardView] = []
        # All statuses are keys from the start: another thread may iterate at any time.
        self._phases = dict.fromkeys(Status, 0)
        self._queues: list[StatusQueue] = []
        self._conflated = 0

    @property
    def status(self) -> Status:
        """The status now; never live beyond the staleness bound, even before `tick` is called."""
        return self._ended or self._worst(self._clock()[0])

    def _worst(self, now: float) -> Status:
        # Thousands of shards may change at once: check each one only if all may be live.
        if not self._phases[Status.LIVE] or self._phases[Status.LIVE] < len(self._shards):
            return worst(status for status, count in self._phases.items() if count)
        if all(shard.status(now) is Status.LIVE for shard in self._shards):
            return Status.LIVE
        return worst([shard.status(now) for shard in self._shards])

    # -- events -----------------------------------------------------------------------------

    def add_shard(self, shard: ShardView) -> None:
        """Count a shard in."""
        self._shards.append(shard)
        self._phases[shard.phase] += 1

    def phase_changed(self, shard: ShardView, change: PhaseChanged) -> None:
        """A shard's phase changed; later changes of the same input may follow."""
        # In this order: another thread must not find that there is no shard.
        self._phases[change.after] += 1
        self._phases[change.before] -= 1
        if self._ended is not None:
            return
        now, _ = self._clock()
        after = self._worst(now)
        if after is self.last.after:
            return
        if after is change.after:
            self._report(after, str(change.event), shard.shard)
        else:
            self._report(after, *_cause(self._worst_shard(after, now), now))

    def end(self, status: Status, reason: str) -> None:
        """Fix the status: the replica failed or was closed. Later shard events are ignored."""
        self._ended = status
        if status is not self.last.after:
            self._report(status, str(reason), None)

    def _worst_shard(self, status: Status, now: float) -> ShardView | None:
        return next((shard for shard in self._shards if shard.status(now) is status), None)

    def _report(self, after: Status, reason: str, shard: int | None) -> None:
        now, at = self._clock()
        change = StatusChange(self.last.after, after, reason, shard, at)
        if after is Status.LIVE:
            self._not_live_since = None
        elif self._not_live_since is None:
            self._not_live_since = now
        self.last = change
        self.changes += 1
        for queue in list(self._queues):
            if queue.is_closed:
                self.remove_queue(queue)
            else:
                queue.put([change])

    # -- readers ------------------------------------------------------------------------------

    def add_queue(self, queue: StatusQueue, *, begins: bool = True) -> None:
        """Begin to fill a queue; with `begins`, first with the status now as before and after."""
        if begins:
            queue.put([replace(self.last, before=self.last.after)])
        self._queues.append(queue)

    def remove_queue(self, queue: StatusQueue) -> None:
        """Stop filling a queue."""
        queue.close()
        if queue in self._queues:
            self._queues.remove(queue)
            self._conflated += queue.conflated

    def close_queues(self) -> None:
        """End every queue; what waits can still be read."""
        for queue in self._queues:
            queue.close()

    @property
    def conflated(self) -> int:
        """Changes that slow readers did not get one by one."""
        return self._conflated + sum(queue.conflated for queue in list(self._queues))

    # -- health -----------------------------------------------------------------------------------

    @property
    def obstacle(self) -> str:
        """What is known to keep the replica from being live; empty if nothing is."""
        found = (_known_fault(shard) for shard in self._shards)
        return next(filter(None, found), self.trouble)

    def _explained(self, reason: str, shard: ShardView | None) -> str:
        explanation = REASON_HELP.get(reason, "")
        if self._ended or shard is None:
            known = "" if self._ended else self.trouble
        else:
            known = _known_fault(shard)
        # Flush workers are only suspected, and nothing is only waited for, while no cause is known.
        if known and (_WORKERS in explanation or _BY_ITSELF in explanation):
            return known
        return f"{explanation}; {known}" if known else explanation

    def health(self, status: Status, failure: BaseException | None = None) -> Health:
        """Return whether a status is healthy, and if not: since when, why, and what to do.

        Args:
            status: the status now.
            failure: the error that made the replica fail.
        """
        if status is Status.LIVE:
            doubts = tuple(doubt for one in self._shards for doubt in one.doubts.texts(one.content))
            return Health(ok=not doubts, reasons=doubts)
        now, at = self._clock()
        last, not_live_since = self.last, self._not_live_since
        if last.after is status:
            since = last.at
        elif status is Status.STALE:
            # `tick` has not reported it yet.
            since = at - max(shard.overdue(now) for shard in self._shards)
        else:
            since = at
        shard = None if self._ended else self._worst_shard(status, now)
        reason, number = _cause(shard, now) if shard else (last.reason, last.shard)
        if status is Status.CLOSED:
            reason = Event.CLOSE
        where = "" if number is None else f" of shard {number}"
        away = "" if not_live_since is None else f", not live for {now - not_live_since:.1f} s"
        explanation = self._explained(reason, shard) if failure is None else str(failure)
        when = datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds")
        return Health(
            ok=False,
            reasons=(f"{status} since {when}{away}, because of {reason}{where}: {explanation}",),
        )


def _known_fault(shard: ShardView) -> str:
    """Return what is known to keep a shard from being live; empty if nothing is."""
    return shard.trouble or shard.doubts.server_fault or shard.doubts.rhythm_fault


def _cause(shard: ShardView | None, now: float) -> tuple[str, int | None]:
    """Return why a shard has the status that it has, and its number."""
    if shard is None:
        return OPENED, None
    if shard.status(now) is not shard.phase:
        return str(shard.why_overdue(now)), shard.shard
    return str(shard.phase_reason or OPENED), shard.shard
