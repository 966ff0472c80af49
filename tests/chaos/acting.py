"""What all faults share: their shape, their victims, and waiting until they were had_effect."""

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
from tests.chaos.stage import Stage

Fault = Callable[[Stage, Step], Awaitable[bool]]
"""Makes the fault, returns once it is over, and tells whether anybody had_effect it."""

EFFECT_WITHIN_S = 6.0
POLL_S = 0.05


def victim(stage: Stage, kind: str, step: Step) -> Member:
    """Return the member of a kind chosen at random."""
    members = [member for member in stage.members if member.kind == kind]
    return members[int(step.random * len(members))]


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = EFFECT_WITHIN_S
) -> bool:
    """Wait for a condition; false if it does not come."""
    deadline = monotonic() + timeout_s
    while True:
        found = condition()
        if await found if isawaitable(found) else found:
            return True
        if monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def client_of(stage: Stage) -> AsyncIterator[Client]:
    """Give a client of the servers themselves, past the proxy; its errors are BackendErrors."""
    connections = Connections(stage.deployment.url)
    try:
        async with translated("looking at the server"):
            yield connections.commands()
    finally:
        await connections.close()
