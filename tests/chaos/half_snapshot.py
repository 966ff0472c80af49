"""A fault: kill a scheduler between two pages of a full state."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from broker.aio import Producer
from broker.backend import queries
from broker.protocol.fields import unpack_fields
from broker.protocol.names import ShardKeys
from tests.chaos.acting import client_of, until, victim
from tests.chaos.fleet import Member
from tests.chaos.keyspace import SHARDS
from tests.chaos.plan import Step
from tests.chaos.testbed import Testbed

# Several pages of the scheduler in every shard.
KEYS = 8000
PREFIX = "bulk/"
# One of them may be refused with NOSCRIPT.
PAGES_LET_THROUGH = 2
# A lease whose holder died lasts 9 s.
WRITTEN_WITHIN_S = 25.0
FLUSH_TIMEOUT_S = 20.0


async def half_snapshot(testbed: Testbed, step: Step) -> bool:
    """Kill the scheduler between two pages, and let a replica load the half-written full state.

    The full state has many pages, and the proxy drops all requests after the first pages, so the
    result does not depend on timing.
    """
    schedulers = [member for member in testbed.members if member.kind == "scheduler"]
    reader = victim(testbed, "replica", step)
    names = ["link", reader.name, *(member.name for member in schedulers), "server"]
    async with AsyncExitStack() as held:
        for name in names:
            await held.enter_async_context(testbed.lock_of(name))
        async with Producer(
            testbed.deployment.url, namespace=testbed.namespace, node="bulk", shards=SHARDS
        ) as producer:
            keys = [f"{PREFIX}{number}" for number in range(KEYS)]
            try:
                is_stuck = await _stick(testbed, producer, keys)
                writer = await _writing(testbed, schedulers)
                await asyncio.to_thread(writer.kill)
                is_half = is_stuck and await _is_half_written(testbed)
            finally:
                testbed.single.proxy.heal()
            await asyncio.to_thread(reader.kill)
            reader.start()
            await asyncio.sleep(step.duration / 2)
            writer.start()
            for key in keys:
                await producer.delete(key)
            await producer.flush(FLUSH_TIMEOUT_S)
    return is_half


async def _stick(testbed: Testbed, producer: Producer, keys: list[str]) -> bool:
    """Write a full state of many pages, and block it after the first ones."""
    proxy = testbed.single.proxy
    lost = proxy.counts["requests_lost"]
    # The keys of a page are in the request; flush workers send no keys.
    proxy.faults.lose_requests(
        "EVALSHA", times=100, after=PAGES_LET_THROUGH, containing=PREFIX.encode()
    )
    # Neither replica nor scheduler may add an increment again that a page contains.
    for key in keys:
        await producer.increment(key)
    await producer.flush(FLUSH_TIMEOUT_S)
    return await until(lambda: proxy.counts["requests_lost"] > lost, WRITTEN_WITHIN_S)


async def _writing(testbed: Testbed, schedulers: list[Member]) -> Member:
    """Return the scheduler that holds a lease; the first one if none does."""
    async with client_of(testbed) as client:
        leases = [
            await client.get(ShardKeys.of(testbed.namespace, shard, SHARDS).lease)
            for shard in range(SHARDS)
        ]
    return next(
        (
            member
            for member in schedulers
            if any(f"-{member.pid}-".encode() in lease for lease in leases if lease)
        ),
        schedulers[0],
    )


async def _is_half_written(testbed: Testbed) -> bool:
    """Whether the full state of a shard holds fields beyond its position."""
    async with client_of(testbed) as client:
        for shard in range(SHARDS):
            keys = ShardKeys.of(testbed.namespace, shard, SHARDS)
            page = await queries.log_page(client, keys, 0, 0)
            at = page.head.snapshot.offset if page.head is not None else 0
            async for names, fields in queries.state_pages(client, keys):
                if fields and max(unpack_fields(names, fields)[0]) > at:
                    return True
    return False
