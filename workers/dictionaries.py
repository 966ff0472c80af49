"""Trains dictionaries for compressed chunks from the log of the first shard, and spreads them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from broker.backend import page_sizes, queries
from broker.backend.replies import Lease
from broker.backend.session import Session
from broker.engine import dictionaries
from broker.errors import BrokerError, DecodeError
from broker.protocol.codec import content_in, decode_head, decode_packet
from broker.protocol.constants import FIRST_DICTIONARY
from broker.protocol.dictionaries import MAX_DICTIONARIES, content_of
from broker.protocol.frames import FrameReader, FrameWriter, size_within, trained
from broker.protocol.messages import Batch, Packet
from broker.protocol.names import ShardKeys
from broker.runtime import clock
from broker.runtime.outage_log import OutageLog

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0
LOOKS_A_CHECK: Final = 12  # after so many it looks at the dictionaries of all shards
ROTATE_S: Final = 3600.0  # between two dictionaries
BYTES: Final = 32 << 10
SAMPLES: Final = 4000
MIN_SAMPLES: Final = 200
MIN_SAMPLE_BYTES: Final = 256 << 10
SAMPLE_BYTES: Final = 4 << 20
LARGEST_SAMPLE: Final = 16 << 10  # larger chunks repeat enough in themselves
BATCHES: Final = 500  # of the log, read for samples
READ_BYTES: Final = 16 << 20  # of them, at most
FEW_S: Final = 60.0  # max time between two looks while there are too few samples
HELD_OUT: Final = 5  # one of so many samples is not trained with, but judged with
SLACK_S: Final = 3600.0  # of clocks, and of producers that did not look for a while
WORTH: Final = 0.8  # of the bytes with the dictionary before, or none
_EPOCH_S: Final = 1_577_836_800  # 2020-01-01: numbers grow with the clock, and fit until 2088


class DictionaryKeeper:
    """Gives each shard that this scheduler writes the newest dictionary of the namespace.

    The first shard leads: who holds its lease trains, and all copy from it.

    Args:
        session: connected, the namespace joined.
        name: of this scheduler.
        fence: returns the fencing number of a shard's lease; 0: not held.
    """

    def __init__(self, session: Session, name: str, fence: Callable[[int], int]) -> None:
        self._session = session
        self._name = name
        self._fence = fence
        self._outage = OutageLog(log, "dictionary_failed", f"worker={name}")
        self._number = 0
        self._spread = 0
        self._looks = 0
        self._judged_at = 0
        self._next_at = 0.0
        self._pause = LOOK_S

    async def run(self) -> None:
        """Look once in a while, until cancelled."""
        frames = self._session.frames
        while frames is not None:
            try:
                await self.look(frames)
                self._outage.ended(0)
            except (BrokerError, DecodeError, MemoryError) as error:
                self._outage.failed(error, shard=0)
            await asyncio.sleep(LOOK_S)

    async def look(self, frames: FrameReader) -> None:
        """Train a dictionary if that would save enough, and copy the newest where it is missing.

        Raises:
            BackendError: Redis failed.
        """
        keys = self._session.keys
        held = [shard for shard in range(len(keys)) if self._fence(shard)]
        if not held:
            return
        number = await self._newest(keys[0], frames)
        if 0 in held and clock.now() >= self._next_at:
            number = await self._train(frames, keys[0], number) or number
        dictionary = frames.dictionary(number)
        self._looks += 1
        if not number or dictionary is None:
            return
        if number == self._spread and self._looks % LOOKS_A_CHECK:
            return
        for shard in held:
            if not await self._is_there(keys[shard], number):
                await self._add(shard, number, dictionary)
        self._spread = number

    async def _newest(self, keys: ShardKeys, frames: FrameReader) -> int:
        """Return the newest dictionary of a shard that can be read, or that is remembered."""
        client = self._session.client
        for number in reversed(await queries.dictionaries_held(client, keys)):
            if frames.dictionary(number) is None:
                await dictionaries.learn(client, keys, frames, [number])
            if frames.dictionary(number) is not None:
                self._number = max(number, self._number)
                break
        return self._number

    async def _is_there(self, keys: ShardKeys, number: int) -> bool:
        """Whether a shard lists what it holds, this dictionary as the newest, which is whole."""
        client = self._session.client
        held = await queries.dictionaries_held(client, keys)
        if held[-1:] != (number,) or held != await queries.dictionary_numbers(client, keys):
            return False
        return (await queries.dictionaries(client, keys, [number]))[number] is not None

    async def _train(self, frames: FrameReader, keys: ShardKeys, number: int) -> int:
        """Return the number of a new dictionary; 0 if there is none that would save enough."""
        head = (await queries.log_page(self._session.client, keys, 0, 0)).head
        if head is None or head.position.offset == self._judged_at:
            return 0
        self._judged_at = head.position.offset
        samples = await self._samples(frames, keys)
        are_few = len(samples) < MIN_SAMPLES or sum(map(len, samples)) < MIN_SAMPLE_BYTES
        # Where there is too little, or it does not pay, it is tried again ever more rarely.
        self._pause = min(2 * self._pause, FEW_S if are_few else ROTATE_S)
        self._next_at = clock.now() + self._pause
        if are_few:
            return 0
        new = max(number + 1, FIRST_DICTIONARY, int(time.time()) - _EPOCH_S)
        before = frames.dictionary(number) if number else b""
        made, share = await asyncio.to_thread(_judged, samples, new, before or b"")
        if share > WORTH or not await self._add(0, new, made):
            log.info("dictionary_judged number=%d share=%.2f", number, share)
            return 0
        frames.learn(new, made)
        self._pause = LOOK_S
        self._next_at = clock.now() + ROTATE_S
        log.info("dictionary_added number=%d bytes=%d share=%.2f", new, len(made), share)
        return new

    async def _samples(self, frames: FrameReader, keys: ShardKeys) -> list[bytes]:
        """Return contents of the newest chunks, as far as they can be read."""
        client = self._session.client
        samples: list[bytes] = []
        after, size, read = max(0, self._judged_at - BATCHES), 0, 0
        while len(samples) < SAMPLES and size < SAMPLE_BYTES and read < READ_BYTES:
            page = await queries.log_page(client, keys, after, page_sizes.LOG_OF_SCHEDULER)
            if not page.entries:
                break
            await dictionaries.learn_for(client, keys, frames, page.entries)
            for entry in page.entries:
                read += entry.size
                # A batch that cannot be read is the business of others, as its chunks are.
                with suppress(DecodeError):
                    found = _contents(decode_packet(entry.packet, entry.bulk), frames)
                    samples += found
                    size += sum(map(len, found))
                await asyncio.sleep(0)
            try:
                last = decode_head(page.entries[-1].packet)
            except DecodeError:
                break
            if last is None or last.offset <= after:
                break
            after = last.offset
        return samples

    async def _add(self, shard: int, number: int, dictionary: bytes) -> bool:
        """Store a dictionary in a shard; false if the lease is lost, or the oldest is needed."""
        keys = self._session.keys[shard]
        numbers = await queries.dictionaries_held(self._session.client, keys)
        if number not in numbers and len(numbers) >= MAX_DICTIONARIES:
            # As long as this one had no successor, chunks were made with the oldest.
            last_used_s = numbers[1] + _EPOCH_S
            if await self._oldest_s(keys) < last_used_s + SLACK_S:
                return False
        lease = Lease(self._name, self._fence(shard), 0, b"")
        content = content_of(number, dictionary)
        return await self._session.commands.dict_add(keys, lease, number, content, MAX_DICTIONARIES)

    async def _oldest_s(self, keys: ShardKeys) -> float:
        """Return the time of the oldest chunk in log and queue, by the clock of Redis."""
        page = await queries.log_page(self._session.client, keys, 0, 1)
        if page.head is None:
            return 0.0
        pending = page.head.pending_since_s
        oldest = page.head.time_s if pending is None else pending
        for entry in page.entries:
            try:
                first = decode_head(entry.packet)
            except DecodeError:
                first = None
            # How old what cannot be read is nobody knows.
            oldest = 0.0 if first is None else min(oldest, first.time_ms / 1000)
        return oldest


def _contents(batch: Packet, frames: FrameReader) -> list[bytes]:
    """Return what is or would be compressed of a batch's chunks that are worth a sample."""
    found: list[bytes] = []
    for chunk in batch.chunks if isinstance(batch, Batch) else ():
        if size_within(chunk) <= LARGEST_SAMPLE:
            # One that cannot be read is the business of others.
            with suppress(DecodeError):
                found.append(content_in(chunk, frames))
    return found


def _judged(samples: Sequence[bytes], number: int, before: bytes) -> tuple[bytes, float]:
    """Return a dictionary, and what share of the bytes is left with it of those without."""
    held_out = samples[::HELD_OUT]
    try:
        made = trained([one for n, one in enumerate(samples) if n % HELD_OUT], BYTES, number)
    except ValueError:
        return b"", 1.0
    old, new = FrameWriter(1, before), FrameWriter(1, made, number)
    return made, sum(len(new.frame(one)) for one in held_out) / sum(
        min(len(one), len(old.frame(one))) for one in held_out
    )
