"""The reads that a shard of a replica requests: the log, or the full state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from broker.backend import page_sizes, queries
from broker.backend.conditions import ensure_no_eviction
from broker.backend.queries import StateMarks
from broker.backend.session import Session
from broker.core.effects import Effect, LoadState, Read, ReadLog, StopReading
from broker.core.load_sums import LoadSums
from broker.core.shard import ShardState
from broker.engine.dictionaries import learn_for
from broker.errors import BackendError, DecodeError
from broker.protocol.digest import Digest
from broker.runtime import clock
from broker.runtime.backoff import Backoff
from broker.runtime.outage_log import OutageLog
from broker.runtime.tasks import cancel_and_wait

log = logging.getLogger(__name__)

RETRY_FIRST: Final = 0.02
RETRY_MAX: Final = 2.0
# The log is read by replicas that were live until now: a short outage must not become a long one.
LOG_RETRY_MAX: Final = 0.1
CREATION_RETRY_MAX: Final = 0.5
MEMORY_FIX: Final = "give the process more memory: it holds the whole state of the namespace"


class Recovery:
    """Carries out one shard's reads, one at a time; only the newest request counts.

    Args:
        session: connected, the namespace known.
        shard: the shard that requests the reads.
        give: carries out the effects of a result.
        is_watched: whether there are readers of changes.
        outage: of all shards.
    """

    def __init__(
        self,
        session: Session,
        shard: ShardState,
        give: Callable[[ShardState, Sequence[Effect]], None],
        is_watched: Callable[[], bool],
        outage: OutageLog,
    ) -> None:
        self._session = session
        self._outage = outage
        self._keys = session.keys[shard.shard]
        self._shard = shard
        self._give = give
        self._is_watched = is_watched
        # From 0 on: many replicas may need a load at the same moment.
        self._reload = Backoff(2 * RETRY_FIRST, RETRY_MAX, least=0.0)
        self._request: Read | None = None
        self._task: asyncio.Task[None] | None = None

    def request(self, read: Read | StopReading) -> None:
        """Replace the current request by this one, or by none."""
        self._request = None if isinstance(read, StopReading) else read
        if self._request is not None and self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"recover-{self._shard.shard}")

    async def stop(self) -> None:
        """Stop reading."""
        self._request = None
        await cancel_and_wait([self._task])

    async def _run(self) -> None:
        retry = Backoff(RETRY_FIRST, RETRY_MAX)
        try:
            while (request := self._request) is not None:
                longest = await self._attempt(request)
                if longest:
                    await asyncio.sleep(retry.next(longest))
                else:
                    retry.reset()
                    self._outage.ended(self._shard.shard)
        finally:
            # No await since the last check of the request: the next one starts another task.
            self._task = None

    async def _attempt(self, request: Read) -> float:
        """Carry out a request once; return 0, or the longest pause before it is tried again."""
        try:
            if isinstance(request, ReadLog):
                await self._read_log(request)
                return 0.0
            return 0.0 if await self._load(request) else CREATION_RETRY_MAX
        except (BackendError, DecodeError) as error:
            self._shard.trouble = str(error)
            self._outage.failed(error, shard=self._shard.shard)
            return LOG_RETRY_MAX if isinstance(request, ReadLog) else RETRY_MAX
        except MemoryError:
            self._give(self._shard, self._shard.out_of_memory())
            self._outage.failed(
                MemoryError("memory_exhausted"), shard=self._shard.shard, fix=f" fix={MEMORY_FIX}"
            )
            return RETRY_MAX

    async def _read_log(self, request: ReadLog) -> None:
        asked_at = clock.now()
        page = await queries.log_page(
            self._session.client, self._keys, request.after.offset, page_sizes.LOG_OF_REPLICA
        )
        await learn_for(self._session.client, self._keys, self._session.frames, page.entries)
        if self._request is request:
            # It is done: the shard requests again what it still needs.
            self._request = None
            self._give(
                self._shard,
                self._shard.log_page(page.head, page.entries, asked_at, watched=self._is_watched()),
            )

    async def _load(self, request: LoadState) -> bool:
        """Read the full state once; false if the shard does not exist yet."""
        client, keys, shard = self._session.client, self._keys, self._shard
        if request.attempt:
            await asyncio.sleep(self._reload.next())
        else:
            self._reload.reset()
        before = await ensure_no_eviction(client, keys)
        # Before the head: another server's head may be ahead of this one's pages.
        identity = await queries.server_identity(client, keys)
        marks = await queries.state_marks(client, keys)
        head = (await queries.log_page(client, keys, 0, 0)).head
        if head is None:
            return False
        if self._request is not request:
            return True
        self._give(shard, shard.begin_load(head))
        sums = LoadSums()
        async for names, fields in queries.state_pages(client, keys, identity):
            if self._request is not request:
                return True
            sums.add(names, fields)
            shard.load_page(names, fields)
        after = await queries.state_marks(client, keys)
        altered = _altered(sums, marks, after)
        if shard.tables is not None:
            of_tables = await queries.table_fields(client, keys, identity)
            if of_tables and (after is None or await queries.state_marks(client, keys) != marks):
                # A scheduler wrote meanwhile: the self-check compares them soon.
                after, altered = None, altered or None
            if self._request is not request:
                return True
            shard.load_tables(of_tables, None if after is None else after.tables_digest)
        await ensure_no_eviction(client, keys, before)
        if self._request is not request:
            return True
        self._request = None
        self._give(shard, shard.end_load(altered))
        return True


def _altered(
    sums: LoadSums, before: StateMarks | None, after: StateMarks | None
) -> frozenset[int] | None:
    """Return the key ranges in which a load is not what schedulers wrote; None: not known.

    Args:
        sums: of the load.
        before: read before the first field.
        after: read after the last one.
    """
    loaded = None if after is None else sums.digest()
    if after is None or loaded is None:
        return None
    if after.digest is None:
        # Before the first full state there is nothing to compare.
        return frozenset() if after.fold_to == 0 and loaded == Digest() else None
    found = loaded.differing(after.digest)
    # A scheduler that wrote meanwhile explains a difference, too.
    return frozenset(found) if not found or before == after else None
