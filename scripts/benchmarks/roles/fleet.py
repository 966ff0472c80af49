"""Many writers in one process, each a node with a connection of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from broker import aio
from broker.model import Token
from broker.protocol.codec import encode_chunk
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_SET
from scripts.benchmarks import wire
from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.workload import NODE_KEYS, node_key

OPENED_AT_ONCE = 50


async def write(config: RoleConfig, link: Link) -> None:
    """Write with every node, at a rate or as fast as they can; done when Redis has all.

    Details:
        first: number of the first node.
        nodes: how many.
        each: deltas of each node.
        per_s: of each node; 0 for as fast as it can.
    """
    first, count = config.details["first"], config.details["nodes"]
    each, per_s = config.details["each"], config.details["per_s"]
    async with AsyncExitStack() as stack:
        producers: dict[int, aio.Producer] = {}
        for begin in range(first, first + count, OPENED_AT_ONCE):
            numbers = range(begin, min(begin + OPENED_AT_ONCE, first + count))
            opened = [
                stack.enter_async_context(
                    aio.Producer(config.redis, namespace=NAMESPACE, node=f"node-{number}")
                )
                for number in numbers
            ]
            producers.update(zip(numbers, await asyncio.gather(*opened), strict=True))
        link.ready()
        await asyncio.to_thread(link.expect, "go")
        began = time.monotonic()
        work = [
            _write(producer, number, each, began + (number / (first + count)) / per_s, per_s)
            if per_s
            else _write(producer, number, each, 0.0, 0.0)
            for number, producer in producers.items()
        ]
        await asyncio.gather(*work)
        written = time.monotonic()
        tokens = await asyncio.gather(*(producer.flush() for producer in producers.values()))
        last = max(tokens, key=lambda token: token.marks[0][1])
        chunks = sum(producer.stats().chunks for producer in producers.values())
        link.send(
            began=began * 1e9,
            written=written * 1e9,
            note=str(Token(last.marks)),
            append=last.marks[0][1],
            chunks=chunks,
        )
        await asyncio.to_thread(link.expect, "end")


async def _write(
    producer: aio.Producer, number: int, each: int, begin: float, per_s: float
) -> None:
    for done in range(each):
        if per_s and (wait := begin + done / per_s - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        await producer.set(node_key(number, done % NODE_KEYS), float(done))
        if not per_s and not done % 100:
            # Let the other producers of this process write.
            await asyncio.sleep(0)


def append(config: RoleConfig, link: Link) -> None:
    """Append the same chunks at the rate, without the cost of producers.

    Details: those of `write`; per_s above 0.
    """
    first, count = config.details["first"], config.details["nodes"]
    each, per_s = config.details["each"], config.details["per_s"]
    numbers = range(first, first + count)
    names = [f"node-{number}" for number in numbers]
    with ExitStack() as stack:
        incarnations = wire.open_nodes(stack.enter_context(wire.Wire(config.redis)), names)
        wires = [stack.enter_context(wire.Wire(config.redis)) for _ in names]
        requests = [
            wire.append(name, incarnation, done + 1, 1, _chunk(name, incarnation, number, done))
            for done in range(each)
            for name, incarnation, number in zip(names, incarnations, numbers, strict=True)
        ]
        link.ready()
        link.expect("go")
        times, reply = _sent(wires, requests, per_s, wire.Wire.answer)
        link.send(
            **times, note=wire.token(reply), append=int.from_bytes(reply[:8]), chunks=len(requests)
        )
        link.expect("end")


def plain(config: RoleConfig, link: Link) -> None:
    """Send as many plain SETs in the same way.

    Details: those of `append`.
    """
    first, count = config.details["first"], config.details["nodes"]
    each, per_s = config.details["each"], config.details["per_s"]
    with ExitStack() as stack:
        wires = [stack.enter_context(wire.Wire(config.redis)) for _ in range(count)]
        requests = [
            wire.command("SET", node_key(number, done % NODE_KEYS), str(float(done)))
            for done in range(each)
            for number in range(first, first + count)
        ]
        link.ready()
        link.expect("go")
        times, _ = _sent(wires, requests, per_s, wire.Wire.reply)
        link.send(**times)
        link.expect("end")


def _sent(
    wires: Sequence[wire.Wire],
    requests: Sequence[bytes],
    per_s: float,
    read: Callable[[wire.Wire], Any],
) -> tuple[dict[str, float], Any]:
    """Send requests, each on the next connection, so many a second on each of them.

    Returns:
        When it began and when all was sent, in nanoseconds; the last answer.
    """
    count, reply = len(wires), None
    began = time.monotonic()
    for done, request in enumerate(requests):
        wait = began + done / count / per_s - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        one = wires[done % count]
        if done >= count:
            reply = read(one)
        one.send(request)
    written = time.monotonic()
    for done in range(len(requests), len(requests) + count):
        reply = read(wires[done % count])
    return {"began": began * 1e9, "written": written * 1e9}, reply


def _chunk(node: str, incarnation: int, number: int, done: int) -> bytes:
    """Return the chunk that a producer makes of one set."""
    run = Run(OP_SET, [node_key(number, done % NODE_KEYS)], [float(done)], None)
    return encode_chunk(Chunk(node, incarnation, done + 1, round(time.time() * 1000), [run]))
