"""Faults of the link between the fleet and its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.chaos.acting import Fault, until
from tests.chaos.plan import Step
from tests.chaos.testbed import Testbed

TAIL_S = 0.3


def _counts(testbed: Testbed, name: str) -> Callable[[], bool]:
    """Return a function that tells whether a counter of the proxy has grown since now."""
    before = testbed.single.proxy.counts[name]
    return lambda: testbed.single.proxy.counts[name] > before


def _link(count: str, switch_on: Callable[[Testbed, Step], None]) -> Fault:
    async def act(testbed: Testbed, step: Step) -> bool:
        async with testbed.lock_of("link"):
            has_effect = _counts(testbed, count)
            switch_on(testbed, step)
            await asyncio.sleep(step.duration)
            had_effect = await until(has_effect)
            testbed.single.proxy.heal()
        return had_effect

    return act


def _delay(testbed: Testbed, step: Step) -> None:
    faults = testbed.single.proxy.faults
    faults.to_client.delay = faults.to_server.delay = 0.02 + step.random * 0.4


def _split(testbed: Testbed, step: Step) -> None:
    faults = testbed.single.proxy.faults
    faults.to_client.split = faults.to_server.split = 1 + int(step.random * 50)


def _drop(testbed: Testbed, step: Step) -> None:
    testbed.single.proxy.faults.drop_messages = 0.1 + 0.9 * step.random


def _repeat(testbed: Testbed, step: Step) -> None:
    testbed.single.proxy.faults.repeat_messages = 0.1 + 0.9 * step.random


def _reorder(testbed: Testbed, step: Step) -> None:
    testbed.single.proxy.faults.reorder_messages = 0.1 + 0.8 * step.random


def _refuse(testbed: Testbed, _step: Step) -> None:
    testbed.single.proxy.faults.refuse = True
    testbed.single.proxy.reset()


def _stall(testbed: Testbed, _step: Step) -> None:
    testbed.single.proxy.faults.stall()


def _stall_replies(testbed: Testbed, _step: Step) -> None:
    testbed.single.proxy.faults.to_client.stall = True


def _lose(testbed: Testbed, step: Step) -> None:
    testbed.single.proxy.faults.lose_replies("EVALSHA", times=1000, every=1 + int(step.random * 20))


async def tail_loss(testbed: Testbed, step: Step) -> bool:
    """The last messages before all producers pause are dropped."""
    producers = [member for member in testbed.members if member.kind == "producer"]
    async with AsyncExitStack() as held:
        for name in ("link", *sorted(member.name for member in producers)):
            await held.enter_async_context(testbed.lock_of(name))
        has_effect = _counts(testbed, "messages_dropped")
        testbed.single.proxy.faults.drop_messages = 1.0
        for member in producers:
            member.pause(is_on=True)
        try:
            # Accepted deltas are published within this time, and no replica receives them.
            await asyncio.sleep(TAIL_S)
            had_effect = await until(has_effect)
            testbed.single.proxy.heal()
            await asyncio.sleep(step.duration)
        finally:
            for member in producers:
                member.pause(is_on=False)
    return had_effect


async def cut(testbed: Testbed, _step: Step) -> bool:
    """All connections end."""
    has_effect = _counts(testbed, "cut")
    testbed.single.proxy.cut()
    return has_effect()


async def reset(testbed: Testbed, _step: Step) -> bool:
    """All connections are reset."""
    has_effect = _counts(testbed, "reset")
    testbed.single.proxy.reset()
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
