"""The task per shard that appends a producer's chunks, and appends again those that Redis lost."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from broker.backend import queries
from broker.backend.commands import fenced_error
from broker.backend.replies import Accepted, Claim, Missing, NoDictionary
from broker.backend.session import Session
from broker.backend.stored import NodeRecord
from broker.core.buffer import ProducerBuffer
from broker.core.sent_chunks import Packed
from broker.engine.dictionaries import follow
from broker.engine.state_room import StateRoom
from broker.errors import BackendError, BrokerError, DamagedError, FencedError, WrongLoopError
from broker.protocol.constants import EPOCH_BYTES
from broker.runtime import clock
from broker.runtime.backoff import Backoff
from broker.runtime.outage_log import OutageLog
from broker.runtime.tasks import cancel_and_wait, is_set_within
from broker.stats.producer import ProducerStats

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_FIRST: Final = 0.02
RETRY_MAX: Final = 1.0
START_S: Final = 1.0  # for which shards that answer wait for those that do not (yet)
PROBE_INTERVAL: Final = 1.0
SEND_BYTES: Final = 1 << 20  # of chunks that are sent without waiting for replies in between
AHEAD_AFTER: Final = 0.0005  # seconds after which they are assumed to be sent
MAX_LINGER_SHARE: Final = 0.1  # of the max age
TOKEN_BYTES: Final = 8

# Makes the sender's event loop call a function, from any thread.
CallOnLoop = Callable[[Callable[[], object]], object]


def call_here(function: Callable[[], object]) -> None:
    """Call a function at once: for callers on the sender's loop."""
    function()


@dataclass(slots=True)
class _Counts:
    """Counters of appends; `ProducerStats` documents each."""

    chunks: int = 0
    bytes: int = 0
    bytes_saved: int = 0
    duplicates: int = 0
    retries: int = 0
    busy: int = 0


