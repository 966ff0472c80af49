"""The copy of a shard that is compared with Redis."""

from __future__ import annotations

import asyncio
import tracemalloc

from broker.backend.page_sizes import SLICE_KEYS
from broker.engine.state_copy import StateCopy
from broker.protocol.digest import Digest, range_of
from broker.protocol.fields import content_of
from broker.protocol.messages import Cell

KEYS = 10 * SLICE_KEYS + 1
VALUES: dict[str, Cell] = {f"key/{number}": number for number in range(KEYS)}


def test_a_copy_shows_its_moment() -> None:
    """Its digest and its parts are those of the values when it was made."""
    values = VALUES.copy()
    copy = StateCopy(values)
    values["key/0"] = "changed"
    del values["key/1"]
    values["new"] = 1
    right = Digest()
    for key, value in VALUES.items():
        right.add(key, content_of(value))
    assert len(copy) == KEYS
    assert asyncio.run(copy.digest()) == right
    ranges = {3, 200}
    assert asyncio.run(copy.part(ranges)) == {
        key: value for key, value in VALUES.items() if range_of(key) in ranges
    }
    assert asyncio.run(StateCopy({}).digest()) == Digest()
    assert asyncio.run(StateCopy({}).part({0})) == {}


def test_a_copy_takes_two_references_a_key() -> None:
    """A replica compares itself after each load: another dict would be a fifth of its memory."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        copy = StateCopy(VALUES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(copy) == KEYS
    assert (peak - before) / KEYS < 17


def test_other_tasks_run_while_a_copy_is_summed_or_searched() -> None:
    """After each slice: a packet must not wait for a million keys."""

    async def scenario() -> None:
        copy, turns = StateCopy(VALUES), 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        await copy.digest()
        assert turns >= KEYS // SLICE_KEYS
        turns = 0
        await copy.part({0})
        assert turns >= KEYS // SLICE_KEYS
        other.cancel()

    asyncio.run(scenario())
