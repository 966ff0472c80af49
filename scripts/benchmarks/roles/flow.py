"""A writer that never pauses, and replicas that follow it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from itertools import islice

from broker import Producer, aio
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.pace import paced
from scripts.benchmarks.workload import texts, workload


def write(config: RoleConfig, link: Link) -> None:
    """Set key by key; done when Redis has accepted all.

    Details:
        size: characters of each value; 0 for floats.
        flush_every: deltas between two waits for Redis; 0 for one wait at the end.
        per_s: deltas a second; 0 for as fast as it can.
        stamped: each value includes the time of its `set`.
        preload: set every key once before the clock runs.
        turn, turns: this writer sets every `turns`-th update, starting at number `turn`; 0 and 1
            if absent.
        settings: of the producer.
    """
    size, flush_every = config.details.get("size", 0), config.details.get("flush_every", 0)
    per_s, is_stamped = config.details.get("per_s", 0), config.details.get("stamped", False)
    columns = (texts(config.updates, config.keys, size) if size else None) or config.workload()
    turn, turns = config.details.get("turn", 0), config.details.get("turns", 1)
    updates = islice(zip(*columns, strict=True), turn, None, turns)
    with Producer(
        config.redis, namespace=NAMESPACE, **config.details.get("settings", {})
    ) as producer:
        note = ""
        if config.details.get("preload"):
            for key in workload(config.keys, config.keys)[0]:
                producer.set(key, 0.0)
            note = str(producer.flush())
        before = producer.stats()
        link.send(ready=True, note=note)
        began = link.wait_for_go()
        put = producer.set
        if flush_every:
            while group := list(islice(updates, flush_every)):
                for key, value in group:
                    put(key, value)
                producer.flush()
        elif per_s:
            for key, value in paced(updates, per_s):
                put(key, [value, time.monotonic_ns()] if is_stamped else value)
        else:
            for key, value in updates:
                put(key, value)
        token = producer.flush()
        after = producer.stats()
        link.send(
            began=began,
            at=time.monotonic_ns(),
            note=str(token),
            chunks=after.chunks - before.chunks,
        )
        link.expect("end")


async def read(config: RoleConfig, link: Link) -> None:
    """Run replicas in one process; report when all hold the writes of each note.

    Details:
        replicas: how many.
    """
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(aio.Replica(config.redis, namespace=NAMESPACE))
            for _ in range(config.details["replicas"])
        ]
        for replica in replicas:
            await replica.wait_live(TIMEOUT_S)
        link.ready()
        for _ in range(config.details.get("notes", 1)):
            note = (await asyncio.to_thread(link.expect, "note"))["note"]
            await asyncio.gather(*(replica.wait_for(note, TIMEOUT_S) for replica in replicas))
            link.send(at=time.monotonic_ns())
        await asyncio.to_thread(link.show, *(replica.snapshot()[0] for replica in replicas))
