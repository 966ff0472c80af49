"""The deployments of the conformance suite: URL, workers, and ways to inject faults.

Another deployment is another subclass of `Deployment`, and a line in conftest.py.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import redis

from broker.protocol.names import ShardKeys, slot_of_key
from broker.testing.clusters import ClusterOfServers, Reachable, SentinelDeployment, ask, client
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.acl_users import RoleUsers
from tests.integration.running_workers import Serving

NewDirectory = Callable[[], Path]

SHARDS = 6


class Deployment(ABC):
    """Servers under one URL, shared by the tests of a session; each test leaves them intact.

    Attributes:
        has_slots: slots can be moved, and nodes added.
        has_replicas: each primary has one that takes over from it.
        users: in whose roles tests come; None: all as the owner.
    """

    has_slots: ClassVar[bool] = False
    has_replicas: ClassVar[bool] = False
    users: RoleUsers | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL, with the owner's rights."""

    def way(self, role: str, url: str | None = None) -> str:
        """Return the URL for a process of a role; of one server if its URL is."""
        url = url or self.url
        return self.users.url(role, url) if self.users else url

    @contextmanager
    def with_roles(self, namespace: str) -> Iterator[None]:
        """Restrict each process to the rights of its role for a block."""
        users = RoleUsers(
            [server.url for server in self.servers()],
            namespace,
            shards=SHARDS,
            is_cluster=self.has_slots,
            is_saved=True,
        )
        with users:
            self.users = users
            try:
                yield
            finally:
                self.users = None
            # A server that was restarted has forgotten it; most were not.
            assert users.refused() == set()

    @abstractmethod
    def start(self) -> None:
        """Start all servers; returns once all are ready."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all servers."""

    @abstractmethod
    def heal(self) -> None:
        """Restart killed servers; returns once all are ready."""

    @abstractmethod
    def servers(self) -> Sequence[Reachable]:
        """Return all servers that hold data and run."""

    @abstractmethod
    def replace_primary(self, namespace: str) -> None:
        """Replace the first shard's server in order; returns once that is done."""

    @abstractmethod
    def kill_primary(self, namespace: str) -> None:
        """SIGKILL it; returns once it or another one serves."""

    @abstractmethod
    def forgetting(self, namespace: str) -> AbstractContextManager[None]:
        """Kill the server of the first shard after a block, which loses the block's writes.

        What is accepted in the block is forgotten, for certain: it is not replicated.
        """

    def beside_first(self, namespace: str) -> list[int]:  # noqa: ARG002
        """Return all shards on the server of the first one, that included."""
        return list(range(SHARDS))

    @contextmanager
    def serve(self, namespace: str, **settings: Any) -> Iterator[None]:
        """Run workers for a namespace: two flush workers, and a scheduler by default."""
        flushing = {"shards": SHARDS, "flushers": 2, **settings}
        with ExitStack() as stack:
            workers = Serving(self.way("flusher"), namespace, **flushing)
            stack.callback(workers.stop)
            scheduler = Serving(
                self.way("scheduler"), namespace, shards=SHARDS, flushers=0, interval=0.5
            )
            stack.callback(scheduler.stop)
            yield

    def cut_subscribers(self) -> int:
        """Disconnect every subscriber; return how many there were."""
        # Sentinels subscribe at their servers too.
        return sum(ask(server, "CLIENT", "KILL", "TYPE", "pubsub") for server in self.servers())


def slot_of(namespace: str, shard: int) -> int:
    """Return the slot of one of a namespace's shards."""
    return slot_of_key(ShardKeys.of(namespace, shard, SHARDS).meta.encode())


def first_slot(namespace: str) -> int:
    """Return the slot of a namespace's first shard."""
    return slot_of(namespace, 0)


class Single(Deployment):
    """One server that keeps everything on disk."""

    def __init__(self, kind: str, directory: NewDirectory) -> None:
        place = directory()
        (place / "users.acl").touch()
        self._server = Server(
            kind,
            place,
            [
                *("--aclfile", str(place / "users.acl")),
                *("--appendonly", "yes", "--appendfsync", "always"),
                # A rewrite of the file in the middle of a copy would make the copy useless.
                *("--auto-aof-rewrite-percentage", "0"),
            ],
            port=0,
        )

    @property
    def url(self) -> str:
        """The URL."""
        return self._server.url

    def start(self) -> None:
        """Start it."""
        self._server.start()

    def stop(self) -> None:
        """End it."""
        if self._server.is_running:
            self._server.kill()

    def heal(self) -> None:
        """Start it, if it was killed."""
        if not self._server.is_running:
            self._server.start()

    def servers(self) -> list[Server]:
        """Return the only one."""
        return [self._server]

    def replace_primary(self, namespace: str) -> None:  # noqa: ARG002
        """Restart it in order."""
        self._server.restart()

    def kill_primary(self, namespace: str) -> None:  # noqa: ARG002
        """SIGKILL it, and start it again."""
        self._server.kill()
        self._server.start()

    @contextmanager
    def forgetting(self, namespace: str) -> Iterator[None]:  # noqa: ARG002
        """Restore the data of before the block."""
        here = self._server.directory
        copy = here.with_name(f"{here.name}-copy")
        shutil.copytree(here / "appendonlydir", copy)
        yield
        self._server.kill()
        shutil.rmtree(here / "appendonlydir")
        shutil.move(copy, here / "appendonlydir")
        self._server.start()


