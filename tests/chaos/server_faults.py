"""Faults of the server and of its clock."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import suppress
from time import monotonic

from broker.backend.commands import Commands
from broker.backend.replies import Accepted
from broker.core.sent_chunks import Packed
from broker.errors import BrokerError
from broker.protocol.constants import EPOCH_BYTES
from broker.protocol.names import ShardKeys
from broker.testing.records import Forgot
from tests.chaos.acting import Fault, client_of, until
from tests.chaos.deployment import Single
from tests.chaos.keyspace import SHARDS
from tests.chaos.plan import Step
from tests.chaos.testbed import Testbed

OLDEST_COPY_S = 20.0
MIN_STEP_S, LARGEST_STEP_S = 5.0, 90.0
CLOCK_EFFECT_AFTER_S = 1.0
POISON_CHUNKS = 5
POISON_BYTES = 200
POISON_BULK_BYTES = 70_000
LIMITS = "client-output-buffer-limit"
OWN_LIMITS = "normal 0 0 0 replica 268435456 67108864 60 pubsub 33554432 8388608 60"


async def server_kill(testbed: Testbed, step: Step) -> bool:
    """SIGKILL it, and start it from its append-only file."""
    async with testbed.lock_of("server"):
        testbed.journal.write(Forgot(monotonic(), "server_kill"))
        testbed.single.server.kill()
        await asyncio.sleep(step.duration / 4)
        await testbed.single.server.start()
    return True


async def _server_back(testbed: Testbed, step: Step, *, to_dump: bool) -> bool:
    async with testbed.lock_of("server"):
        has_copy = bool(testbed.single.server.copies)
        testbed.single.server.kill()
        age = testbed.single.server.go_back(step.random * OLDEST_COPY_S, to_dump=to_dump)
        testbed.journal.write(Forgot(monotonic(), "server_back"))
        testbed.say(f"the server goes {age:.1f} s back")
        await asyncio.sleep(step.duration / 4)
        await testbed.single.server.start(from_dump=to_dump)
    return has_copy


async def server_old_log(testbed: Testbed, step: Step) -> bool:
    """SIGKILL it, and start it from an older copy of its append-only file."""
    return await _server_back(testbed, step, to_dump=False)


async def server_old_dump(testbed: Testbed, step: Step) -> bool:
    """SIGKILL it, and start it from an older dump."""
    return await _server_back(testbed, step, to_dump=True)


async def server_empty(testbed: Testbed, step: Step) -> bool:
    """SIGKILL it, and start it empty."""
    async with testbed.lock_of("server"):
        testbed.single.server.kill()
        testbed.single.server.forget()
        testbed.journal.write(Forgot(monotonic(), "server_empty"))
        await asyncio.sleep(step.duration / 4)
        await testbed.single.server.start()
    return True


async def flush_all(testbed: Testbed, _step: Step) -> bool:
    """FLUSHALL."""
    async with testbed.lock_of("server"):
        done = await testbed.deployment.ask_primaries("FLUSHALL")
        testbed.journal.write(Forgot(monotonic(), "flush_all"))
        if isinstance(testbed.deployment, Single):
            testbed.deployment.server.drop_copies()
    return all(done)


async def server_pause(testbed: Testbed, step: Step) -> bool:
    """SIGSTOP it for a while."""
    async with testbed.lock_of("server"):
        testbed.single.server.pause(is_on=True)
        try:
            await asyncio.sleep(step.duration)
        finally:
            testbed.single.server.pause(is_on=False)
    return True


async def script_flush(testbed: Testbed, _step: Step) -> bool:
    """SCRIPT FLUSH."""
    async with testbed.lock_of("server"):
        return all(await testbed.deployment.ask_all("SCRIPT", "FLUSH"))


async def _kill_clients(testbed: Testbed, kind: str) -> bool:
    async def killed() -> bool:
        return any(await testbed.deployment.ask_all("CLIENT", "KILL", "TYPE", kind))

    async with testbed.lock_of("server"):
        return await until(killed)


async def kill_pubsub(testbed: Testbed, _step: Step) -> bool:
    """CLIENT KILL TYPE pubsub."""
    return await _kill_clients(testbed, "pubsub")


async def kill_normal(testbed: Testbed, _step: Step) -> bool:
    """CLIENT KILL TYPE normal."""
    return await _kill_clients(testbed, "normal")


async def tiny_buffers(testbed: Testbed, step: Step) -> bool:
    """The server disconnects subscribers as soon as output is buffered for them."""

    async def cut_off() -> int:
        stats = await testbed.deployment.ask_all("INFO", "stats")
        return sum(one["client_output_buffer_limit_disconnections"] for one in stats)

    async def has_effect() -> bool:
        return await cut_off() > before

    async with testbed.lock_of("server"):
        before = await cut_off()
        await testbed.deployment.ask_all("CONFIG", "SET", LIMITS, "pubsub 1024 512 1")
        await asyncio.sleep(step.duration)
        had_effect = await until(has_effect)
        await testbed.deployment.ask_all("CONFIG", "SET", LIMITS, OWN_LIMITS)
    return had_effect


async def out_of_memory(testbed: Testbed, step: Step) -> bool:
    """Redis refuses all writes that need memory."""

    async def refused() -> int:
        errors = await testbed.deployment.ask_all("INFO", "errorstats")
        return sum(one.get("errorstat_OOM", {}).get("count", 0) for one in errors)

    async def has_effect() -> bool:
        return await refused() > before

    async with testbed.lock_of("server"):
        before = await refused()
        await testbed.deployment.ask_all("CONFIG", "SET", "maxmemory", "1mb")
        await asyncio.sleep(step.duration)
        had_effect = await until(has_effect)
        await testbed.deployment.ask_all("CONFIG", "SET", "maxmemory", "0")
    return had_effect


async def clock_step(testbed: Testbed, step: Step) -> bool:
    """The wall clock of server and workers is stepped, and stepped back after a while."""
    share = step.random * 2 - 1
    seconds = share * (LARGEST_STEP_S - MIN_STEP_S)
    seconds += MIN_STEP_S if share > 0 else -MIN_STEP_S

    async def has_effect() -> bool:
        with suppress(BrokerError):
            async with client_of(testbed) as client:
                now, _ = await client.time()
            return abs(now - time.time()) > MIN_STEP_S / 2
        return False

    async with testbed.lock_of("clock"):
        testbed.single.clock.step(seconds)
        await asyncio.sleep(CLOCK_EFFECT_AFTER_S + step.duration)
        had_effect = await until(has_effect)
        testbed.single.clock.step(0)
    return had_effect


async def poison(testbed: Testbed, step: Step) -> bool:
    """A node appends bytes that are not a valid chunk."""
    chance = random.Random(step.random)
    keys = ShardKeys.of(testbed.namespace, int(step.random * SHARDS), SHARDS)
    number = 1
    async with testbed.lock_of("server"), client_of(testbed) as client:
        commands = Commands(client)
        with suppress(BrokerError):
            opened = await commands.open(
                keys, "poison", None, b"poisoned", chunk=0, deltas=0, epoch=os.urandom(EPOCH_BYTES)
            )
            for _ in range(POISON_CHUNKS):
                deltas, data = (
                    chance.randrange(1, 9),
                    chance.randbytes(
                        POISON_BULK_BYTES if number == 1 else chance.randrange(POISON_BYTES)
                    ),
                )
                (reply,) = await commands.append(
                    keys,
                    *("poison", opened.incarnation, b"poisoned"),
                    [Packed(number, deltas, 0, 0.0, 0, data)],
                    now=0.0,
                    max_age_ms=None,
                    max_count=None,
                    pending_limit=1 << 20,
                )
                number += isinstance(reply, Accepted)
    return number > 1


SERVER_FAULTS: dict[str, Fault] = {
    "server_kill": server_kill,
    "server_old_log": server_old_log,
    "server_old_dump": server_old_dump,
    "server_empty": server_empty,
    "server_pause": server_pause,
    "flush_all": flush_all,
    "script_flush": script_flush,
    "kill_pubsub": kill_pubsub,
    "kill_normal": kill_normal,
    "tiny_buffers": tiny_buffers,
    "out_of_memory": out_of_memory,
    "clock_step": clock_step,
    "poison": poison,
}
