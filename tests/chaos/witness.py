"""Read the log directly from the server, and record the actual history."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from broker.backend import queries
from broker.backend.connections import Connections, translated
from broker.backend.stored import INTAKE_HEAD, IntakeHead, intake_head, queue_entry
from broker.backend.subscription import Subscription
from broker.core.bulk_chunks import BulkChunks
from broker.engine.dictionaries import learn_for
from broker.errors import BackendError, DecodeError
from broker.protocol.codec import decode_chunk, decode_packet, encode_chunk
from broker.protocol.constants import NO_ID
from broker.protocol.frames import FrameReader, dictionary_for
from broker.protocol.messages import Batch, Packet
from broker.protocol.names import ShardKeys
from broker.runtime.tasks import cancel_and_wait
from broker.testing.journal import Journal
from broker.testing.records import Balanced, Headed, Logged, Measured, ShardPosition
from tests.chaos.keyspace import SHARDS

POLL_S = 0.03
PAGE = 256
MEASURE_EVERY_S = 0.5
_MEASURED = ("pending_bytes", "log_bytes")


class Witness:
    """Follows the log of every shard, without a proxy.

    Args:
        url: of the server itself, not of a proxy.
        namespace: which state.
        journal: gets what is read.
        limits: of pending bytes and log bytes in a shard.
    """

    def __init__(self, url: str, namespace: str, journal: Journal, limits: tuple[int, int]) -> None:
        self.heads: dict[int, ShardPosition] = {}
        self._connections = Connections(url)
        self._client = self._connections.commands()
        self._frames = FrameReader()
        self._keys = [ShardKeys.of(namespace, shard, SHARDS) for shard in range(SHARDS)]
        self._journal = journal
        self._limits = limits
        self._at: dict[int, ShardPosition] = {}
        self._measure_at = 0.0
        # Begins and ends of blocks in which others overwrite what is measured.
        self._overwritings = 0
        self._known: set[ShardPosition] = set()
        self._bulk = {keys.bulk.encode(): BulkChunks() for keys in self._keys}
        self._bulk_of = {keys.channel.encode(): keys.bulk.encode() for keys in self._keys}

    async def run(self) -> None:
        """Watch until cancelled."""
        channels = [*self._bulk, *(keys.channel.encode() for keys in self._keys)]
        listening = asyncio.create_task(Subscription(self._connections, channels, self).run())
        try:
            while True:
                with suppress(BackendError):
                    for shard in range(SHARDS):
                        await self._read_log(shard)
                    await self._measure()
                await asyncio.sleep(POLL_S)
        finally:
            await cancel_and_wait([listening])
            await self._connections.close()

    @contextmanager
    def not_measuring(self) -> Iterator[None]:
        """Measure nothing in a block in which others overwrite what is measured."""
        self._overwritings += 1
        try:
            yield
        finally:
            self._overwritings += 1

    async def ready(self) -> None:
        """Subscribe at any time."""

    def on_subscribed(self, channel: bytes) -> None:
        """Ignore it: missed packets are in the log."""

    def on_disconnect(self, channels: Collection[bytes], error: BackendError | None) -> None:
        """Ignore it: the subscription reconnects."""

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Record published packets too: a log that is cut at once would not show them."""
        if channel in self._bulk:
            self._bulk[channel].add(data)
            return
        bulk = self._bulk[self._bulk_of[channel]].take()
        # A bulk chunk from before the subscription is in the log.
        with suppress(DecodeError):
            packet = decode_packet(data, bulk)
            # What needs a dictionary is recorded from the log.
            if not isinstance(packet, Batch) or not self._frames.lacks_for(packet.chunks):
                self._record(packet)

    def _record(self, packet: Packet) -> ShardPosition:
        place = ShardPosition(packet.shard, packet.epoch, packet.offset, packet.id)
        if isinstance(packet, Batch) and place not in self._known:
            self._known.add(place)
            originals = tuple(packet.chunks)
            chunks = tuple(map(self._openable, originals))
            head = (monotonic(), place, packet.previous_id, packet.deltas)
            self._journal.write(Logged(*head, chunks, () if chunks == originals else originals))
        return place

    def _openable(self, chunk: bytes) -> bytes:
        """The same chunk, as who reads the journal can open it without a dictionary."""
        if dictionary_for(chunk):
            with suppress(DecodeError):
                return encode_chunk(decode_chunk(chunk, self._frames))
        return chunk

    async def _read_log(self, shard: int) -> None:
        """Read new batches of a shard; the whole log after the history was rewritten."""
        at = self._at.get(shard, ShardPosition(shard, b""))
        while True:
            asked = monotonic()
            page = await queries.log_page(self._client, self._keys[shard], at.offset, PAGE)
            if page.head is None:
                return
            await learn_for(self._client, self._keys[shard], self._frames, page.entries)
            head = ShardPosition(
                shard,
                page.head.position.epoch,
                page.head.position.offset,
                page.head.position.batch_id,
            )
            if at.epoch != head.epoch or head.offset < at.offset:
                at = ShardPosition(shard, head.epoch)
                continue
            for entry in page.entries:
                batch = decode_packet(entry.packet, entry.bulk)
                place = self._record(batch)
                if batch.previous_id != at.id and at.offset:
                    at = ShardPosition(shard, head.epoch)
                    break
                at = place
            else:
                if at.offset < head.offset and page.entries:
                    continue
                if at != head and at.offset:
                    at = ShardPosition(shard, head.epoch)
                    continue
                self._at[shard] = self.heads[shard] = head
                self._journal.write(Headed(asked, monotonic(), head))
                return

    async def _measure(self) -> None:
        if monotonic() < self._measure_at:
            return
        self._measure_at = monotonic() + MEASURE_EVERY_S
        for shard, keys in enumerate(self._keys):
            before = self._overwritings
            async with translated("measuring"):
                pipe = self._client.pipeline(transaction=True)
                pipe.hgetall(keys.meta)
                pipe.hget(keys.intake, INTAKE_HEAD)
                pipe.lrange(keys.queue, 0, -1)
                meta, intake, elements = await pipe.execute()
            if before % 2 or self._overwritings != before:
                return
            now = monotonic()
            head = intake_head(intake)
            values = (head.pending_bytes if head else 0, int(meta.get(b"log_bytes", 0)))
            for what, value, limit in zip(_MEASURED, values, self._limits, strict=True):
                self._journal.write(Measured(now, what, value, limit))
            if b"epoch" in meta and head is not None:
                self._journal.write(_balance(now, shard, meta, head, elements))


def _balance(
    now: float,
    shard: int,
    meta: dict[bytes, bytes],
    head: IntakeHead,
    elements: list[bytes],
) -> Balanced:
    return Balanced(
        now,
        ShardPosition(shard, meta[b"epoch"], int(meta.get(b"offset", 0)), meta.get(b"id", NO_ID)),
        head.accepted,
        int(meta.get(b"published", 0)),
        in_queue=sum(entry.deltas for one in elements if (entry := queue_entry(one))),
    )
