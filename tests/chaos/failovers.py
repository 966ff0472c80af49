"""Faults of deployments with failover: planned and unplanned failovers, and moving slots."""

from __future__ import annotations

import asyncio
from time import monotonic

from broker.protocol.names import ShardKeys, slot_of_key
from broker.testing.clusters import ask
from broker.testing.records import Forgot
from broker.testing.server import Server
from tests.chaos.acting import Fault, until
from tests.chaos.deployment import Clustered, FailoverDeployment
from tests.chaos.keyspace import SHARDS
from tests.chaos.plan import Step
from tests.chaos.testbed import Testbed

REPLACED_WITHIN_S = 30.0


def _slot(testbed: Testbed, step: Step) -> int:
    """Return the slot of a random shard."""
    shard = min(int(step.random * SHARDS), SHARDS - 1)
    return slot_of_key(ShardKeys.of(testbed.namespace, shard, SHARDS).meta.encode())


async def _is_replaced(servers: FailoverDeployment, slot: int, before: Server) -> bool:
    """Wait until another server is the primary of a slot; false if that takes too long."""

    async def is_another() -> bool:
        return await asyncio.to_thread(servers.primary, slot) is not before

    return await until(is_another, REPLACED_WITHIN_S)


async def fail_over(testbed: Testbed, step: Step) -> bool:
    """A planned failover, as an operator starts it."""
    servers, slot = testbed.with_failover, _slot(testbed, step)
    async with testbed.lock_of("server"):
        await asyncio.to_thread(servers.fail_over, slot)
        await servers.heal()
        if not isinstance(servers, Clustered):
            # Sentinels do not wait for writes in flight; a Cluster does, and loses nothing.
            testbed.journal.write(Forgot(monotonic(), "fail_over"))
    return True


async def server_kill(testbed: Testbed, step: Step) -> bool:
    """SIGKILL a primary; a replica takes over, and the killed one comes back empty behind it."""
    servers, slot = testbed.with_failover, _slot(testbed, step)
    async with testbed.lock_of("server"):
        before = await asyncio.to_thread(servers.primary, slot)
        await asyncio.to_thread(before.kill)
        had_effect = await _is_replaced(servers, slot, before)
        testbed.journal.write(Forgot(monotonic(), "server_kill"))
        await servers.heal()
    return had_effect


async def unreplicated_kill(testbed: Testbed, step: Step) -> bool:
    """SIGKILL a primary whose replicas were disconnected: what they lack is lost."""
    servers, slot = testbed.with_failover, _slot(testbed, step)
    async with testbed.lock_of("server"):
        before = await asyncio.to_thread(servers.primary, slot)
        replicas = await asyncio.to_thread(servers.replicas_of, before)
        for replica in replicas:
            replica.pause()
        try:
            # Drops what is in flight to them.
            had_effect = bool(
                await asyncio.to_thread(ask, before, "CLIENT", "KILL", "TYPE", "replica")
            )
            await asyncio.sleep(step.duration / 4)
            await asyncio.to_thread(before.kill)
        finally:
            for replica in replicas:
                replica.resume()
        had_effect = await _is_replaced(servers, slot, before) and had_effect
        testbed.journal.write(Forgot(monotonic(), "unreplicated_kill"))
        await servers.heal()
    return had_effect


async def server_pause(testbed: Testbed, step: Step) -> bool:
    """SIGSTOP a primary; if it lasts long enough, a replica takes over meanwhile."""
    servers, slot = testbed.with_failover, _slot(testbed, step)
    async with testbed.lock_of("server"):
        before = await asyncio.to_thread(servers.primary, slot)
        before.pause()
        try:
            await asyncio.sleep(step.duration)
        finally:
            before.resume()
        await servers.heal()
        # Until here it may have acted as a primary.
        testbed.journal.write(Forgot(monotonic(), "server_pause"))
    return True


async def slot_move(testbed: Testbed, step: Step) -> bool:
    """The slot of a shard moves to another node, key by key, while it is written to."""
    servers, slot = testbed.with_failover, _slot(testbed, step)
    if not isinstance(servers, Clustered):
        return False
    async with testbed.lock_of("server"):
        before = await asyncio.to_thread(servers.primary, slot)
        others = [one for one in await asyncio.to_thread(servers.primaries) if one is not before]
        target = others[int(step.random * 1000) % len(others)]
        await asyncio.to_thread(servers.cluster.move_slot, slot, target)
        await servers.heal()
    return True


FAILOVERS: dict[str, Fault] = {
    "fail_over": fail_over,
    "slot_move": slot_move,
    "unreplicated_kill": unreplicated_kill,
}
INSTEAD: dict[str, Fault] = {
    "server_kill": server_kill,
    "server_pause": server_pause,
}
"""Replacements for faults of a single server in deployments with failover."""
