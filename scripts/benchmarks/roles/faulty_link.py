"""A proxy that breaks connections or drops messages, and replicas behind it."""

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
    """Run a proxy between a replica and the server; break and repair it on order, report counts.

    Details:
        drop: share of pub/sub messages that are dropped after the order "drop".
    """
    with FaultProxy(config.redis, seed=1) as proxy:
        link.send(ready=True, url=proxy.url)
        while (order := link.receive()["order"]) != "end":
            match order:
                case "break":
                    proxy.faults.refuse = True
                    proxy.cut()
                case "repair":
                    proxy.heal()
                case "drop":
                    proxy.faults.drop_messages = config.details["drop"]
            link.send(at=time.monotonic_ns(), **proxy.counts)


def follow(config: RoleConfig, link: Link) -> None:
    """Be live, and record every change of status; in the end show the state."""
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
    """Receive every change, and record its latency since the `set`."""
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
