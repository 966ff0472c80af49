"""A link that breaks, and a replica behind it that has to find its way back."""

from __future__ import annotations

import time
from contextlib import closing
from threading import Thread
from typing import Any

from broker import Replica
from broker.testing.proxy import FaultProxy
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.pace import percentiles


def proxy(config: RoleConfig, link: Link) -> None:
    """Stand between a replica and the server; break and mend as told, and tell what passed.

    Details:
        drop: share of pub/sub messages that vanish from the order "drop" on.
    """
    with FaultProxy(config.redis, seed=1) as proxy:
        link.send(ready=True, url=proxy.url)
        while (order := link.receive()["order"]) != "end":
            match order:
                case "break":
                    proxy.faults.refuse = True
                    proxy.cut()
                case "mend":
                    proxy.heal()
                case "drop":
                    proxy.faults.drop_messages = config.details["drop"]
            link.send(at=time.monotonic_ns(), **proxy.counts)


def follow(config: RoleConfig, link: Link) -> None:
    """Be live, and note when the status changes; then show what is held after the note."""
    changes: list[tuple[int, str, str]] = []
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)

        def note() -> None:
            changes.extend(
                (time.monotonic_ns(), change.after, change.reason) for change in replica.statuses()
            )

        Thread(target=note, daemon=True).start()
        link.ready()
        while (order := link.receive())["order"] == "statuses":
            link.send(changes=changes, loads=replica.stats().loads)
        replica.wait_for(order["note"], TIMEOUT_S)
        link.send(at=time.monotonic_ns())
        link.show(replica.snapshot()[0])


def watch(config: RoleConfig, link: Link) -> None:
    """Follow every change, and note how long after its `set` it came."""
    late: list[float] = []
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        with closing(replica.changes()) as changes:
            link.ready()
            for change in changes:
                stamped: Any = change.value
                late.append(time.monotonic_ns() - stamped[1])
                if len(late) == config.updates:
                    break
        gaps = replica.stats().gaps
        link.send(gaps=gaps, **percentiles(late))
        link.show({key: value for key, (value, _) in replica.snapshot()[0].items()})
