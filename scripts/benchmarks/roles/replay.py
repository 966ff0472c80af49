"""A day of flights through Redis in three ways: deltas, full states, or both."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import msgpack

from broker import Producer
from scripts.benchmarks.contenders.hset_publish import client, subscribed
from scripts.benchmarks.contenders.statebroker import NAMESPACE
from scripts.benchmarks.flights import apply, changes_of, day, fold, replayed
from scripts.benchmarks.link import Link, RoleConfig
from scripts.flights.producer import write
from scripts.flights.records import NODES

FINISHED = "finished"


def both(config: RoleConfig, link: Link) -> None:
    """Ours: three producers, one for each airport.

    Details:
        seconds: that the day takes.
        max_age: of the producers, in seconds.
        compress: the same setting of theirs.
    """
    before, during = day()
    settings = {
        "local_delta_max_age": config.details["max_age"],
        "compress": config.details["compress"],
    }
    with ExitStack() as stack:
        producers = {
            node: stack.enter_context(
                Producer(config.redis, namespace=NAMESPACE, node=node, **settings)
            )
            for node in NODES
        }

        def token() -> str:
            tokens = [producer.flush() for producer in producers.values()]
            return str(max(tokens, key=lambda one: one.marks.get(0, (b"", 0))[1]))

        for movement in before:
            write(producers[movement.node], movement)
        link.send(ready=True, note=token())
        link.expect("go")
        for movement in replayed(during, config.details["seconds"]):
            write(producers[movement.node], movement)
        link.send(note=token(), messages=0, bytes=0)
        link.expect("end")


def deltas(config: RoleConfig, link: Link) -> None:
    """Publish the changes of each period; a subscriber that misses a message never gets it.

    Details:
        seconds: that the day takes.
        every: minimum of seconds between two messages.
    """
    _, during = day()
    server, every = client(config), config.details["every"]
    link.ready()
    link.expect("go")
    waiting: list[Any] = []
    messages = size = 0
    oldest = 0.0

    def publish() -> None:
        nonlocal messages, size
        data = msgpack.packb(waiting)
        server.publish("updates", data)
        messages, size = messages + 1, size + len(data)
        waiting.clear()

    for movement in replayed(during, config.details["seconds"]):
        now = time.monotonic()
        if waiting and now - oldest >= every:
            publish()
        if not waiting:
            oldest = now
        waiting += changes_of(movement)
    if waiting:
        publish()
    server.publish("updates", msgpack.packb(FINISHED))
    link.send(note="", messages=messages, bytes=size)
    link.expect("end")


def states(config: RoleConfig, link: Link) -> None:
    """Publish the whole state at an interval, if it changed.

    Details: those of `deltas`.
    """
    before, during = day()
    server, every, seconds = client(config), config.details["every"], config.details["seconds"]
    state: dict[str, Any] = {}
    fold(state, before)
    link.ready()
    link.expect("go")
    began = time.monotonic()
    messages = size = 0

    def publish() -> None:
        nonlocal messages, size
        data = msgpack.packb(state)
        server.publish("updates", data)
        messages, size = messages + 1, size + len(data)

    periods = 0
    for movement in replayed(during, seconds):
        passed = int((time.monotonic() - began) / every)
        if passed > periods:
            publish()
            periods = passed
        fold(state, [movement])
    publish()
    server.publish("updates", msgpack.packb(FINISHED))
    link.send(note="", messages=messages, bytes=size)
    link.expect("end")


def read_deltas(config: RoleConfig, link: Link) -> None:
    """Apply the changes to a state that is known before."""
    state: dict[str, Any] = {}
    fold(state, day()[0])
    messages = subscribed(config)
    link.ready()
    for message in messages:
        changes = msgpack.unpackb(message["data"])
        if changes == FINISHED:
            break
        apply(state, changes)
    link.send(done=True)
    link.show(state)


def read_states(config: RoleConfig, link: Link) -> None:
    """Keep the latest state."""
    state: dict[str, Any] = {}
    messages = subscribed(config)
    link.ready()
    for message in messages:
        found = msgpack.unpackb(message["data"])
        if found == FINISHED:
            break
        state = found
    link.send(done=True)
    link.show(state)
