"""Faults of the link between the fleet and its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.chaos.acting import Fault, until
from tests.chaos.plan import Step
from tests.chaos.stage import Stage

TAIL_S = 0.3


def _counts(stage: Stage, name: str) -> Callable[[], bool]:
    """Return a function that tells whether a counter of the proxy has grown since now."""
    before = stage.single.proxy.counts[name]
    return lambda: stage.single.proxy.counts[name] > before


def _link(count: str, switch_on: Callable[[Stage, Step], None]) -> Fault:
    async def act(stage: Stage, step: Step) -> bool:
        async with stage.lock_of("link"):
            has_effect = _counts(stage, count)
            switch_on(stage, step)
            await asyncio.sleep(step.duration)
            had_effect = await until(has_effect)
            stage.single.proxy.heal()
        return had_effect

    return act


def _delay(stage: Stage, step: Step) -> None:
    faults = stage.single.proxy.faults
    faults.to_client.delay = faults.to_server.delay = 0.02 + step.random * 0.4


def _split(stage: Stage, step: Step) -> None:
    faults = stage.single.proxy.faults
    faults.to_client.split = faults.to_server.split = 1 + int(step.random * 50)


def _drop(stage: Stage, step: Step) -> None:
    stage.single.proxy.faults.drop_messages = 0.1 + 0.9 * step.random


def _repeat(stage: Stage, step: Step) -> None:
    stage.single.proxy.faults.repeat_messages = 0.1 + 0.9 * step.random


def _reorder(stage: Stage, step: Step) -> None:
    stage.single.proxy.faults.reorder_messages = 0.1 + 0.8 * step.random


def _refuse(stage: Stage, _step: Step) -> None:
    stage.single.proxy.faults.refuse = True
    stage.single.proxy.reset()


def _stall(stage: Stage, _step: Step) -> None:
    stage.single.proxy.faults.stall()


def _stall_replies(stage: Stage, _step: Step) -> None:
    stage.single.proxy.faults.to_client.stall = True


def _lose(stage: Stage, step: Step) -> None:
    stage.single.proxy.faults.lose_replies("EVALSHA", times=1000, every=1 + int(step.random * 20))


async def tail_loss(stage: Stage, step: Step) -> bool:
    """The last messages before all producers pause are dropped."""
    producers = [member for member in stage.members if member.kind == "producer"]
    async with AsyncExitStack() as held:
        for name in ("link", *sorted(member.name for member in producers)):
            await held.enter_async_context(stage.lock_of(name))
        has_effect = _counts(stage, "messages_dropped")
        stage.single.proxy.faults.drop_messages = 1.0
        for member in producers:
            member.pause(is_on=True)
        try:
            # Accepted deltas are published within this time, and no replica receives them.
            await asyncio.sleep(TAIL_S)
            had_effect = await until(has_effect)
            stage.single.proxy.heal()
            await asyncio.sleep(step.duration)
        finally:
            for member in producers:
                member.pause(is_on=False)
    return had_effect


async def cut(stage: Stage, _step: Step) -> bool:
    """All connections end."""
    has_effect = _counts(stage, "cut")
    stage.single.proxy.cut()
    return has_effect()


async def reset(stage: Stage, _step: Step) -> bool:
    """All connections are reset."""
    has_effect = _counts(stage, "reset")
    stage.single.proxy.reset()
    return has_effect()


LINK_FAULTS: dict[str, Fault] = {
    "tail_loss": tail_loss,
    "cut": cut,
    "reset": reset,
    "refuse": _link("refused", _refuse),
    "stall": _link("stalled", _stall),
    "stall_replies": _link("stalled", _stall_replies),
    "reply_lost": _link("replies_lost", _lose),
    "split": _link("split", _split),
    "delay": _link("delayed", _delay),
    "drop_messages": _link("messages_dropped", _drop),
    "repeat_messages": _link("messages_repeated", _repeat),
    "reorder_messages": _link("messages_reordered", _reorder),
}