class BehindSentinels(Deployment):
    """A primary, two replicas, three Sentinels."""

    has_replicas = True

    def __init__(self, kind: str, directory: NewDirectory) -> None:
        self._set = SentinelDeployment(kind, directory)

    @property
    def url(self) -> str:
        """The URL, of the sentinels."""
        return self._set.url

    def start(self) -> None:
        """Start all servers."""
        self._set.start()

    def stop(self) -> None:
        """Stop all servers."""
        self._set.stop()

    def heal(self) -> None:
        """Restart killed servers; a former primary becomes a replica."""
        for server in self._set.servers:
            if not server.is_running:
                server.start()
        self._set.until_whole()

    def servers(self) -> list[Server]:
        """Return primary and replicas."""
        return [server for server in self._set.servers if server.is_running]

    def replace_primary(self, namespace: str) -> None:  # noqa: ARG002
        """SENTINEL FAILOVER."""
        self._set.fail_over()

    def kill_primary(self, namespace: str) -> None:  # noqa: ARG002
        """SIGKILL it; the sentinels choose another one."""
        self._set.kill_primary()

    @contextmanager
    def forgetting(self, namespace: str) -> Iterator[None]:  # noqa: ARG002
        """Stop the replicas meanwhile."""
        replicas = self._set.replicas()
        with _replicas_stopped(self._set.primary, replicas):
            yield
            before = self._set.primary
            before.kill()
        eventually(lambda: self._set.primary is not before, 30, "a failover")


class Clustered(Deployment):
    """Three primaries, three replicas."""

    has_slots = True
    has_replicas = True

    def __init__(self, kind: str, directory: NewDirectory) -> None:
        self.cluster = ClusterOfServers(kind, directory)

    @property
    def url(self) -> str:
        """The URL, by three of the nodes."""
        return self.cluster.url

    def start(self) -> None:
        """Start all servers."""
        self.cluster.start()

    def stop(self) -> None:
        """Stop all servers."""
        self.cluster.stop()

    def heal(self) -> None:
        """Restart killed servers; a former primary becomes a replica."""
        for node in self.cluster.nodes:
            if not node.is_running:
                node.start()
        self.cluster.until_whole()

    def servers(self) -> list[Server]:
        """Return all nodes that run."""
        return self.cluster.running

    def replace_primary(self, namespace: str) -> None:
        """CLUSTER FAILOVER."""
        self.cluster.fail_over(first_slot(namespace))

    def kill_primary(self, namespace: str) -> None:
        """SIGKILL it; its replica takes over."""
        self.cluster.kill_owner(first_slot(namespace))

    @contextmanager
    def forgetting(self, namespace: str) -> Iterator[None]:
        """Stop its replica meanwhile."""
        slot = first_slot(namespace)
        before = self.cluster.owner(slot)
        with _replicas_stopped(before, [self.cluster.replica_of(before)]):
            yield
            before.kill()
        eventually(lambda: self.cluster.owner(slot) is not before, 30, "a failover")

    def beside_first(self, namespace: str) -> list[int]:
        """Return the shards whose slots have the same owner."""
        owners = [self.cluster.owner(slot_of(namespace, shard)) for shard in range(SHARDS)]
        return [shard for shard, owner in enumerate(owners) if owner is owners[0]]


@contextmanager
def _replicas_stopped(primary: Server, replicas: list[Server]) -> Iterator[None]:
    """Stop the replicas for a block; they have what was written before, and no more."""
    written = ask(primary, "INFO", "replication")["master_repl_offset"]
    try:
        for replica in replicas:
            eventually(partial(_has_read, replica, written), 30, "a replica has it all")
            replica.pause()
        with client(primary) as one:
            one.execute_command("CLIENT", "KILL", "TYPE", "replica")
        yield
    finally:
        for replica in replicas:
            with suppress(redis.ConnectionError):
                replica.resume()


def _has_read(replica: Server, written: int) -> bool:
    """Whether a replica has everything up to its primary's offset, and still follows."""
    reported = ask(replica, "INFO", "replication")
    return bool(
        reported.get("master_link_status") == "up" and reported["slave_repl_offset"] >= written
    )
