"""A running fleet that is damaged: worker processes, two writers, a replica, and what is right."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import redis

from broker import Inspector, Producer, Replica, Status
from broker.engine.repair import damages, repair
from broker.errors import BrokerError, FencedError
from broker.protocol.names import config_key
from broker.testing.process import Process
from broker.testing.waiting import eventually

SHARDS: Final = 2
NODES: Final = ("n1", "n2")
KEYS: Final = 12  # of each writer
SOON_S: Final = 1.5
BY_S: Final = 20.0
PAUSE_S: Final = 0.1
WORKERS: Final = (
    *("--shards", str(SHARDS), "--heartbeat-interval", "200ms", "--local-delta-max-age", "20ms"),
    *("--global-data-update-interval", "500ms", "--log-retention", "2s"),
)


class WrongError(Exception):
    """A promise is broken: nothing is named, and it is not right."""


class DamagedFleet:
    """Runs in this process, but for the workers.

    Args:
        url: of a server of its own.
        namespace: of the fleet.
        folder: for logs.

    Attributes:
        raw: a client that may do everything.
        expected: what the state is, as long as nothing was lost.
    """

    def __init__(self, url: str, namespace: str, folder: Path) -> None:
        self.url, self.namespace = url, namespace
        self.raw: Any = redis.Redis.from_url(url, protocol=2)
        self._place = ["--url", url, "--namespace", namespace]
        self._workers = [
            Process(
                [sys.executable, "-P", "-m", "workers", "serve", *self._place, *WORKERS],
                folder / f"serve-{number}.log",
            )
            for number in range(2)
        ]
        self.expected: dict[str, Any] = {}
        self.rows: dict[int, float] = {}
        self.told: list[str] = []
        self._round = 0
        self._lost: dict[str, int] = {}
        if not within(BY_S, lambda: self.raw.exists(config_key(namespace)) == 1):
            raise WrongError("the workers did not start")
        self._producers = {node: self._producer(node) for node in NODES}
        self.replica = Replica(url, namespace=namespace, self_check_interval=1.0)
        self.replica.wait_live(BY_S)

    def _producer(self, node: str) -> Producer:
        return Producer(self.url, namespace=self.namespace, node=node)

    def close(self) -> None:
        """Stop everything."""
        for producer in self._producers.values():
            with suppress(BrokerError):
                producer.close()
        self.replica.close()
        for process in self._workers:
            process.end(10)
        self.raw.close()

    # -- writing ----------------------------------------------------------------------------------

    def write(self, timeout: float = BY_S) -> None:
        """Let both writers change keys of both shards, and a table, and wait for the replica.

        Raises:
            BrokerError, TimeoutError: something does not flow.
        """
        self._round += 1
        for node, producer in self._producers.items():
            changed = {f"{node}/{n}": self._round for n in range(self._round % 3, KEYS, 3)}
            producer.set_many(changed)
            self.expected |= changed
            for n in range(3):
                key = f"{node}/sum/{n}"
                producer.increment(key)
                self.expected[key] = self.expected.get(key, 0) + 1
        row = self._round % 700
        self._producers["n1"].table("t", keys=int).set(row, self._round)
        self.rows[row] = float(self._round)
        self.confirm(timeout)

    def confirm(self, timeout: float) -> None:
        """Wait until what was written is visible.

        Raises:
            BrokerError, TimeoutError: something does not flow.
        """
        for producer in self._producers.values():
            self.replica.wait_for(producer.flush(timeout), timeout)

    def write_all(self) -> None:
        """Write everything again, as somebody does who was told that something is lost."""
        for node, producer in list(self._producers.items()):
            mine = {key: one for key, one in self.expected.items() if key.startswith(f"{node}/")}
            producer.set_many(mine)
        if self.rows:
            table = self._producers["n1"].table("t", keys=int)
            table.set_many([*self.rows], [*self.rows.values()])
        self.confirm(BY_S)

    def reopen(self) -> None:
        """Open writers again whose names somebody else took, as the damage says."""
        for node, producer in self._producers.items():
            try:
                producer.flush(SOON_S)
            except FencedError as error:
                self.told.append(f"writer {node}: {error}")
                with suppress(BrokerError):
                    producer.close()
                self._producers[node] = self._producer(node)
            except (BrokerError, TimeoutError):
                pass

    # -- looking ----------------------------------------------------------------------------------

    def damages(self) -> list[str]:
        """Return what `statebroker status` names."""
        with suppress(BrokerError):
            return list(map(str, asyncio.run(damages(self.url, self.namespace, is_whole=True))))
        return ["the namespace cannot be read"]

    def health(self) -> list[str]:
        """Return what the replica, the workers and the writers tell of themselves."""
        found = [f"replica: {reason}" for reason in self.replica.health.reasons]
        with suppress(BrokerError), Inspector(self.url, namespace=self.namespace) as inspector:
            found += [
                f"{one.worker}: {one.reason}" for one in inspector.status().workers if one.reason
            ]
            found += inspector.damaged_tables()
        return found

    def lost(self) -> list[str]:
        """Return what writers told to have lost since the last look."""
        found = []
        for node, producer in self._producers.items():
            lost = producer.stats().lost
            if lost > self._lost.get(node, 0):
                found.append(f"writer {node}: {lost} deltas lost")
            self._lost[node] = lost
        return found

    def check_processes(self) -> None:
        """Require that nothing ended.

        Raises:
            WrongError: a worker did, or the replica failed.
        """
        for process in self._workers:
            if not process.is_running:
                raise WrongError(f"a worker ended: {process.tail()}")
            if "Traceback" in process.log.read_text("utf-8", errors="replace"):
                raise WrongError(f"a worker logged a traceback: {process.log}")
        if self.replica.status in {Status.FAILED, Status.CLOSED}:
            raise WrongError(f"the replica is {self.replica.status}")

    def difference(self) -> str:
        """Return how the replica, or one that joins now, differs from what is right; "" if not."""
        with self.joiner() as joiner:
            for name, one in (("the replica", self.replica), ("who joins", joiner)):
                for what, held, right in (
                    ("", dict(one), self.expected),
                    ("rows: ", self._rows_of(one), self.rows),
                ):
                    wrong = [
                        key
                        for key in {*held, *right}
                        if held.get(key, _NONE) != right.get(key, _NONE)
                    ]
                    if wrong:
                        key = min(wrong, key=str)
                        shown = f"{held.get(key, _NONE)!r} instead of {right.get(key, _NONE)!r}"
                        return f"{name} differs in {what}{len(wrong)} keys ({key!r}: {shown})"
            self.told += [f"who joins: {reason}" for reason in joiner.health.reasons]
        return ""

    def _rows_of(self, replica: Replica) -> dict[Any, Any]:
        try:
            return dict(replica.table("t", keys=int))
        except BrokerError as error:
            self.told.append(f"table t: {error}")
            return {}

    @contextmanager
    def joiner(self) -> Iterator[Replica]:
        """Give a replica that joined now."""
        with Replica(self.url, namespace=self.namespace) as joiner:
            try:
                joiner.wait_live(BY_S)
                for producer in self._producers.values():
                    joiner.wait_for(producer.flush(BY_S), BY_S)
            except (BrokerError, TimeoutError) as error:
                raise WrongError(f"nobody can join: {error}; {joiner.health.reasons}") from None
            self.told += [f"who joins: {reason}" for reason in joiner.health.reasons]
            yield joiner

    # -- mending ----------------------------------------------------------------------------------

    def repair(self) -> list[str]:
        """Run `statebroker repair --all --shards N`; return what it did."""
        return asyncio.run(repair(self.url, self.namespace, SHARDS, lost=None))

    def flows(self, timeout: float = SOON_S) -> bool:
        """Whether what is written now becomes visible soon."""
        try:
            self.write(timeout)
        except (BrokerError, TimeoutError):
            return False
        return True

    def accept(self) -> None:
        """Run `statebroker verify --accept`."""
        with Inspector(self.url, namespace=self.namespace) as inspector:
            inspector.accept()


_NONE: Final = "nothing"


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Whether something becomes so in time."""
    try:
        return eventually(is_so, seconds, pause=PAUSE_S)
    except AssertionError:
        return False
