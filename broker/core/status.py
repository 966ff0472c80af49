"""The status of all shards together: what it is, how it came to be, and who is told. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from broker.core.effects import PhaseChanged
from broker.core.queues import ReaderQueue
from broker.core.shard import ShardState
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
    OPENED: f"nobody made the namespace yet, or Redis did not answer yet; {_WORKERS}",
    Event.SUBSCRIBED: f"subscribed anew, and reads what it may have missed; {_BY_ITSELF}",
    Event.LOST: (
        "the subscription's connection broke, and is made anew; check Redis and the network, and "
        "whether this process is slower than Redis' client-output-buffer-limit pubsub allows"
    ),
    Event.LATE: (
        "packets came later than the staleness bound; is this process, the network or Redis "
        "overloaded?"
    ),
    Event.GAP: f"a packet was lost, and is read from the log; {_BY_ITSELF}",
    Event.BEHIND: f"an old packet came, and Redis is asked whether history was cut; {_BY_ITSELF}",
    Event.FORK: f"history was rewritten, as by a failover; the full state is read; {_BY_ITSELF}",
    Event.LOADED: f"the full state was read, and now the log is; {_BY_ITSELF}",
    Event.QUIET: f"all was read, but nobody published within the staleness bound; {_WORKERS}",
    Event.CUT: f"the log does not reach back far enough, and the full state is read; {_BY_ITSELF}",
    Event.SILENCE: (
        "nothing came within the staleness bound that proves the content current; "
        f"{_WORKERS} Does Redis answer?"
    ),
    Event.GIVE_UP: "it will not become live any more; mend the cause and make a new Replica",
    Event.CLOSE: "it was closed, or is that of the process before a fork; make a new Replica",
}


def worst(statuses: Iterable[Status]) -> Status:
    """Return the status that decides; connecting if there is none."""
    found = set(statuses) or {Status.CONNECTING}
    return next(status for status in _WORST_FIRST if status in found)


class StatusQueue(ReaderQueue[StatusChange]):
    """What one reader of status changes has not read yet.

    Beyond the limit the oldest changes become one, so that `before` is always the `after` that the
    reader got last; what such a one would not change is left out.

    Args:
        notify: called, on the replica's thread, whenever there is something to read.
        limit: most changes that wait, at least 2.
    """

    def __init__(self, notify: Callable[[], object], limit: int = STATUSES_LIMIT) -> None:
        super().__init__(limit, notify)

    def _shrink(self) -> None:
        while len(self._waiting) > self._limit:
            first, second = self._waiting.popleft(), self._waiting.popleft()
            self.conflated += 1
            if first.before is second.after:
                self.conflated += 1
            else:
                self._waiting.appendleft(replace(second, before=first.before))


class StatusTrack:
    """Knows the status at any moment, and tells every change of it to those who follow.

    Args:
        clock: tells this moment twice: in monotonic seconds, and in seconds since 1970.

    Attributes:
        last: how the status came to be what was last told.
        changes: how many changes there were.
    """

    def __init__(self, clock: Callable[[], tuple[float, float]]) -> None:
        self._clock = clock
        now, at = clock()
        self.last = StatusChange(Status.CONNECTING, Status.CONNECTING, OPENED, None, at)
        self.changes = 0
        self._ended: Status | None = None
        self._not_live_since: float | None = now
        self._shards: list[ShardState] = []
        # Every status from the beginning: another thread may go through it at any time.
        self._phases = dict.fromkeys(Status, 0)
        self._queues: list[StatusQueue] = []
        self._conflated = 0

    @property
    def status(self) -> Status:
        """What the content is worth; never live beyond the bound, though nobody noticed yet."""
        return self._ended or self._worst(self._clock()[0])

    def _worst(self, now: float) -> Status:
        # Thousands of shards may move at once: look at all of them only when it may be live.
        if not self._phases[Status.LIVE] or self._phases[Status.LIVE] < len(self._shards):
            return worst(status for status, count in self._phases.items() if count)
        if all(shard.status(now) is Status.LIVE for shard in self._shards):
            return Status.LIVE
        return worst([shard.status(now) for shard in self._shards])

    # -- what happens -----------------------------------------------------------------------------

    def add_shard(self, shard: ShardState) -> None:
        """Count a shard in."""
        self._shards.append(shard)
        self._phases[shard.phase] += 1

    def moved(self, shard: ShardState, change: PhaseChanged) -> None:
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
            self._tell(after, str(change.event), shard.shard)
        else:
            self._tell(after, *_cause(self._worst_shard(after, now), now))

    def end(self, status: Status, reason: str) -> None:
        """It failed or was closed; whatever the shards do now does not matter."""
        self._ended = status
        if status is not self.last.after:
            self._tell(status, str(reason), None)

    def _worst_shard(self, status: Status, now: float) -> ShardState | None:
        return next((shard for shard in self._shards if shard.status(now) is status), None)

    def _tell(self, after: Status, reason: str, shard: int | None) -> None:
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

    # -- who follows ------------------------------------------------------------------------------

    def add_queue(self, queue: StatusQueue, *, begins: bool = True) -> None:
        """Begin to fill a queue; if it begins, first with what holds now, as before and after."""
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

    def health(self, status: Status, failure: BaseException | None = None) -> Health:
        """Tell whether this status is fine, and if not: since when, why, and what to do.

        Args:
            status: what the content is worth now.
            failure: what made it fail.
        """
        if status is Status.LIVE:
            return Health(ok=True, reasons=())
        now, at = self._clock()
        last, not_live_since = self.last, self._not_live_since
        if last.after is status:
            since = last.at
        elif status is Status.STALE:
            # Nobody has noticed yet.
            since = at - max(shard.overdue(now) for shard in self._shards)
        else:
            since = at
        shard = None if self._ended else self._worst_shard(status, now)
        reason, number = _cause(shard, now) if shard else (last.reason, last.shard)
        if status is Status.CLOSED:
            reason = Event.CLOSE
        where = "" if number is None else f" of shard {number}"
        away = "" if not_live_since is None else f", not live for {now - not_live_since:.1f} s"
        told = REASON_HELP.get(reason, "") if failure is None else str(failure)
        when = datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds")
        return Health(
            ok=False, reasons=(f"{status} since {when}{away}, because of {reason}{where}: {told}",)
        )


def _cause(shard: ShardState | None, now: float) -> tuple[str, int | None]:
    """Return why a shard has the status that it has, and its number."""
    if shard is None:
        return OPENED, None
    if shard.status(now) is not shard.phase:
        return str(Event.SILENCE), shard.shard
    return str(shard.moved_by or OPENED), shard.shard
