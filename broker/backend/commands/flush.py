"""The commands of flush workers: publish batches and heartbeats, record the worker's health."""

from __future__ import annotations

from typing import Final

from broker.backend.commands.scripts import Scripts
from broker.backend.connections import translated
from broker.backend.replies import Drained, DrainLimits, LogFull, NotDue
from broker.protocol.names import ShardKeys

MAX_REASON_CHARS: Final = 300


class FlushCommands(Scripts):
    """What a flush worker calls."""

    async def drain(
        self,
        keys: ShardKeys,
        shard: int,
        batch_id: bytes,
        limits: DrainLimits,
    ) -> Drained | NotDue | LogFull:
        """Publish the due chunks as one batch."""
        reply = await self.run(
            "drain",
            [keys.meta, keys.intake, keys.queue, keys.log],
            keys.channel,
            keys.bulk,
            self.publish,
            shard,
            batch_id,
            limits.batch_bytes,
            limits.batch_chunks,
            limits.log_bytes,
        )
        status = reply[0]
        if status == b"BATCH":
            return Drained(*reply[1:])
        return LogFull(reply[1]) if status == b"LOGFULL" else NotDue(reply[1])

    async def heartbeat(
        self,
        keys: ShardKeys,
        shard: int,
        interval_ms: int,
        epoch: bytes,
        worker: str,
        *,
        max_age_ms: int | None,
        max_count: int | None,
        reason: str = "",
    ) -> tuple[int, int]:
        """Publish the head if the shard was quiet for `interval_ms`; record the worker's health.

        Args:
            keys: the shard.
            shard: its number.
            interval_ms: how long nothing must have been published.
            epoch: used if the shard has none yet.
            worker: name of the caller.
            max_age_ms: new age threshold of the namespace; None leaves it unchanged.
            max_count: new count threshold, likewise.
            reason: why the worker is red; empty if it is green.

        Returns:
            (ms until the next heartbeat is due, ms until something pending is due or -1).
        """
        reply = await self.run(
            "heartbeat",
            [keys.meta, keys.intake, keys.queue, keys.workers],
            keys.channel,
            self.publish,
            shard,
            interval_ms,
            epoch,
            worker,
            "flush",
            "" if max_age_ms is None else max_age_ms,
            "" if max_count is None else max_count,
            one_line(reason),
        )
        return reply[0], reply[1]

    async def remove_worker(self, keys: ShardKeys, worker: str) -> None:
        """Remove the record of a worker that shut down."""
        async with translated("removing the worker"):
            await self.client.hdel(keys.workers, worker)


def one_line(reason: str) -> str:
    """Return a reason as the workers hash holds it: one line of limited length."""
    return " ".join(reason.split())[:MAX_REASON_CHARS]
