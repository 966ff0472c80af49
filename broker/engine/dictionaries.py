"""Reading dictionaries of compressed chunks from Redis: what a log needs, and what is new."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from broker.backend import queries
from broker.backend.session import Session
from broker.backend.topology import Client
from broker.core.buffer import ProducerBuffer
from broker.errors import BackendError
from broker.protocol.frames import FrameReader
from broker.protocol.messages import LogEntry
from broker.protocol.names import ShardKeys

log = logging.getLogger(__name__)

INTERVAL_S: Final = 15.0
_FIX: Final = "it is not there, or damaged: a running scheduler that knows it writes it again"


async def learn_for(
    client: Client, keys: ShardKeys, frames: FrameReader | None, entries: Iterable[LogEntry]
) -> None:
    """Read what these entries of the log need and `frames` lacks, of what the shard lists.

    A dictionary that is listed and not there, or damaged, is named in the log; the chunks that
    need it are refused, and everything else goes on.

    Raises:
        BackendError: Redis failed.
    """
    if frames is None:
        return
    lacking = frames.lacking(part for entry in entries for part in (entry.packet, *entry.bulk))
    if lacking:
        # Any value may hold what looks like a frame, with any number.
        listed = await queries.dictionary_numbers(client, keys)
        await learn(client, keys, frames, [number for number in listed if number in lacking])


async def learn(client: Client, keys: ShardKeys, frames: FrameReader, numbers: list[int]) -> None:
    """Read dictionaries; those that are there are known from then on. Raises as `learn_for`."""
    if not numbers:
        return
    for number, dictionary in (await queries.dictionaries(client, keys, numbers)).items():
        if dictionary is not None:
            frames.learn(number, dictionary)
        elif frames.misses(number):
            log.warning("dictionary_missing key=%s number=%d fix=%s", keys.dicts, number, _FIX)


async def newest(client: Client, keys: ShardKeys, frames: FrameReader) -> int:
    """Return the number of a shard's newest dictionary, known from now on; 0 if there is none.

    Raises:
        BackendError: Redis failed.
    """
    numbers = await queries.dictionary_numbers(client, keys)
    if numbers and frames.dictionary(numbers[-1]) is None:
        await learn(client, keys, frames, [numbers[-1]])
    return numbers[-1] if numbers and frames.dictionary(numbers[-1]) is not None else 0


async def follow(session: Session, buffer: ProducerBuffer, frames: FrameReader) -> None:
    """Compress with the newest dictionary of each shard that is written to, until cancelled."""
    is_first = True
    while True:
        for lane, keys in zip(buffer.lanes, session.keys, strict=True):
            if not is_first and not lane.number:
                continue
            with suppress(BackendError):
                number = await newest(session.client, keys, frames)
                dictionary = frames.dictionary(number) if number else b""
                used = lane.writer.number if lane.writer is not None else 0
                if number != used and dictionary is not None:
                    buffer.use_dictionary(lane.shard, number, dictionary)
        is_first = False
        await asyncio.sleep(INTERVAL_S)