class Sender:
    """Gets a buffer's chunks accepted by Redis, exactly once and in order.

    Args:
        session: connected, namespace joined.
        node: this writer's name.
        settings: checked settings of the producer.
        max_age_ms: this node's own age threshold; None: the namespace's.
        max_count: likewise for the count.
        conflates: whether chunks leave out deltas that a newer one in the chunk overwrites.
        call_on_loop: for callers on other threads than the loop's.
    """

    def __init__(
        self,
        session: Session,
        node: str,
        settings: dict[str, Any],
        *,
        max_age_ms: int | None,
        max_count: int | None,
        conflates: bool = False,
        call_on_loop: CallOnLoop = call_here,
    ) -> None:
        self.node = node
        self.progress = asyncio.Event()
        self.marks: dict[int, tuple[bytes, int]] = {}
        self._counts = _Counts()
        self.stopped: BrokerError | None = None
        # Why nothing is accepted in a shard at the moment.
        self._troubles: dict[int, str] = {}
        self._wakes = [asyncio.Event() for _ in session.keys]
        self._call_on_loop = call_on_loop
        self._session = session
        self._settings = settings
        self._max_age_ms = max_age_ms
        self._max_count = max_count
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._linger = 0.0
        self._frames = session.frames if settings["compress"] else None
        self._following: asyncio.Task[None] | None = None
        self._ahead: dict[int, list[Packed]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._opening = OutageLog(log, "open_failed", f"node={node}")
        self._appending = OutageLog(log, "append_failed", f"node={node}")
        self.buffer = ProducerBuffer(
            node=node,
            shards=len(session.keys),
            max_bytes=settings["buffer_bytes"],
            max_count=max_count or settings["local_delta_max_count"],
            chunk_bytes=settings["chunk_bytes"],
            keep_s=settings["keep_seconds"],
            keep_bytes=settings["keep_bytes"],
            conflates=conflates,
            # The level, and not where readers may not know compressed chunks.
            level=settings["compress"] if self._frames is not None else 0,
        )
        self.room = StateRoom(session, self.buffer, node)

    async def start(self) -> None:
        """Begin in every shard that can be reached, and in the others as soon as they can be.

        Raises:
            BackendError: no shard can be reached.
        """
        loop = asyncio.get_running_loop()
        begun: list[asyncio.Future[None]] = [loop.create_future() for _ in self._wakes]
        for one in begun:
            # Where others succeed, nobody retrieves the error.
            one.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tasks = [
            asyncio.create_task(self._guard_lane(shard, one), name=f"append-{shard}")
            for shard, one in enumerate(begun)
        ]
        if self._frames is not None:
            following = follow(self._session, self.buffer, self._frames)
            self._following = asyncio.create_task(following, name="dictionaries")
            self._tasks.append(self._following)
        await asyncio.wait(begun, timeout=START_S)
        while not any(one.done() and one.exception() is None for one in begun):
            waiting = [one for one in begun if not one.done()]
            if not waiting:
                await self.stop()
                begun[0].result()
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    async def _guard_lane(self, shard: int, begun: asyncio.Future[None]) -> None:
        """Send one shard's chunks; whatever ends this makes later writes raise."""
        try:
            await self._run_lane(shard, begun)
        except asyncio.CancelledError:
            if self.stopped is None and not self._is_stopping:
                self.stopped = WrongLoopError(
                    "the event loop of this producer has ended, and what was not accepted by then "
                    "is lost; close it within its loop, and make a new one"
                )
                self.buffer.shut()
            raise
        except Exception as error:
            failure: BrokerError
            if isinstance(error, BrokerError):
                failure = error
            else:
                log.exception("append_task_failed node=%s shard=%d", self.node, shard)
                failure = BrokerError(f"appending ended by an error of its own: {error!r}"[:200])
            if not begun.done():
                begun.set_exception(failure)
            self._fail(failure)

    async def _run_lane(self, shard: int, begun: asyncio.Future[None]) -> None:
        """Take the node name in one shard, then send its chunks.

        Args:
            shard: number of the shard.
            begun: gets the result of the first attempt.
        """
        retry = Backoff(RETRY_FIRST, RETRY_MAX)
        while True:
            try:
                await self._open_lane(shard)
                break
            except BackendError as error:
                if not begun.done():
                    begun.set_exception(error)
                self._troubles[shard] = str(error)
                self._opening.failed(error, shard=shard)
            await asyncio.sleep(retry.next())
        self._opening.ended(shard)
        self._troubles.pop(shard, None)
        if not begun.done():
            begun.set_result(None)
        await self._send_lane(shard)

    async def _open_lane(self, shard: int) -> None:
        opened = await self._session.commands.open(
            self._session.keys[shard],
            self.node,
            None,
            self._token,
            chunk=0,
            deltas=0,
            epoch=await self._epoch(shard),
        )
        self.buffer.lanes[shard].begin(opened.incarnation)
        if opened.full:
            await self.room.look(shard)
        self._learn(
            opened.max_age_ms if self._max_age_ms is None else self._max_age_ms,
            opened.max_count if self._max_count is None else self._max_count,
        )

    def wake(self, shard: int) -> None:
        """Wake a shard's task; from any thread."""
        # Whoever closed it in between has sent what was buffered.
        with suppress(RuntimeError):
            self._call_on_loop(self._wakes[shard].set)

    def wake_all(self) -> None:
        """Wake every task; from the loop's own thread."""
        for wake in self._wakes:
            wake.set()

    @property
    def trouble(self) -> str | None:
        """Why nothing is accepted at the moment, for the errors of waiting callers; else None."""
        for shard, trouble in self._troubles.items():
            return f"shard {shard}: {trouble}" if len(self._wakes) > 1 else trouble
        return None

    @property
    def token(self) -> bytes:
        """Distinguishes this process from another one that claims the same name."""
        return self._token

    def stats(self) -> ProducerStats:
        """Return what was buffered and appended so far."""
        buffer, appends = self.buffer.counts(), self._counts
        return ProducerStats(
            buffered=buffer.buffered,
            accepted=buffer.accepted,
            conflated=buffer.conflated,
            pending=buffer.pending,
            lost=buffer.lost,
            resent=buffer.resent,
            buffer_bytes=buffer.buffer_bytes,
            chunks=appends.chunks,
            bytes=appends.bytes,
            bytes_saved=appends.bytes_saved,
            duplicates=appends.duplicates,
            retries=appends.retries,
            busy=appends.busy,
        )

    def claims(self) -> list[Claim]:
        """Return what Redis has accepted of this node, in the shards that were written to."""
        return [
            Claim(keys, lane.incarnation, number)
            for lane, keys, number in zip(
                self.buffer.lanes, self._session.keys, self.buffer.reached(), strict=True
            )
            if number
        ]

    async def stop(self) -> None:
        """Cancel the tasks; chunks in flight may or may not arrive."""
        self._is_stopping = True
        await cancel_and_wait(self._tasks)

    async def leave(self) -> None:
        """Remove a name that was generated for this process, so that such names do not pile up."""
        if self.buffer.pending:
            return
        for lane, keys in zip(self.buffer.lanes, self._session.keys, strict=True):
            if not lane.incarnation:
                continue
            with suppress(BackendError):
                await self._session.commands.leave(keys, self.node, lane.incarnation, self._token)

    async def _send_lane(self, shard: int) -> None:
        """Send one shard's chunks in order, until the producer is closed, or fenced anywhere."""
        wake, pause, asked = self._wakes[shard], 0.0, clock.now()
        retry = Backoff(RETRY_FIRST, RETRY_MAX)
        is_overwritten = False
        while self.stopped is None:
            wake.clear()
            wait = None
            try:
                if is_overwritten:
                    is_overwritten = False
                    await self._mend_record(shard)
                chunks = self._ahead.pop(shard, None)
                if not chunks:
                    # After a failure one alone, to see whether Redis takes any.
                    chunks, wait = self._next_chunks(shard, 1 if pause else SEND_BYTES)
                if chunks:
                    pause = 0.0 if await self._send(shard, chunks) else retry.next()
                    asked = clock.now()
                elif wait is None and clock.now() - asked >= PROBE_INTERVAL:
                    # Also where flushes without anything to send never let it rest.
                    await self._probe(shard)
                    pause, asked = 0.0, clock.now()
                elif not await is_set_within(wake, PROBE_INTERVAL if wait is None else wait):
                    pause = 0.0
            except FencedError as error:
                self._fail(error)
                return
            except BackendError as error:
                self._return(shard)
                is_overwritten = self._is_own_record(error, shard)
                self._troubles[shard] = str(error)
                self._counts.retries += 1
                pause = retry.next()
                self._appending.failed(error, shard=shard)
            if pause:
                await asyncio.sleep(pause)
            else:
                retry.reset()
                self._appending.ended(shard)

    def _next_chunks(self, shard: int, most: int = SEND_BYTES) -> tuple[list[Packed], float | None]:
        """Return the chunks to send together, or how long the next one may still wait."""
        chunks: list[Packed] = []
        wait, size = None, 0
        while size < most:
            packed, wait = self.buffer.next_chunk(
                shard, clock.now(), self._linger, round(time.time() * 1000)
            )
            if packed is None:
                break
            chunks.append(packed)
            # What packing them took, not what sending them will.
            size += len(packed.data) + packed.saved
        return chunks, wait

    async def _send(self, shard: int, chunks: Sequence[Packed]) -> bool:
        """Append chunks; false if Redis could not take all of them now."""
        appending = self._session.commands.append(
            self._session.keys[shard],
            self.node,
            self.buffer.lanes[shard].incarnation,
            self._token,
            chunks,
            now=clock.now(),
            max_age_ms=self._max_age_ms,
            max_count=self._max_count,
            pending_limit=self._settings["pending_bytes"],
        )
        is_full = False
        # A task costs 30 us, so packing ahead is worth it only in a backlog.
        is_behind = self.buffer.is_behind(shard)
        replies = await (self._packing_ahead(shard, appending) if is_behind else appending)
        for packed, reply in zip(chunks, replies, strict=True):
            if isinstance(reply, Accepted):
                self._accepted(shard, packed, reply)
                is_full = reply.is_full
                continue
            # The chunks after a refused one were refused as well.
            if isinstance(reply, Missing):
                self._ahead.pop(shard, None)
                await self._resume(shard, reply)
                return True
            self._return(shard)
            if isinstance(reply, NoDictionary):
                if self._frames is not None:
                    self.buffer.forgo_dictionary(shard, self._frames)
                return True
            limit = self._settings["pending_bytes"]
            self._troubles[shard] = reply.trouble(shard, len(packed.data), limit)
            self._counts.busy += 1
            return False
        await self.room.told(shard, is_full=is_full)
        return True

    async def _packing_ahead(self, shard: int, appending: Coroutine[Any, Any, T]) -> T:
        """Pack the next chunks while Redis executes these appends."""
        task = asyncio.create_task(appending)
        try:
            await asyncio.wait({task}, timeout=AHEAD_AFTER)
            if not task.done():
                self._ahead[shard], _ = self._next_chunks(shard)
            return await task
        finally:
            await cancel_and_wait([task])

    def _return(self, shard: int) -> None:
        self._ahead.pop(shard, None)
        self.buffer.requeue(shard)

    def _accepted(self, shard: int, packed: Packed, reply: Accepted) -> None:
        self._troubles.pop(shard, None)
        self._counts.chunks += 1
        self._counts.bytes += len(packed.data)
        self._counts.bytes_saved += packed.saved
        self._counts.duplicates += reply.duplicate
        self.marks[shard] = (reply.epoch, reply.append)
        self._learn(reply.max_age_ms, reply.max_count)
        self.buffer.accepted(shard, clock.now())
        self.progress.set()

    async def _resume(self, shard: int, missing: Missing) -> None:
        """Redis lost chunks: send the kept ones again, and count the others as lost."""
        if missing.number == 1 and await self._is_only_record_lost(shard):
            number = await self._write_record(shard)
            log.warning("record_deleted node=%s shard=%d chunk=%d", self.node, shard, number)
            return
        lane = self.buffer.lanes[shard]
        base, deltas, lost = self.buffer.rewind(shard, missing.number, missing.deltas, clock.now())
        log.warning(
            "chunks_missing node=%s shard=%d from=%d resend_from=%d lost=%d",
            *(self.node, shard, missing.number, base + 1, lost),
        )
        # After a FLUSHALL the namespace has to be made again.
        await self._session.create_or_join()
        # Also if nothing is lost: Redis may have lost the node's record.
        await self._session.commands.open(
            self._session.keys[shard],
            self.node,
            lane.incarnation,
            self._token,
            chunk=base,
            deltas=deltas,
            epoch=await self._epoch(shard),
        )
        self.progress.set()

    async def _is_only_record_lost(self, shard: int) -> bool:
        """Whether others deleted this node's record, and what it counted is still there."""
        mark = self.marks.get(shard)
        lost = await queries.records_lost(self._session.client, self._session.keys[shard])
        return mark is not None and lost is not None and mark[0] == lost[0] and mark[1] <= lost[1]

    async def _epoch(self, shard: int) -> bytes:
        """Return the epoch that a shard has, or begins with."""
        found = await queries.epoch_of(self._session.client, self._session.keys[shard])
        return found or os.urandom(EPOCH_BYTES)

    def _is_own_record(self, error: BackendError, shard: int) -> bool:
        """Whether this node's record cannot be read, which this node writes again."""
        key = self._session.keys[shard].intake
        return isinstance(error, DamagedError) and (error.key, error.field) == (key, self.node)

    async def _mend_record(self, shard: int) -> None:
        """Write the record again, unless the server came back without it: with less than it had."""
        try:
            await self._probe(shard)
        except DamagedError as error:
            if not self._is_own_record(error, shard):
                raise
            number = await self._write_record(shard)
            log.warning("record_overwritten node=%s shard=%d chunk=%d", self.node, shard, number)

    async def _write_record(self, shard: int) -> int:
        """Write the record of this node again, which others overwrote: Redis lost nothing else.

        Only if the reply to an append was lost at the same time, its chunk counts twice.
        """
        number, deltas = self.buffer.accepted_so_far(shard)
        await self._session.commands.open(
            self._session.keys[shard],
            self.node,
            self.buffer.lanes[shard].incarnation,
            self._token,
            chunk=number,
            deltas=deltas,
            epoch=await self._epoch(shard),
        )
        return number

    async def _probe(self, shard: int) -> None:
        """Check that Redis still has the last chunk; nothing else would detect its loss."""
        lane = self.buffer.lanes[shard]
        held = await queries.last_chunk(self._session.client, self._session.keys[shard], self.node)
        record = held.record if held else NodeRecord(0, b"", 0, 0)
        is_same = record.incarnation == lane.incarnation
        if record.incarnation > lane.incarnation or (is_same and record.token != self._token):
            raise fenced_error(self.node, record.incarnation)
        is_older = record.incarnation < lane.incarnation
        number, deltas = (0, 0) if is_older else (record.number, record.deltas)
        if number < lane.number:
            await self._resume(shard, Missing(number + 1, deltas))
        elif held and held.is_asked:
            await self._write_record(shard)
            log.info("record_kept node=%s shard=%d: this process lives", self.node, shard)
        await self.room.look_again(shard)

    def _learn(self, max_age_ms: int, max_count: int) -> None:
        """Use the thresholds that the namespace has now."""
        self.buffer.limit_count(max_count)
        self._linger = min(self._settings["linger"], max_age_ms / 1000 * MAX_LINGER_SHARE)

    def _fail(self, error: BrokerError) -> None:
        self.stopped = error
        self.buffer.shut()
        log.error("producer_stopped node=%s error=%s", self.node, error)
        # The tasks of the other shards, so that they end, too.
        self.wake_all()
        if self._following is not None:
            self._following.cancel()
        self.progress.set()
