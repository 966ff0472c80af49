"""What it costs to read a replica, and to hold it; beside a dict of packed values."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any

import msgpack

from broker import Inspector, Producer, Replica
from scripts.benchmarks.contenders.statebroker import NAMESPACE, TIMEOUT_S
from scripts.benchmarks.contenders.statebroker_load import wait_until_folded
from scripts.benchmarks.link import Link, RoleConfig
from scripts.benchmarks.memory import resident
from scripts.benchmarks.shapes import final

LOOKED_UP = 20_000
REPEATED = 3


def write(config: RoleConfig, link: Link) -> None:
    """Measure a dict of all values, write it, and wait until it is in the full state."""
    before = resident()
    state = final(config.details["shape"], config.updates, config.updates)
    held = resident() - before
    with (
        Producer(config.redis, namespace=NAMESPACE) as producer,
        Inspector(config.redis, namespace=NAMESPACE) as inspector,
    ):
        link.ready()
        began = link.wait_for_go()
        for key, value in state.items():
            producer.set(key, value)
        producer.flush()
        wait_until_folded(inspector)
        link.wrote(began, dict_bytes=held)


def read(config: RoleConfig, link: Link) -> None:
    """Load a replica, measure its memory, then read it by turns with a dict of packed values."""
    link.ready()
    began = link.wait_for_go()
    before = resident()
    with Replica(config.redis, namespace=NAMESPACE) as replica:
        replica.wait_live(TIMEOUT_S)
        joined = time.monotonic_ns()
        held = resident() - before
        measures = _measured(replica)
        link.read(
            lambda: dict(replica.items()),
            replica_bytes=held,
            joining_ms=(joined - began) / 1e6,
            **measures,
        )


def _measured(replica: Replica) -> dict[str, float]:
    """Return measure -> nanoseconds of CPU for one key."""
    plain = {key: msgpack.packb(value) for key, value in replica.items()}
    keys = list(plain)
    random.Random(1).shuffle(keys)
    del keys[LOOKED_UP:]
    every = len(plain)
    return _by_turns(
        {
            "get_ns": (partial(_get, replica, keys), len(keys)),
            "plain_get_ns": (partial(_get_unpacked, plain, keys), len(keys)),
            "iterate_ns": (partial(_iterate, replica.__iter__), every),
            "items_ns": (partial(_iterate, replica.items), every),
            "snapshot_ns": (partial(_iterate, partial(_one_moment, replica)), every),
            "plain_items_ns": (partial(_unpack_items, plain), every),
        }
    )


def _get(replica: Replica, keys: list[str]) -> None:
    for key in keys:
        replica[key]


def _get_unpacked(plain: dict[str, bytes], keys: list[str]) -> None:
    unpack = msgpack.unpackb
    for key in keys:
        unpack(plain[key])


def _iterate(source: Callable[[], Iterable[Any]]) -> None:
    for _ in source():
        pass


def _one_moment(replica: Replica) -> Iterable[Any]:
    return replica.snapshot()[0].items()


def _unpack_items(plain: dict[str, bytes]) -> None:
    unpack = msgpack.unpackb
    for _key, packed in plain.items():  # noqa: PERF102 - keys are wanted, too
        unpack(packed)


def _by_turns(reads: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, float]:
    """Return the median CPU time of each, for one key, in nanoseconds.

    That of all threads: the copy of one moment is made on the replica's own.
    """
    found: dict[str, list[float]] = {name: [] for name in reads}
    for _ in range(REPEATED):
        for name, (read_all, count) in reads.items():
            began = time.process_time_ns()
            read_all()
            found[name].append((time.process_time_ns() - began) / count)
    return {name: median(times) for name, times in found.items()}
