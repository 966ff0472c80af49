"""The deployments of a chaos run: one server behind a proxy, or several with failover."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from broker.testing import FaultProxy
from broker.testing.clusters import ClusterOfServers, Reachable, SentinelDeployment, ask
from broker.testing.server import REDIS, VALKEY, find_binary
from broker.testing.server import Server as Replicated
from tests.chaos.clock import Clock
from tests.chaos.server import Server

KINDS = ("single", "sentinel", "cluster")


class Deployment(ABC):
    """Servers under one URL.

    Attributes:
        environment: of the workers.
        left_out: faults that cannot be injected here -> the reason.
        has_replicas: whether there is failover. Such runs have no link faults, so they need not
            show every way of recovery.
    """

    has_replicas: ClassVar[bool] = False

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = {}
        self.left_out: dict[str, str] = {}

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of the servers, for the observers."""

    @property
    def fleet_url(self) -> str:
        """The URL for the fleet."""
        return self.url

    @property
    def counts(self) -> Counter[str]:
        """The counters of the proxy, if there is one."""
        return Counter()

    @abstractmethod
    def running(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which all servers run."""

    @abstractmethod
    def kill(self) -> None:
        """End every process."""

    @abstractmethod
    async def heal(self) -> None:
        """Switch every fault off, and wait until the deployment is complete."""

    @abstractmethod
    def servers(self) -> Sequence[Reachable]:
        """Return the running data servers."""

    def primaries(self) -> Sequence[Reachable]:
        """Return the running primaries."""
        return self.servers()

    async def ask_all(self, *command: Any) -> list[Any]:
        """Return the replies of all data servers."""
        return await asyncio.to_thread(lambda: [ask(one, *command) for one in self.servers()])

    async def ask_primaries(self, *command: Any) -> list[Any]:
        """Return the replies of all primaries."""
        return await asyncio.to_thread(lambda: [ask(one, *command) for one in self.primaries()])


class Single(Deployment):
    """One server with an append-only file, behind a proxy, with a clock that can be set.

    Args:
        folder: of this run.
        seed: of the random choices of the proxy.
        binary: of the server; None: the bundled Valkey, or the installed server.
    """

    def __init__(self, folder: Path, seed: int, binary: str | None) -> None:
        super().__init__()
        self.clock = Clock(folder, binary)
        self.server = Server(folder, self.clock, binary)
        self.proxy = FaultProxy(self.server.url, seed=seed)
        self.environment = self.clock.environment
        if self.clock.obstacle is not None:
            self.left_out["clock_step"] = self.clock.obstacle

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self.server.url

    @property
    def fleet_url(self) -> str:
        """The URL of the proxy."""
        return self.proxy.url

    @property
    def counts(self) -> Counter[str]:
        """The counters of the proxy."""
        return self.proxy.counts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run server and proxy."""
        try:
            await self.server.start()
            async with self.proxy:
                yield
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server."""
        self.server.kill()

    async def heal(self) -> None:
        """Switch the faults of the proxy off."""
        self.proxy.heal()

    def servers(self) -> Sequence[Reachable]:
        """Return the only one."""
        return [self.server]


NO_PROXY = "the fleet connects to the addresses that the servers announce, not to a proxy"
NO_WAY_BACK = "a restarted server copies the data of its primary"
OTHER_CLOCK = "servers that monitor each other would consider each other dead"
ALSO_LEFT_OUT = {
    **dict.fromkeys(("half_snapshot", "tail_loss", "cut", "reset", "refuse", "stall"), NO_PROXY),
    **dict.fromkeys(("stall_replies", "reply_lost", "split", "delay"), NO_PROXY),
    **dict.fromkeys(("drop_messages", "repeat_messages", "reorder_messages"), NO_PROXY),
    **dict.fromkeys(("server_old_log", "server_old_dump", "server_empty"), NO_WAY_BACK),
    "clock_step": OTHER_CLOCK,
}


class FailoverDeployment(Deployment):
    """Servers with failover.

    Args:
        made: the servers, not started.
    """

    has_replicas = True

    def __init__(self, made: SentinelDeployment | ClusterOfServers) -> None:
        super().__init__()
        self.made = made
        self.left_out = dict(ALSO_LEFT_OUT)

    @property
    def url(self) -> str:
        """The URL of sentinels or nodes."""
        return self.made.url

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all of them."""
        try:
            await asyncio.to_thread(self.made.start)
            yield
        finally:
            self.kill()

    def kill(self) -> None:
        """End all of them."""
        self.made.stop()

    async def heal(self) -> None:
        """Restart killed servers, and wait until all servers know each other."""
        await asyncio.to_thread(self._heal)

    def _heal(self) -> None:
        for one in self.all():
            if one.is_running:
                one.resume()
            else:
                one.start()
        self.made.until_whole()

    def servers(self) -> Sequence[Reachable]:
        """Return all that hold data and run."""
        return [one for one in self.all() if one.is_running]

    @abstractmethod
    def all(self) -> list[Replicated]:
        """Return all data servers."""

    @abstractmethod
    def primaries(self) -> list[Replicated]:
        """Return the primaries."""

    @abstractmethod
    def primary(self, slot: int) -> Replicated:
        """Return the primary of a slot."""

    @abstractmethod
    def replicas_of(self, primary: Replicated) -> list[Replicated]:
        """Return the replicas of a primary."""

    @abstractmethod
    def fail_over(self, slot: int) -> None:
        """Fail the primary of a slot over; return once it is done."""


class BehindSentinels(FailoverDeployment):
    """A primary with two replicas, and three Sentinels."""

    def __init__(self, made: SentinelDeployment) -> None:
        super().__init__(made)
        self.watched = made
        self.left_out["slot_move"] = "only a Cluster has slots"

    def all(self) -> list[Replicated]:
        """Return primary and replicas."""
        return self.watched.servers

    def primaries(self) -> list[Replicated]:
        """Return the primary."""
        return [self.watched.primary]

    def primary(self, slot: int) -> Replicated:  # noqa: ARG002
        """Return the primary."""
        return self.watched.primary

    def replicas_of(self, primary: Replicated) -> list[Replicated]:  # noqa: ARG002
        """Return both replicas."""
        return self.watched.replicas()

    def fail_over(self, slot: int) -> None:  # noqa: ARG002
        """SENTINEL FAILOVER."""
        self.watched.fail_over()


class Clustered(FailoverDeployment):
    """A Cluster of three primaries and three replicas."""

    def __init__(self, made: ClusterOfServers) -> None:
        super().__init__(made)
        self.cluster = made

    def all(self) -> list[Replicated]:
        """Return all nodes."""
        return self.cluster.nodes

    def primaries(self) -> list[Replicated]:
        """Return the nodes that own slots."""
        ports = {port for _, _, port in self.cluster.owners(self.cluster.running[0])}
        return [node for node in self.cluster.nodes if node.port in ports]

    def primary(self, slot: int) -> Replicated:
        """Return the owner of the slot."""
        return self.cluster.owner(slot)

    def replicas_of(self, primary: Replicated) -> list[Replicated]:
        """Return its replica."""
        return [self.cluster.replica_of(primary)]

    def fail_over(self, slot: int) -> None:
        """CLUSTER FAILOVER."""
        self.cluster.fail_over(slot)


def deployment(kind: str, folder: Path, seed: int, binary: str | None) -> Deployment:
    """Make a deployment, not started.

    Args:
        kind: one of `KINDS`.
        folder: of this run.
        seed: of the random choices of a proxy.
        binary: of the servers; None: the bundled Valkey, or the installed server.
    """
    if kind == "single":
        return Single(folder, seed, binary)
    program = binary or (REDIS if isinstance(find_binary(VALKEY), str) else VALKEY)
    numbers = iter(range(1000))

    def directory() -> Path:
        made = folder / f"s{next(numbers)}"
        made.mkdir()
        return made

    if kind == "sentinel":
        return BehindSentinels(SentinelDeployment(program, directory))
    return Clustered(ClusterOfServers(program, directory))
