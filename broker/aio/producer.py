"""The asyncio producer; the sync face runs this one on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Self

from broker import reads
from broker.aio.session import Session
from broker.buffer import Packed, ProducerBuffer
from broker.config import SETTINGS, checked, checked_name, default_node
from broker.errors import (
    BackendError,
    BrokerError,
    BufferFullError,
    ClosedError,
    ConfigError,
    DataLostError,
    FencedError,
    FlushTimeoutError,
)
from broker.keys import shard_of
from broker.lua import Accepted, Busy, Missing, fenced
from broker.model import Token, Value
from broker.protocol import EPOCH_BYTES, OP_DELETE, OP_INCREMENT, OP_SET
from broker.values import STAMP_BYTES, admit, admit_amount, admit_key

log = logging.getLogger(__name__)

FullPolicy = Literal["block", "raise", "conflate"]
FULL_POLICIES = ("block", "raise", "conflate")

RETRY_FIRST = 0.02
RETRY_MOST = 1.0
CLOSE_TIMEOUT = 10.0


class Producer:
    """A writer of one namespace: its calls buffer and return, a task of its own appends to Redis.

    Every accepted delta takes effect exactly once and in the order of this producer's calls,
    whatever is retried. Deltas of one `set_many` that belong to one shard become visible at once.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`; None means `embedded://`.
        namespace: which state; letters, digits, `_`, `.`, `-`.
        node: this writer's name; one process at a time can hold it, a newer one fences the older.
            None makes a name that nobody else has.
        shards: shard count to make a new namespace with; for an existing one it must agree.
        local_delta_max_age: seconds a delta of this node may wait; None: what the workers say.
        local_delta_max_count: pending deltas of this node that are published at once; likewise.
        linger: most seconds for which deltas gather before they are sent; never more than a tenth
            of the max age.
        chunk_bytes: size at which a chunk is sent.
        buffer_bytes: most bytes not accepted yet.
        when_full: "block" until there is room or `full_timeout` is over, "raise" at once, or
            "conflate": drop what a newer set of the same key makes pointless, then block.
        full_timeout: seconds for which a full buffer blocks.
        keep_seconds: how long accepted chunks are kept, to be sent again if Redis forgets them.
        keep_bytes: most bytes of them.
        timestamps: send the wall clock of each delta, not only of each chunk.
        pending_bytes: most bytes that wait in one shard in Redis before it says BUSY.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        node: str | None = None,
        shards: int | None = None,
        local_delta_max_age: float | None = None,
        local_delta_max_count: int | None = None,
        linger: float | None = None,
        chunk_bytes: int | None = None,
        buffer_bytes: int | None = None,
        when_full: FullPolicy = "block",
        full_timeout: float | None = None,
        keep_seconds: float | None = None,
        keep_bytes: int | None = None,
        timestamps: bool = False,
        pending_bytes: int | None = None,
    ) -> None:
        self._settings = checked(
            shards=shards,
            local_delta_max_age=local_delta_max_age,
            local_delta_max_count=local_delta_max_count,
            linger=linger,
            chunk_bytes=chunk_bytes,
            buffer_bytes=buffer_bytes,
            full_timeout=full_timeout,
            keep_seconds=keep_seconds,
            keep_bytes=keep_bytes,
            pending_bytes=pending_bytes,
        )
        if when_full not in FULL_POLICIES:
            raise ConfigError([f"when_full={when_full!r}; allowed: {', '.join(FULL_POLICIES)}"])
        self.namespace = checked_name("namespace", namespace)
        self.node = checked_name("node", node) if node is not None else default_node()
        self._named = node is not None
        self.when_full = when_full
        self.full_timeout: float = self._settings["full_timeout"]
        self._own_age_ms = (
            None if local_delta_max_age is None else round(local_delta_max_age * 1000)
        )
        self._own_count = local_delta_max_count
        self._timestamps = timestamps
        self._token = secrets.token_hex(8)
        self._session = Session(url, self.namespace, shards)
        self._tasks: list[asyncio.Task[None]] = []
        self._wakes: list[asyncio.Event] = []
        self._progress = asyncio.Event()
        self._marks: dict[int, tuple[bytes, int]] = {}
        self._linger = 0.0
        self._reported_lost = 0
        self._counts = dict.fromkeys(("chunks", "bytes", "duplicates", "retries", "busy"), 0)
        # Another thread's calls need another way to wake the tasks; the sync face puts it here.
        self.wake: Callable[[int], object] = self.wake_here
        self.stopped: BrokerError | None = ClosedError("this producer is not open; call open()")
        self.buffer: ProducerBuffer

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect, join the namespace and take the node name.

        Raises:
            ConnectError, ServerUnfitError, EmbeddedError, NamespaceMismatchError: with the fix.
        """
        try:
            await self._session.connect()
            await self._session.make_or_join()
            await self._take_name()
        except BaseException:
            await self._session.close()
            raise
        self._wakes = [asyncio.Event() for _ in self._session.keys]
        self.stopped = None
        self._tasks = [
            asyncio.create_task(self._send_lane(shard), name=f"append-{shard}")
            for shard in range(self.shards)
        ]
        return self

    async def _take_name(self) -> None:
        settings = self._settings
        count = self._own_count or settings["local_delta_max_count"]
        self.buffer = ProducerBuffer(
            node=self.node,
            shards=self.shards,
            max_bytes=settings["buffer_bytes"],
            max_count=count,
            chunk_bytes=settings["chunk_bytes"],
            keep_s=settings["keep_seconds"],
            keep_bytes=settings["keep_bytes"],
        )
        for lane, keys in zip(self.buffer.lanes, self._session.keys, strict=True):
            lane.incarnation, _ = await self._session.commands.open(
                keys,
                self.node,
                None,
                self._token,
                chunk=0,
                deltas=0,
                epoch=os.urandom(EPOCH_BYTES),
            )
        age_ms = self._own_age_ms
        default = SETTINGS["local_delta_max_age"].default or 0.0
        self._learn(round(default * 1000) if age_ms is None else age_ms, count)

    @property
    def shards(self) -> int:
        """How many shards the namespace has."""
        return len(self._session.keys)

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, *_exc: object) -> None:
        """Close it, after what was buffered reached Redis."""
        await self.close()

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> None:  # noqa: ASYNC109 - same as sync
        """Send what is buffered, then disconnect. Calling it again does nothing.

        Args:
            timeout: seconds to try for.

        Raises:
            FlushTimeoutError: not everything was accepted in time; says how many deltas were not.
            FencedError, DataLostError: as `flush`.
        """
        if not self._tasks:
            self.stopped = self.stopped or ClosedError("this producer is closed")
            return
        try:
            await self.flush(timeout)
        finally:
            tasks, self._tasks = self._tasks, []
            self.stopped = ClosedError("this producer is closed; make a new one")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._leave()
            await self._session.close()

    async def _leave(self) -> None:
        """Forget a name that was made up for this process, so that they do not pile up."""
        if self._named or self.buffer.pending:
            return
        for lane, keys in zip(self.buffer.lanes, self._session.keys, strict=True):
            with suppress(BackendError):
                await self._session.commands.leave(keys, self.node, lane.incarnation, self._token)

    # -- writing ----------------------------------------------------------------------------------

    async def set(self, key: str, value: Value) -> None:
        """Set a key to a value.

        Raises:
            EncodeError: the key or value cannot be sent; nothing was buffered.
            BufferFullError: no room (in time).
            FencedError, ClosedError: this producer cannot write any more.
        """
        await self._put(OP_SET, key, value)

    async def delete(self, key: str) -> None:
        """Remove a key; removing an absent key is no error. Raises as `set`."""
        await self._put(OP_DELETE, key, None)

    async def increment(self, key: str, amount: float = 1) -> None:
        """Add a number to a key; an absent key counts as 0. Raises as `set`.

        Integers stay integers; with a float on either side the sum is a float. Where the key holds
        something else, or an integer would leave the 64-bit range, every replica refuses the delta
        and counts it.
        """
        await self._put(OP_INCREMENT, key, amount)

    async def set_many(self, mapping: Mapping[str, Value]) -> None:
        """Set many keys; those of one shard become visible at once. Raises as `set`."""
        groups = self.prepare_many(mapping)
        for group in groups:
            if not self.add_group(*group):
                await self.make_room(partial(self.add_group, *group))

    async def _put(self, op: int, key: str, value: Any) -> None:
        if not self.put(op, key, value):
            await self.make_room(partial(self.put, op, key, value))

    def put(self, op: int, key: str, value: Any) -> bool:
        """Buffer one delta from any thread; false if there is no room."""
        if self.stopped is not None:
            raise self.stopped
        size = admit_key(key)
        if op == OP_SET:
            value, value_size = admit(value)
            size += value_size
        elif op == OP_INCREMENT:
            value, size = admit_amount(value), size + STAMP_BYTES
        stamp = None
        if self._timestamps:
            stamp, size = round(time.time() * 1000), size + STAMP_BYTES
        shard = shard_of(key, self.shards)
        news = self.buffer.add(shard, op, key, value, size, stamp, time.monotonic())
        if news:
            self.wake(shard)
        return news is not None

    def prepare_many(
        self, mapping: Mapping[str, Value]
    ) -> list[tuple[int, list[str], list[Any], int]]:
        """Check a whole mapping before any of it is buffered; return it by shard."""
        if self.stopped is not None:
            raise self.stopped
        groups: dict[int, tuple[int, list[str], list[Any], int]] = {}
        extra = STAMP_BYTES if self._timestamps else 0
        for key, given in mapping.items():
            size = admit_key(key) + extra
            value, value_size = admit(given)
            shard = shard_of(key, self.shards)
            _, keys, values, total = groups.setdefault(shard, (shard, [], [], 0))
            keys.append(key)
            values.append(value)
            groups[shard] = (shard, keys, values, total + size + value_size)
        for _, keys, _, size in groups.values():
            self.buffer.check_group(len(keys), size)
        return list(groups.values())

    def add_group(self, shard: int, keys: list[str], values: list[Any], size: int) -> bool:
        """Buffer one shard's part of a `set_many` from any thread; false if there is no room."""
        if self.stopped is not None:
            raise self.stopped
        stamp = round(time.time() * 1000) if self._timestamps else None
        news = self.buffer.add_many(shard, keys, values, size, stamp, time.monotonic())
        if news:
            self.wake(shard)
        return news is not None

    async def make_room(self, retry: Callable[[], bool]) -> None:
        """Do what the policy says about a full buffer, until `retry` finds room.

        Raises:
            BufferFullError: policy "raise", or no room within `full_timeout`.
        """
        if self.when_full == "raise":
            raise BufferFullError(
                f"producer buffer is full ({self.buffer.max_bytes} bytes); slow down, raise "
                "buffer_bytes, or use when_full='block' or 'conflate'"
            )
        if self.when_full == "conflate" and self.buffer.conflate() and retry():
            return
        try:
            async with asyncio.timeout(self.full_timeout):
                while True:
                    self._progress.clear()
                    if retry():
                        return
                    await self._progress.wait()
        except TimeoutError:
            raise BufferFullError(
                f"producer buffer is still full ({self.buffer.max_bytes} bytes) after "
                f"{self.full_timeout:g} s; Redis does not take more: see `statebroker status`"
            ) from None

    def wake_here(self, shard: int) -> None:
        """Tell a lane's task, from the loop's own thread, that there is something to look at."""
        self._wakes[shard].set()

    # -- waiting ----------------------------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> Token:  # noqa: ASYNC109 - same as sync
        """Wait until Redis accepted everything written so far, without lingering.

        Args:
            timeout: seconds; None waits for ever.

        Returns:
            A token; `replica.wait_for(token)` returns once a replica shows all of it.

        Raises:
            FlushTimeoutError: not all accepted in time; it stays buffered and goes on.
            FencedError: another process took the node name.
            DataLostError: Redis lost accepted deltas that were no longer kept here; said once.
        """
        if self.stopped is not None:
            raise self.stopped
        tickets = self.buffer.close_all()
        for wake in self._wakes:
            wake.set()
        try:
            async with asyncio.timeout(timeout):
                while not self.buffer.settled(tickets):
                    self._progress.clear()
                    if self.stopped is not None:
                        raise self.stopped
                    if not self.buffer.settled(tickets):
                        await self._progress.wait()
        except TimeoutError:
            raise FlushTimeoutError(
                f"Redis has not accepted {self.buffer.pending} deltas within {timeout:g} s; they "
                "stay buffered and are sent as soon as it does"
            ) from None
        self._report_losses()
        return Token(dict(self._marks))

    def _report_losses(self) -> None:
        lost = sum(lane.lost for lane in self.buffer.lanes)
        news, self._reported_lost = lost - self._reported_lost, lost
        if news:
            raise DataLostError(news)

    def stats(self) -> dict[str, int]:
        """Return counters: `buffered = accepted + conflated + pending` at any moment."""
        lanes = self.buffer.lanes
        totals = {
            name: sum(getattr(lane, name) for lane in lanes)
            for name in ("buffered", "accepted", "conflated", "pending", "lost", "resent")
        }
        return totals | self._counts | {"buffer_bytes": self.buffer.bytes}

    # -- sending ----------------------------------------------------------------------------------

    async def _send_lane(self, shard: int) -> None:
        """Send one shard's chunks, one after the other, for as long as the producer lives."""
        wake, delay = self._wakes[shard], 0.0
        while True:
            wake.clear()
            packed, wait = self.buffer.next_chunk(
                shard, time.monotonic(), self._linger, round(time.time() * 1000)
            )
            try:
                if packed is not None:
                    delay = 0.0 if await self._send(shard, packed) else _longer(delay)
                elif not await _woken(wake, wait):
                    delay = 0.0
                    if wait is None:
                        await self._probe(shard)
            except FencedError as error:
                self._stop(error)
                return
            except BackendError as error:
                self._counts["retries"] += 1
                delay = _longer(delay)
                log.warning("append_failed node=%s shard=%d error=%s", self.node, shard, error)
            if delay:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def _send(self, shard: int, packed: Packed) -> bool:
        """Append one chunk; false if Redis could not take it now."""
        lane = self.buffer.lanes[shard]
        reply = await self._session.commands.append(
            self._session.keys[shard],
            self.node,
            lane.incarnation,
            self._token,
            number=packed.number,
            deltas=packed.deltas,
            waited_ms=max(0, round((time.monotonic() - packed.since) * 1000)),
            max_age_ms=self._own_age_ms,
            max_count=self._own_count,
            pending_limit=self._settings["pending_bytes"],
            chunk=packed.data,
        )
        if isinstance(reply, Accepted):
            self._counts["chunks"] += 1
            self._counts["bytes"] += len(packed.data)
            self._counts["duplicates"] += reply.duplicate
            self._marks[shard] = (reply.epoch, reply.append)
            self._learn(reply.max_age_ms, reply.max_count)
            self.buffer.accepted(shard, time.monotonic())
            self._progress.set()
            return True
        if isinstance(reply, Busy):
            self._counts["busy"] += 1
            return False
        await self._resume(shard, reply)
        return True

    async def _resume(self, shard: int, missing: Missing) -> None:
        """Redis forgot chunks: send again what is kept, count what is not."""
        lane = self.buffer.lanes[shard]
        base, deltas, lost = self.buffer.missing(
            shard, missing.number, missing.deltas, time.monotonic()
        )
        log.warning(
            "chunks_missing node=%s shard=%d from=%d resend_from=%d lost=%d",
            *(self.node, shard, missing.number, base + 1, lost),
        )
        # Also where nothing is lost: the record itself may be gone.
        await self._session.commands.open(
            self._session.keys[shard],
            self.node,
            lane.incarnation,
            self._token,
            chunk=base,
            deltas=deltas,
            epoch=os.urandom(EPOCH_BYTES),
        )
        self._progress.set()

    async def _probe(self, shard: int) -> None:
        """Ask whether Redis still has the last chunk; nobody else would notice that it has not."""
        lane = self.buffer.lanes[shard]
        held = await reads.last_chunk(self._session.client, self._session.keys[shard], self.node)
        incarnation, token, number, deltas = held or (0, "", 0, 0)
        if incarnation > lane.incarnation or (
            incarnation == lane.incarnation and token != self._token
        ):
            raise fenced(self.node, incarnation)
        if incarnation < lane.incarnation:
            number = deltas = 0
        if number < lane.number:
            await self._resume(shard, Missing(number + 1, deltas))

    def _learn(self, max_age_ms: int, max_count: int) -> None:
        """Take over the thresholds that the namespace has now."""
        self.buffer.max_count = max_count
        self._linger = min(self._settings["linger"], max_age_ms / 10_000)

    def _stop(self, error: BrokerError) -> None:
        self.stopped = error
        log.error("producer_stopped node=%s error=%s", self.node, error)
        self._progress.set()


PROBE_INTERVAL = 1.0


async def _woken(wake: asyncio.Event, wait: float | None) -> bool:
    """Wait for news or until the linger is over; false if the time passed without."""
    try:
        async with asyncio.timeout(PROBE_INTERVAL if wait is None else wait):
            await wake.wait()
    except TimeoutError:
        return False
    return True


def _longer(delay: float) -> float:
    return min(RETRY_MOST, max(RETRY_FIRST, delay * 2))
