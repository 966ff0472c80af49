"""The asyncio replica; the sync face runs this one on a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, ItemsView, Iterator, Mapping
from typing import Any, Self

from broker.aio.checking import verified
from broker.aio.follower import Follower
from broker.aio.session import Session
from broker.changes import ChangeQueue, OverflowPolicy
from broker.config import checked, checked_name
from broker.errors import ClosedError, TokenError
from broker.keys import shard_of
from broker.model import Change, Position, Status, Token, Verification
from broker.shardstate import ShardState

CHANGES_LIMIT = 100_000

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


class Replica(Mapping[str, Any]):
    """A live, read-only copy of one namespace in this process' memory.

    Reads never touch the network and show the history up to `position`: whole batches, in the order
    in which Redis accepted them, the same on every replica. `status` says what that is worth:
    only `live` means complete and proved current within the staleness bound. Between two `await`s
    of the caller nothing changes.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`; None means `embedded://`.
        namespace: which state.
        shards: shard count that the namespace must have; None takes what it has.
        staleness_bound: seconds of silence after which the replica is no longer `live`; 3 by
            default, at least three times the workers' heartbeat interval is wise.
        self_check_interval: seconds between comparisons of the content with Redis, see `verify`;
            what differs is put right and logged as an error. 300 by default, 0 is never.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        shards: int | None = None,
        staleness_bound: float | None = None,
        self_check_interval: float | None = None,
    ) -> None:
        settings = checked(
            shards=shards,
            staleness_bound=staleness_bound,
            self_check_interval=self_check_interval,
        )
        self.namespace = checked_name("namespace", namespace)
        self.staleness_bound: float = settings["staleness_bound"]
        self._session = Session(url, self.namespace, shards)
        self._follower = Follower(
            self._session, self.staleness_bound, settings["self_check_interval"]
        )
        self._closed = False

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and begin to load; returns before the replica is live (see `wait_live`).

        Raises:
            ConnectError, ServerUnfitError, EmbeddedError, NamespaceMismatchError: with the fix.
        """
        try:
            await self._session.connect()
            await self._session.summon_workers()
            await self._follower.start()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Stop following; the content stays readable. Calling it again does nothing."""
        if self._closed or self._session.guard.is_forked:
            return
        self._closed = True
        await self._follower.stop()
        await self._session.close()

    @property
    def _shards(self) -> list[ShardState]:
        return self._follower.shards

    # -- reading ----------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        """Return a key's value.

        Raises:
            KeyError: absent (or not loaded yet: see `status`).
        """
        shards = self._shards
        if not shards:
            raise KeyError(key)
        return shards[shard_of(key, len(shards))].values[key]

    def __len__(self) -> int:
        """How many keys there are."""
        return sum(len(shard.values) for shard in self._shards)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys there are now; later changes do not disturb it."""
        return iter([key for shard in self._shards for key in list(shard.values)])

    def items(self) -> ItemsView[str, Any]:
        """Return keys and values of one moment, as a copy."""
        return self.snapshot()[0].items()

    def snapshot(self) -> tuple[dict[str, Any], tuple[Position, ...]]:
        """Return a copy of the whole content, and each shard's position for it."""
        content: dict[str, Any] = {}
        for shard in self._shards:
            content.update(shard.values)
        return content, self.positions

    @property
    def status(self) -> Status:
        """What the content is worth now; the worst shard decides."""
        if self._closed or self._session.guard.is_forked:
            return Status.CLOSED
        if self._follower.failure is not None:
            return Status.FAILED
        phases = {shard.phase for shard in self._shards} or {Status.CONNECTING}
        return next(status for status in _WORST_FIRST if status in phases)

    @property
    def positions(self) -> tuple[Position, ...]:
        """Each shard's position, in the order of the shards; empty before the namespace exists."""
        return tuple(shard.position for shard in self._shards)

    @property
    def position(self) -> Position:
        """The position of shard 0, which is all there is unless the namespace has more."""
        return self._shards[0].position if self._shards else Position()

    @property
    def lag(self) -> float:
        """Seconds since the moment for which the content is proved to be the whole history.

        inf before that. While live it is at most the staleness bound; in quiet times it swings
        between nothing and the heartbeat interval. Packets that waited somewhere count as old.
        """
        now = time.monotonic()
        return max((shard.lag(now) for shard in self._shards), default=float("inf"))

    def stats(self) -> dict[str, Any]:
        """Return counters over the life of this replica; see README for each one's meaning."""
        counts: dict[str, int] = {}
        for shard in self._shards:
            for name, count in shard.counts.items():
                counts[name] = counts.get(name, 0) + count
        return {
            "status": str(self.status),
            "keys": len(self),
            "lag_s": self.lag,
            "offset": sum(shard.position.offset for shard in self._shards),
            "batches_applied": counts.get("batches", 0),
            "batches_duplicate": counts.get("duplicate", 0),
            "deltas_applied": sum(shard.tally.applied for shard in self._shards),
            "deltas_superseded": sum(shard.tally.superseded for shard in self._shards),
            "deltas_refused": sum(shard.tally.refused for shard in self._shards),
            "deltas_skipped": sum(shard.tally.skipped for shard in self._shards),
            "chunks_skipped": counts.get("chunks_skipped", 0),
            "bytes_received": counts.get("bytes", 0),
            "packets": counts.get("packets", 0),
            "packets_unreadable": counts.get("packets_unreadable", 0),
            "gaps": counts.get("gap", 0),
            "forks": counts.get("fork", 0),
            "cuts": counts.get("cut", 0),
            "silences": counts.get("silence", 0),
            "catch_ups": counts.get("caught_up", 0) + counts.get("quiet", 0),
            "loads": counts.get("loads", 0),
            "reconnects": self._follower.reconnects,
            "changes_conflated": self._follower.conflated,
            "self_checks": counts.get("self_checks", 0),
            "self_checks_failed": counts.get("self_checks_failed", 0),
            "self_checks_undecided": counts.get("self_checks_undecided", 0),
            "keys_repaired": counts.get("keys_repaired", 0),
            "full_state_altered": counts.get("full_state_altered", 0),
        }

    async def verify(self) -> Verification:
        """Prove that the content is what Redis' history says, while writing goes on.

        Digests of 256 key ranges a shard are compared at one position; only ranges that differ are
        read. Changes nothing: a background check (`self_check_interval`) repairs.

        Raises:
            BackendError: Redis failed; or for half a minute the replica was not live, or full
                states followed each other too fast to be read in between.
            ForkedError: this is a forked child.
        """
        self._session.guard.check()
        if self._closed:
            raise ClosedError("this replica is closed; make a new one")
        return await verified(self._session, self._shards)

    # -- waiting ----------------------------------------------------------------------------------

    async def wait_live(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - same as sync
        """Wait until the replica is live.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not live in time; says the status it has instead.
            ReplicaFailedError, ClosedError: it never will be.
        """
        await self._until(lambda: self.status is Status.LIVE, timeout, "is not live")

    async def wait_for(self, token: Token | str, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the replica shows everything that a producer's `flush()` returned this for.

        Args:
            token: from `flush()`, or its text.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not there in time.
            TokenError: the token cannot be read, or is of a namespace with more shards.
            ReplicaFailedError, ClosedError: it never will be.
        """
        marks = (Token.parse(token) if isinstance(token, str) else token).marks
        await self._until(lambda: self._shows(marks), timeout, "does not show the token")

    def _shows(self, marks: Mapping[int, tuple[bytes, int]]) -> bool:
        for number, (epoch, append) in marks.items():
            if not self._shards:
                return False
            if number >= len(self._shards):
                raise TokenError(
                    f"token names shard {number}; {self.namespace!r} has {len(self._shards)}"
                )
            shard = self._shards[number]
            # Another epoch may be an older one or one that we have not heard of yet: wait. While it
            # loads, what the shard shows may be of a history that Redis no longer has.
            settled = shard.phase in (Status.LIVE, Status.STALE)
            if not settled or shard.position.epoch != epoch or shard.covered < append:
                return False
        return True

    async def _until(
        self,
        done: Callable[[], bool],
        timeout: float | None,  # noqa: ASYNC109 - same as sync
        what: str,
    ) -> None:
        self._session.guard.check()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._follower.failure is not None:
                        raise self._follower.failure.with_traceback(None)
                    if self._closed:
                        raise ClosedError("this replica is closed; make a new one")
                    self._follower.news.clear()
                    if done():
                        return
                    await self._follower.news.wait()
        except TimeoutError:
            raise TimeoutError(
                f"replica of {self.namespace!r} {what} after {timeout:g} s: it is {self.status}"
                + ("" if self._shards else " and nobody made the namespace yet")
                + "; is a flush worker running? (statebroker status)"
            ) from None

    # -- changes ----------------------------------------------------------------------------------

    def changes(
        self,
        prefix: str | None = None,
        *,
        limit: int = CHANGES_LIMIT,
        overflow: OverflowPolicy = "conflate",
    ) -> Changes:
        """Follow what changes from now on; an async iterator with `close()`.

        After a full load it yields what differs from before, marked `resync`.

        Args:
            prefix: only keys that begin with it.
            limit: most changes that wait for a slow reader.
            overflow: "conflate" or "raise", see `ChangeQueue`.
        """
        return Changes(self, prefix, limit, overflow)

    def check_fork(self) -> None:
        """Return in the process that opened the replica.

        Raises:
            ForkedError: this is a forked child.
        """
        self._session.guard.check()

    def add_queue(self, queue: ChangeQueue) -> None:
        """Begin to fill a queue of changes (on the loop's thread)."""
        self._follower.add_queue(queue)
        if self._closed:
            queue.close()

    def remove_queue(self, queue: ChangeQueue) -> None:
        """Stop filling a queue of changes (on the loop's thread)."""
        self._follower.remove_queue(queue)


class Changes:
    """An async iterator over a replica's changes; `close()` ends it."""

    def __init__(
        self, replica: Replica, prefix: str | None, limit: int, overflow: OverflowPolicy
    ) -> None:
        self._replica = replica
        self._ready = asyncio.Event()
        self._queue = ChangeQueue(prefix, limit, overflow, self._ready.set)
        self._taken: list[Change] = []
        replica.add_queue(self._queue)

    def __aiter__(self) -> AsyncIterator[Change]:
        """Return itself."""
        return self

    async def __anext__(self) -> Change:
        """Wait for the next change.

        Raises:
            ChangesOverflowError: the reader was too slow, by its own policy.
            StopAsyncIteration: the replica or this iterator was closed.
        """
        while not self._taken:
            self._replica.check_fork()
            self._ready.clear()
            try:
                self._taken = self._queue.take()[::-1]
            except StopIteration:
                raise StopAsyncIteration from None
            if not self._taken:
                await self._ready.wait()
        return self._taken.pop()

    def close(self) -> None:
        """End the iteration; what was already told can still be read."""
        self._replica.remove_queue(self._queue)
