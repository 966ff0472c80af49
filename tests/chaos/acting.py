"""What all faults share: their type, the choice of victims, and waiting for an effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import isawaitable
from time import monotonic

from broker.backend.connections import Connections, translated
from broker.backend.topology import Client
from tests.chaos.fleet import Member
from tests.chaos.plan import Step
from tests.chaos.testbed import Testbed

Fault = Callable[[Testbed, Step], Awaitable[bool]]
"""Injects a fault, waits until it is over, and returns whether it had an effect."""

EFFECT_WITHIN_S = 6.0
POLL_S = 0.05


def victim(testbed: Testbed, kind: str, step: Step) -> Member:
    """Return a random member of a kind."""
    members = [member for member in testbed.members if member.kind == kind]
    return members[int(step.random * len(members))]


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = EFFECT_WITHIN_S
) -> bool:
    """Wait for a condition; false after a timeout."""
    deadline = monotonic() + timeout_s
    while True:
        found = condition()
        if await found if isawaitable(found) else found:
            return True
        if monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def client_of(testbed: Testbed) -> AsyncIterator[Client]:
    """Yield a client that bypasses the proxy; its errors are BackendErrors."""
    connections = Connections(testbed.deployment.url)
    try:
        async with translated("looking at the server"):
            yield connections.commands()
    finally:
        await connections.close()
