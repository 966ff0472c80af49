"""All faults by name, and the faults of processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from secrets import token_hex

from broker.errors import BackendError
from broker.protocol.names import ShardKeys
from broker.testing.records import Died
from tests.chaos.acting import Fault, client_of, until, victim
from tests.chaos.failovers import FAILOVERS, INSTEAD
from tests.chaos.half_snapshot import half_snapshot
from tests.chaos.keyspace import SHARDS
from tests.chaos.link_faults import LINK_FAULTS
from tests.chaos.overwriting import OVERWRITING
from tests.chaos.plan import Step
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.testbed import Testbed

KINDS = ("flusher", "scheduler", "producer", "replica")
JOINED_WITHIN_S = 20.0
FENCED_WITHIN_S = 40.0


def _kill(kind: str) -> Fault:
    async def act(testbed: Testbed, step: Step) -> bool:
        member = victim(testbed, kind, step)
        async with testbed.lock_of(member.name):
            gone = await asyncio.to_thread(member.kill)
            if kind == "producer":
                testbed.journal.write(Died(gone, member.name))
            await asyncio.sleep(step.duration / 2)
            member.start()
        return True

    return act


def _pause(kind: str) -> Fault:
    async def act(testbed: Testbed, step: Step) -> bool:
        member = victim(testbed, kind, step)
        async with testbed.lock_of(member.name):
            member.pause(is_on=True)
            had_effect = member.is_paused
            try:
                await asyncio.sleep(step.duration)
            finally:
                member.pause(is_on=False)
        return had_effect

    return act


def _more(kind: str) -> Fault:
    async def act(testbed: Testbed, step: Step) -> bool:
        member = testbed.worker(kind, f"{kind}-extra-{token_hex(2)}")
        keys = ShardKeys.of(testbed.namespace, 0, SHARDS)

        async def is_at_work() -> bool:
            with suppress(BackendError):
                async with client_of(testbed) as client:
                    names = await client.hkeys(keys.workers)
                return any(f"-{member.pid}-".encode() in name for name in names)
            return False

        member.start()
        try:
            had_effect = await until(is_at_work, JOINED_WITHIN_S)
            await asyncio.sleep(step.duration)
        finally:
            member.terminate()
            await asyncio.to_thread(member.wait)
        return had_effect

    return act


async def twin_node(testbed: Testbed, step: Step) -> bool:
    """Another process acquires the node name of a producer, which then takes it back."""
    member = victim(testbed, "producer", step)
    async with testbed.lock_of(member.name):
        before = testbed.fencings(member.name)
        twin = testbed.twin_of(member, seed=int(step.random * 10**6))
        twin.start()
        # It ends when it is fenced by the first process, which comes back after being fenced.
        in_time = await asyncio.to_thread(twin.wait, FENCED_WITHIN_S)
        if not in_time:
            testbed.journal.write(Died(twin.ended_at, member.name))
            testbed.crashed(f"{twin.name} was not fenced: {twin.last_words()}")
        return in_time and testbed.fencings(member.name) >= before + 2


FAULTS: Mapping[str, Fault] = {
    **{f"{kind}_kill": _kill(kind) for kind in KINDS},
    **{f"{kind}_pause": _pause(kind) for kind in KINDS},
    "second_scheduler": _more("scheduler"),
    "third_flusher": _more("flusher"),
    "twin_node": twin_node,
    "half_snapshot": half_snapshot,
    **SERVER_FAULTS,
    **OVERWRITING,
    **LINK_FAULTS,
    **FAILOVERS,
}


def faults_of(kind: str) -> dict[str, Fault]:
    """Return the faults for a kind of deployment, by name."""
    if kind == "single":
        return {name: act for name, act in FAULTS.items() if name not in FAILOVERS}
    return {**FAULTS, **INSTEAD}
