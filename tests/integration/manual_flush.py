"""A flush worker that does single steps on request, and can lose packets on request."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Self, TypeVar

from broker.backend.replies import Drained, DrainLimits
from broker.backend.session import Session
from broker.protocol.codec import decode_packet
from broker.protocol.constants import BATCH_ID_BYTES, EPOCH_BYTES
from broker.protocol.messages import Batch
from broker.protocol.names import ShardKeys
from broker.sync.loop_thread import LoopThread
from tests.integration.running_workers import snapshot_worker
from workers.serve import connected
from workers.snapshot import Written

T = TypeVar("T")

NOBODY = "a channel that nobody listens to"


class ManualFlush:
    """Publishes the only shard of a namespace, which it makes if it does not exist.

    Args:
        url: of the server.
        namespace: with one shard.
    """

    def __init__(self, url: str, namespace: str) -> None:
        self._thread = LoopThread(f"manual flush of {namespace}")
        self._session = self._thread.call(connected(url, namespace, 1))

    @property
    def keys(self) -> ShardKeys:
        """The shard."""
        return self._session.keys[0]

    def drain(self, *, is_lost: bool = False, chunks: int = DrainLimits().batch_chunks) -> Drained:
        """Publish what is due as one batch, on an unused channel if lost; the log has it.

        Args:
            is_lost: whether nobody gets it.
            chunks: at most so many.
        """

        async def step(session: Session) -> Drained:
            keys = replace(self.keys, channel=NOBODY) if is_lost else self.keys
            batch_id = os.urandom(BATCH_ID_BYTES)
            limits = DrainLimits(batch_chunks=chunks)
            reply = await session.commands.drain(keys, 0, batch_id, limits)
            assert isinstance(reply, Drained), reply
            return reply

        return self._do(step)

    def beat(self) -> None:
        """Publish a heartbeat."""
        self._do(
            lambda session: session.commands.heartbeat(
                self.keys, 0, 0, os.urandom(EPOCH_BYTES), "manual", max_age_ms=None, max_count=None
            )
        )

    def publish(self, data: bytes) -> None:
        """Publish any bytes on the shard's channel."""
        self._execute("PUBLISH", self.keys.channel, data)

    def logged(self, offset: int) -> bytes:
        """Return a batch of the log as it was published."""
        entry = f"{offset}-0"
        ((_, fields),) = self._execute("XRANGE", self.keys.log, entry, entry)
        data: bytes = fields[b"b"]
        return data

    def batch(self, offset: int) -> Batch:
        """Return a batch of the log."""
        packet = decode_packet(self.logged(offset))
        assert isinstance(packet, Batch)
        return packet

    def snapshot(self, *, is_lost: bool = False) -> Written | None:
        """Write the full state up to the head; its notice may be lost."""

        async def write(session: Session) -> Written | None:
            worker = snapshot_worker(session)
            if is_lost:
                worker._keys = replace(self.keys, channel=NOBODY)
            written = await worker.write_once()
            await worker.release()
            return written

        return self._do(write)

    def cut_log(self, offset: int) -> None:
        """Remove the log up to an offset."""
        self._execute("XTRIM", self.keys.log, "MINID", f"{offset + 1}-0")

    def _execute(self, *command: str | bytes) -> Any:
        async def execute(session: Session) -> Any:
            return await session.client.execute_command(*command)  # type: ignore[no-untyped-call]

        return self._do(execute)

    def _do(self, step: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        return self._thread.call(step(self._session))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._thread.call(self._session.close())
        self._thread.stop()
