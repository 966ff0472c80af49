"""What each fault does to the fleet. Each function returns once its fault is over."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from secrets import token_hex
from time import monotonic

from broker.connection import Connections
from broker.errors import BrokerError
from broker.faults.records import Died, Forgot
from broker.keys import ShardKeys
from broker.lua import Accepted, Commands
from broker.protocol import EPOCH_BYTES
from scripts.chaos.fleet import Member
from scripts.chaos.keyspace import SHARDS
from scripts.chaos.plan import Step
from scripts.chaos.stage import Stage

Fault = Callable[[Stage, Step], Awaitable[None]]

KINDS = ("flusher", "scheduler", "producer", "replica")
OLDEST_COPY_S = 20.0
LARGEST_STEP_S = 90.0
CLOCK_FELT_AFTER_S = 1.0
TAIL_S = 0.3
POISON_CHUNKS = 5
POISON_BYTES = 200
OWN_LIMITS = "normal 0 0 0 replica 268435456 67108864 60 pubsub 33554432 8388608 60"


def _victim(stage: Stage, kind: str, step: Step) -> Member:
    members = [member for member in stage.members if member.kind == kind]
    return members[int(step.dice * len(members))]


def _kill(kind: str) -> Fault:
    async def act(stage: Stage, step: Step) -> None:
        member = _victim(stage, kind, step)
        async with stage.lock_of(member.name):
            gone = await asyncio.to_thread(member.kill)
            if kind == "producer":
                stage.journal.write(Died(gone, member.name))
            await asyncio.sleep(step.duration / 2)
            member.start()

    return act


def _pause(kind: str) -> Fault:
    async def act(stage: Stage, step: Step) -> None:
        member = _victim(stage, kind, step)
        async with stage.lock_of(member.name):
            member.pause(is_on=True)
            try:
                await asyncio.sleep(step.duration)
            finally:
                member.pause(is_on=False)

    return act


def _more(kind: str) -> Fault:
    async def act(stage: Stage, step: Step) -> None:
        member = stage.worker(kind, f"{kind}-extra-{token_hex(2)}")
        member.start()
        await asyncio.sleep(step.duration)
        member.terminate()
        await asyncio.to_thread(member.wait)

    return act


# -- the server -----------------------------------------------------------------------------------


async def server_kill(stage: Stage, step: Step) -> None:
    """SIGKILL it, and start it from its append-only file."""
    async with stage.lock_of("server"):
        stage.journal.write(Forgot(monotonic(), "server_kill"))
        stage.server.kill()
        await asyncio.sleep(step.duration / 4)
        await stage.server.start()


async def _server_back(stage: Stage, step: Step, *, to_dump: bool) -> None:
    async with stage.lock_of("server"):
        stage.server.kill()
        age = stage.server.go_back(step.dice * OLDEST_COPY_S, to_dump=to_dump)
        stage.journal.write(Forgot(monotonic(), "server_back"))
        stage.say(f"the server goes {age:.1f} s back")
        await asyncio.sleep(step.duration / 4)
        await stage.server.start(from_dump=to_dump)


async def server_old_log(stage: Stage, step: Step) -> None:
    """SIGKILL it, and start it from an older copy of its append-only file."""
    await _server_back(stage, step, to_dump=False)


async def server_old_dump(stage: Stage, step: Step) -> None:
    """SIGKILL it, and start it from an older dump."""
    await _server_back(stage, step, to_dump=True)


async def server_empty(stage: Stage, step: Step) -> None:
    """SIGKILL it, and start it with nothing."""
    async with stage.lock_of("server"):
        stage.server.kill()
        stage.server.forget()
        stage.journal.write(Forgot(monotonic(), "server_empty"))
        await asyncio.sleep(step.duration / 4)
        await stage.server.start()


async def flush_all(stage: Stage, _step: Step) -> None:
    """FLUSHALL."""
    async with stage.lock_of("server"):
        await stage.server.ask("FLUSHALL")
        stage.journal.write(Forgot(monotonic(), "flush_all"))
        stage.server.drop_copies()


async def server_pause(stage: Stage, step: Step) -> None:
    """SIGSTOP it for a while."""
    async with stage.lock_of("server"):
        stage.server.pause(is_on=True)
        try:
            await asyncio.sleep(step.duration)
        finally:
            stage.server.pause(is_on=False)


async def script_flush(stage: Stage, _step: Step) -> None:
    """SCRIPT FLUSH."""
    await stage.server.ask("SCRIPT FLUSH")


async def kill_pubsub(stage: Stage, _step: Step) -> None:
    """CLIENT KILL TYPE pubsub."""
    await stage.server.ask("CLIENT KILL TYPE pubsub")


async def kill_normal(stage: Stage, _step: Step) -> None:
    """CLIENT KILL TYPE normal."""
    await stage.server.ask("CLIENT KILL TYPE normal")


async def tiny_buffers(stage: Stage, step: Step) -> None:
    """Subscribers are cut off as soon as anything waits for them."""
    async with stage.lock_of("server"):
        await stage.server.ask('CONFIG SET client-output-buffer-limit "pubsub 1024 512 1"')
        await asyncio.sleep(step.duration)
        await stage.server.ask(f'CONFIG SET client-output-buffer-limit "{OWN_LIMITS}"')


async def out_of_memory(stage: Stage, step: Step) -> None:
    """Redis takes nothing that needs memory."""
    async with stage.lock_of("server"):
        await stage.server.ask("CONFIG SET maxmemory 1mb")
        await asyncio.sleep(step.duration)
        await stage.server.ask("CONFIG SET maxmemory 0")


async def clock_step(stage: Stage, step: Step) -> None:
    """The wall clock of server and workers is set, and after a while set back."""
    stage.clock.step((step.dice * 2 - 1) * LARGEST_STEP_S)
    await asyncio.sleep(CLOCK_FELT_AFTER_S + step.duration)
    stage.clock.step(0)


async def poison(stage: Stage, step: Step) -> None:
    """A node appends bytes that are no chunk."""
    connections = Connections(stage.server.url)
    commands, chance = Commands(connections.commands()), random.Random(step.dice)
    keys = ShardKeys.of(stage.namespace, int(step.dice * SHARDS), SHARDS)
    with suppress(BrokerError):
        opened = await commands.open(
            keys, "poison", None, "poison", chunk=0, deltas=0, epoch=os.urandom(EPOCH_BYTES)
        )
        number = 1
        for _ in range(POISON_CHUNKS):
            reply = await commands.append(
                keys,
                *("poison", opened.incarnation, "poison"),
                number=number,
                deltas=chance.randrange(1, 9),
                waited_ms=0,
                max_age_ms=None,
                max_count=None,
                pending_limit=1 << 20,
                chunk=chance.randbytes(chance.randrange(POISON_BYTES)),
            )
            number += isinstance(reply, Accepted)
    await connections.close()


# -- the link -------------------------------------------------------------------------------------


def _link(switch_on: Callable[[Stage, Step], None]) -> Fault:
    async def act(stage: Stage, step: Step) -> None:
        async with stage.lock_of("link"):
            switch_on(stage, step)
            await asyncio.sleep(step.duration)
            stage.proxy.heal()

    return act


def _delay(stage: Stage, step: Step) -> None:
    faults = stage.proxy.faults
    faults.to_client.delay = faults.to_server.delay = 0.02 + step.dice * 0.4


def _split(stage: Stage, step: Step) -> None:
    faults = stage.proxy.faults
    faults.to_client.split = faults.to_server.split = 1 + int(step.dice * 50)


def _drop(stage: Stage, step: Step) -> None:
    stage.proxy.faults.drop_messages = 0.1 + 0.9 * step.dice


def _repeat(stage: Stage, step: Step) -> None:
    stage.proxy.faults.repeat_messages = 0.1 + 0.9 * step.dice


def _reorder(stage: Stage, step: Step) -> None:
    stage.proxy.faults.reorder_messages = 0.1 + 0.8 * step.dice


def _refuse(stage: Stage, _step: Step) -> None:
    stage.proxy.faults.refuse = True
    stage.proxy.reset()


def _stall(stage: Stage, _step: Step) -> None:
    stage.proxy.faults.stall()


def _stall_replies(stage: Stage, _step: Step) -> None:
    stage.proxy.faults.to_client.stall = True


def _lose(stage: Stage, step: Step) -> None:
    stage.proxy.faults.lose_replies("EVALSHA", times=1000, every=1 + int(step.dice * 20))


async def tail_loss(stage: Stage, step: Step) -> None:
    """The last messages before a silence of all producers vanish."""
    producers = [member for member in stage.members if member.kind == "producer"]
    async with AsyncExitStack() as held:
        for name in ("link", *sorted(member.name for member in producers)):
            await held.enter_async_context(stage.lock_of(name))
        stage.proxy.faults.drop_messages = 1.0
        for member in producers:
            member.pause(is_on=True)
        try:
            # What was accepted is published within this time, and heard by nobody.
            await asyncio.sleep(TAIL_S)
            stage.proxy.heal()
            await asyncio.sleep(step.duration)
        finally:
            for member in producers:
                member.pause(is_on=False)


async def cut(stage: Stage, _step: Step) -> None:
    """All connections end."""
    stage.proxy.cut()


async def reset(stage: Stage, _step: Step) -> None:
    """All connections are reset."""
    stage.proxy.reset()


FAULTS: dict[str, Fault] = {
    **{f"{kind}_kill": _kill(kind) for kind in KINDS},
    **{f"{kind}_pause": _pause(kind) for kind in KINDS},
    "second_scheduler": _more("scheduler"),
    "third_flusher": _more("flusher"),
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
    "tail_loss": tail_loss,
    "cut": cut,
    "reset": reset,
    "refuse": _link(_refuse),
    "stall": _link(_stall),
    "stall_replies": _link(_stall_replies),
    "reply_lost": _link(_lose),
    "split": _link(_split),
    "delay": _link(_delay),
    "drop_messages": _link(_drop),
    "repeat_messages": _link(_repeat),
    "reorder_messages": _link(_reorder),
}
