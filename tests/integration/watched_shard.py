"""One shard, watched closely: a served namespace, one producer, schedulers made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import redis

from broker import Inspector, Producer, Replica
from broker.backend import queries
from broker.backend.session import Session
from broker.protocol.names import ShardKeys
from broker.stats import ShardStats
from broker.testing.waiting import eventually
from tests.integration.exact_content import packed
from tests.integration.running_workers import joined, snapshot_worker, write_snapshots
from workers.snapshot import SnapshotWorker, Written


class WatchedShard:
    """A served namespace with one producer, whose schedulers a test runs step by step."""

    def __init__(self, url: str, namespace: str, producer: Producer, inspector: Inspector) -> None:
        self.url = url
        self.namespace = namespace
        self.producer = producer
        self.inspector = inspector

    def publish(self) -> None:
        """Wait until everything written so far is in the log."""
        self.producer.flush(10)
        eventually(lambda: self.shard.pending_deltas == 0)

    @property
    def shard(self) -> ShardStats:
        """The status of the only shard."""
        return self.inspector.status().shards[0]

    def write(self, **settings: Any) -> Written | None:
        """Bring the full state up to the head."""
        return write_snapshots(self.url, self.namespace, **settings)[0]

    def run(self, scenario: Callable[[Session], Awaitable[None]]) -> None:
        """Run a scenario on a session as the workers have it."""

        async def run() -> None:
            async with joined(self.url, self.namespace) as session:
                await scenario(session)

        asyncio.run(run())

    def agree(self) -> dict[str, Any]:
        """Check that full state, log and a new replica agree, and return the content."""
        state = self.inspector.state()
        assert packed(self.inspector.folded()) == packed(state)
        with Replica(self.url, namespace=self.namespace) as replica:
            replica.wait_live(10)
            assert packed(replica) == packed(state)
        return state


async def folded_by(worker: SnapshotWorker, session: Session) -> Any:
    """Return the net changes that a scheduler would write now."""
    head = (await queries.log_page(session.client, session.keys[0], 0, 0)).head
    assert head is not None
    return (await worker._fold(head.snapshot, head))[0]


async def half_written(session: Session) -> None:
    """Run a scheduler that is killed between its pages and its commit."""
    worker = snapshot_worker(session)
    assert await worker.renew()
    await worker._write_pages(await folded_by(worker, session))
    # As if it had expired: a short time to live would also end while the pages are written.
    await session.client.delete(session.keys[0].lease)


def first_logged(raw: redis.Redis, keys: ShardKeys) -> int:
    """Return the offset of the oldest batch in the log; 0 if it is empty."""
    entries: Any = raw.xrange(keys.log, count=1)
    return int(entries[0][0].partition(b"-")[0]) if entries else 0
