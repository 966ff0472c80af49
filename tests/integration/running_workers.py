"""The workers of a test, as in production, on a thread with its own event loop."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from broker.backend.replies import DrainLimits
from broker.backend.session import Session
from broker.protocol.state_bounds import StateBounds
from broker.runtime.tasks import cancel_and_wait
from broker.sync.loop_thread import LoopThread
from workers.flush import FlushWorker
from workers.scheduler import Scheduler
from workers.serve import connected
from workers.snapshot import SnapshotWorker, Written

STOP_SECONDS = 5.0

NewServing = Callable[..., "Serving"]


class Serving:
    """Flush workers, and a scheduler if wanted, of one namespace until `stop` or `kill`.

    Args:
        url: of a running server.
        namespace: made if it does not exist.
        shards: to make it with; None takes what it has, or 1.
        flushers: how many flush workers.
        max_age: seconds, `local_delta_max_age`.
        max_count: `local_delta_max_count`.
        heartbeat: seconds, short so that tests are.
        limits: of batches and log.
        interval: seconds between full states; None for no scheduler.
        log_retention: seconds.
        log_limit: bytes.
        bounds: of the state of a shard; None for none.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        shards: int | None = None,
        flushers: int = 1,
        max_age: float | None = 0.01,
        max_count: int | None = 1000,
        heartbeat: float = 0.1,
        limits: DrainLimits | None = None,
        interval: float | None = None,
        log_retention: float = 60.0,
        log_limit: int = 256 << 20,
        bounds: StateBounds | None = None,
    ) -> None:
        self._ended = False
        self._stop = asyncio.Event()
        self._thread = LoopThread(f"workers of {namespace}")
        try:
            self.session = self._thread.call(connected(url, namespace, shards))
        except BaseException:
            self._thread.stop()
            raise
        self.flushers = [
            FlushWorker(
                self.session,
                unique("f"),
                heartbeat_interval=heartbeat,
                max_age=max_age,
                max_count=max_count,
                limits=limits,
            )
            for _ in range(flushers)
        ]
        self.scheduler: Scheduler | None = None
        if interval is not None:
            self.scheduler = Scheduler(
                self.session,
                unique("s"),
                interval=interval,
                log_retention=log_retention,
                log_limit=log_limit,
                bounds=bounds,
            )
        parts: list[Any] = [*self.flushers, *([self.scheduler] if self.scheduler else [])]
        self._tasks = self._thread.call(self._start(parts))

    async def _start(self, parts: list[Any]) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(part.run(self._stop)) for part in parts]

    def stop(self) -> None:
        """Stop in order, as on SIGTERM; an error of a worker is raised here."""
        self._end(self._finish)

    def kill(self) -> None:
        """Cancel the workers at any point."""
        self._end(self._cancel)

    def _end(self, how: Callable[[], Any]) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            self._thread.call(how())
        finally:
            self._thread.stop()

    async def _finish(self) -> None:
        self._stop.set()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*self._tasks)
        finally:
            await self._cancel()

    async def _cancel(self) -> None:
        await cancel_and_wait(self._tasks)
        await self.session.close()


def unique(prefix: str) -> str:
    """Return a unique name."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def joined(url: str, namespace: str, shards: int | None = None) -> AsyncIterator[Session]:
    """Open a session as the workers have it."""
    session = await connected(url, namespace, shards)
    try:
        yield session
    finally:
        await session.close()


def snapshot_worker(
    session: Session,
    shard: int = 0,
    *,
    holder: str | None = None,
    lease_ttl: float = 5.0,
    log_retention: float = 60.0,
    log_limit: int = 256 << 20,
) -> SnapshotWorker:
    """Return a snapshot worker with a unique name."""
    return SnapshotWorker(
        session,
        shard,
        holder or unique("s"),
        lease_ttl=lease_ttl,
        log_retention=log_retention,
        log_limit=log_limit,
    )


def write_snapshots(url: str, namespace: str, **settings: Any) -> list[Written | None]:
    """Write every shard's full state up to its head, with a scheduler that ends afterwards."""

    async def write() -> list[Written | None]:
        written = []
        async with joined(url, namespace) as session:
            for shard in range(len(session.keys)):
                worker = snapshot_worker(session, shard, **settings)
                written.append(await worker.write_once())
                await worker.release()
        return written

    return asyncio.run(write())
