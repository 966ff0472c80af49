"""Redis Clusters and Sentinel deployments of local processes, with failovers on request."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import redis

from broker.testing.server import Certificates, Server, free_port
from broker.testing.waiting import eventually

SLOTS = 16384
NODE_TIMEOUT_MS = 1000
SENTINELS = 3
SETTLE_TIMEOUT_S = 30.0

NewDirectory = Callable[[], Path]


class Reachable(Protocol):
    """A server with a URL."""

    @property
    def url(self) -> str:
        """The URL to connect to."""


@contextmanager
def client(server: Reachable) -> Iterator[redis.Redis]:
    """Yield a plain client of one server."""
    with redis.Redis.from_url(server.url, protocol=2, decode_responses=True) as one:
        yield one


def ask(server: Reachable, *command: Any) -> Any:
    """Return the reply of one server."""
    with client(server) as one:
        return one.execute_command(*command)  # type: ignore[no-untyped-call]


def raw(server: Reachable, *command: Any) -> Any:
    """Return the unparsed reply of one server."""
    with redis.Redis.from_url(server.url, protocol=2, decode_responses=True) as one:
        one.response_callbacks.clear()
        return one.execute_command(*command)


def _holds(is_whole: Callable[[], bool]) -> bool:
    """Whether a condition holds; false while a server does not answer."""
    try:
        return is_whole()
    except redis.ConnectionError:
        # A server that becomes a replica closes its connections; a starting one is loading.
        return False


def _are_replicas_synced(replication: str) -> bool:
    """Whether every replica receives the stream of its primary, by INFO replication of the primary.

    After the initial load a replica is "online", but receives nothing until it has acknowledged an
    offset, up to a second later.
    """
    replicas = re.findall(r"^slave\d+:.*state=(\w+),offset=(\d+)", replication, re.MULTILINE)
    return all(state == "online" and offset != "0" for state, offset in replicas)


def _with_tls(url: str, tls: Certificates | None) -> str:
    return url.replace("redis", "rediss", 1) + tls.options(tls.client) if tls else url


class ClusterOfServers:
    """A Redis Cluster on loopback, with one replica for each primary.

    Args:
        kind: of server.
        directory: returns a new directory.
        primaries: how many.
        tls: certificates for TLS on all connections, also between nodes; None: plaintext.
        host: host name that the nodes announce; None: their address.
        options: of every node; they take precedence over ours.
    """

    def __init__(
        self,
        kind: str,
        directory: NewDirectory,
        primaries: int = 3,
        *,
        tls: Certificates | None = None,
        host: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._kind = kind
        self._options = options
        self._tls = tls
        self._host = host
        self._directory = directory
        self._primaries = primaries
        self.nodes: list[Server] = []

    @property
    def url(self) -> str:
        """The URL, by the first three nodes."""
        seeds = ",".join(f"{self._host or '127.0.0.1'}:{node.port}" for node in self.nodes[:3])
        return _with_tls(f"redis+cluster://{seeds}", self._tls)

    def start(self) -> None:
        """Start, and return once every node sees the whole Cluster."""
        for _ in range(2 * self._primaries):
            self._new_node()
        primaries = self.nodes[: self._primaries]
        for number, node in enumerate(primaries):
            first = number * SLOTS // self._primaries
            last = (number + 1) * SLOTS // self._primaries - 1
            ask(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self._meet(node)
        for number, replica in enumerate(self.nodes[self._primaries :]):
            self._follow(replica, primaries[number])
        eventually(self.is_whole, SETTLE_TIMEOUT_S, "the cluster is whole")

    def stop(self) -> None:
        """Kill every node."""
        for node in self.nodes:
            if node.is_running:
                node.kill()

    def _new_node(self) -> Server:
        port = free_port()
        directory = self._directory()
        # A joining node gets the ACL users of the others, as operators configure it.
        users = (self.nodes[0].directory / "users.acl").read_text() if self.nodes else ""
        (directory / "users.acl").write_text(users)
        node = Server(
            self._kind,
            directory,
            [
                *("--aclfile", str(directory / "users.acl")),
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
                *("--cluster-config-file", "nodes.conf"),
                *("--cluster-replica-validity-factor", "0"),
                *("--cluster-require-full-coverage", "no"),
                *("--cluster-allow-replica-migration", "no"),
                *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
                *("--appendonly", "no"),
                *(("--tls-cluster", "yes") if self._tls else ()),
                *(("--cluster-announce-hostname", self._host) if self._host else ()),
                *(("--cluster-preferred-endpoint-type", "hostname") if self._host else ()),
                *self._options,
            ],
            port=port,
            tls=self._tls,
        )
        node.start()
        self.nodes.append(node)
        return node

    def _meet(self, node: Server) -> None:
        first = self.nodes[0]
        bus = ask(first, "CONFIG", "GET", "cluster-port")
        found = bus["cluster-port"] if isinstance(bus, dict) else bus[1]
        ask(node, "CLUSTER", "MEET", "127.0.0.1", first.port, found)

    def _follow(self, replica: Server, primary: Server) -> None:
        name = ask(primary, "CLUSTER", "MYID")

        def follows() -> bool:
            try:
                return bool(ask(replica, "CLUSTER", "REPLICATE", name))
            except redis.ResponseError:
                # It does not know that node yet.
                return False

        eventually(follows, SETTLE_TIMEOUT_S, "a replica follows")

    # -- state ------------------------------------------------------------------------------------

    def owners(self, node: Server) -> list[tuple[int, int, int]]:
        """Return (first slot, last slot, port of the owner) as one node sees it."""
        return [(one[0], one[1], one[2][1]) for one in raw(node, "CLUSTER", "SLOTS")]

    def owner(self, slot: int) -> Server:
        """Return the node that owns a slot, as most running nodes see it."""
        votes: dict[int, int] = {}
        for node in self.running:
            for first, last, port in self.owners(node):
                if first <= slot <= last:
                    votes[port] = votes.get(port, 0) + 1
        port = max(votes, key=lambda one: votes[one])
        return next(node for node in self.nodes if node.port == port)

    def replica_of(self, primary: Server) -> Server:
        """Return a running replica of a node."""
        name = ask(primary, "CLUSTER", "MYID")
        for line in raw(primary, "CLUSTER", "REPLICAS", name):
            port = int(line.split()[1].partition("@")[0].rpartition(":")[2])
            for node in self.running:
                if node.port == port:
                    return node
        raise AssertionError("no replica")

    @property
    def running(self) -> list[Server]:
        """The nodes that run."""
        return [node for node in self.nodes if node.is_running]

    def is_whole(self) -> bool:
        """Whether all running nodes see all slots served, by the same nodes, with replicas."""
        views = set()
        replicas = set()
        for node in self.running:
            info = raw(node, "CLUSTER", "INFO")
            if "cluster_state:ok" not in info or "cluster_slots_ok:16384" not in info:
                return False
            views.add(self._served(node))
            replication = raw(node, "INFO", "replication")
            if "role:slave" in replication:
                replicas.add(node.port)
                if "master_link_status:up" not in replication:
                    return False
            if not _are_replicas_synced(replication):
                return False
        # A node that came back as a replica must be known as one to all others.
        known = {port for *_, ports in next(iter(views), ()) for port in ports[1:]}
        return len(views) == 1 and known == replicas

    def _served(self, node: Server) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Return (first slot, last slot, ports of owner and replicas) as one node sees it."""
        ranges = []
        for first, last, owner, *replicas in raw(node, "CLUSTER", "SLOTS"):
            ranges.append((first, last, (owner[1], *sorted(one[1] for one in replicas))))
        return tuple(sorted(ranges))

    def until_whole(self) -> None:
        """Wait until `is_whole`."""
        eventually(lambda: _holds(self.is_whole), SETTLE_TIMEOUT_S, "the cluster is whole")

    # -- changes ----------------------------------------------------------------------------------

    def fail_over(self, slot: int) -> None:
        """Fail the owner of a slot over to its replica; return once it is done."""
        before = self.owner(slot)
        replica = self.replica_of(before)
        ask(replica, "CLUSTER", "FAILOVER")
        eventually(lambda: self.owner(slot) is not before, SETTLE_TIMEOUT_S, "a failover")

    def kill_owner(self, slot: int) -> Server:
        """SIGKILL the owner of a slot; return it once its replica took over."""
        before = self.owner(slot)
        before.kill()
        eventually(lambda: self.owner(slot) is not before, SETTLE_TIMEOUT_S, "a failover")
        return before

    def move_slot(self, slot: int, target: Server) -> None:
        """Move a slot with its keys, key by key, as resharding tools do."""
        source = self.owner(slot)
        if source is target:
            return
        source_id, target_id = (ask(node, "CLUSTER", "MYID") for node in (source, target))
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        ask(target, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        ask(source, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        eventually(lambda: self.owner(slot) is target, SETTLE_TIMEOUT_S, "the slot moved")

    def add_node(self) -> Server:
        """Add a primary without slots; return it once all nodes know it."""
        node = self._new_node()
        self._meet(node)
        name = ask(node, "CLUSTER", "MYID")
        eventually(
            lambda: all(name in raw(one, "CLUSTER", "NODES") for one in self.running),
            SETTLE_TIMEOUT_S,
            "all know the node",
        )
        eventually(
            lambda: "cluster_state:ok" in raw(node, "CLUSTER", "INFO"), SETTLE_TIMEOUT_S, "it is in"
        )
        return node

    def remove_node(self, node: Server) -> None:
        """Remove a primary without slots."""
        name = ask(node, "CLUSTER", "MYID")
        node.kill()
        self.nodes.remove(node)
        for one in self.running:
            ask(one, "CLUSTER", "FORGET", name)


class SentinelDeployment:
    """A primary with two replicas and three Sentinels on loopback.

    Args:
        kind: of server.
        directory: returns a new directory.
        tls: certificates for TLS on all connections, sentinels included; None: plaintext.
        options: of every server that holds data; they take precedence over ours.
    """

    SERVICE = "fleet"

    def __init__(
        self,
        kind: str,
        directory: NewDirectory,
        *,
        tls: Certificates | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._kind = kind
        self._options = options
        self._tls = tls
        self._directory = directory
        self.servers: list[Server] = []
        self.sentinels: list[Server] = []

    @property
    def url(self) -> str:
        """The URL, by all sentinels."""
        seeds = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return _with_tls(f"redis+sentinel://{seeds}/{self.SERVICE}", self._tls)

    def start(self) -> None:
        """Start, and return once the sentinels know of each other and of the replicas."""
        for _ in range(3):
            server = Server(
                self._kind,
                self._directory(),
                [
                    *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"),
                    *self._options,
                ],
                port=0,
                tls=self._tls,
            )
            server.start()
            self.servers.append(server)
        for replica in self.servers[1:]:
            ask(replica, "REPLICAOF", "127.0.0.1", self.servers[0].port)
        for _ in range(SENTINELS):
            directory = self._directory()
            sentinel = Server(self._kind, directory, port=0, sentinel=self._watch(), tls=self._tls)
            sentinel.start()
            self.sentinels.append(sentinel)
            # Refresh often, so that tests need not wait.
            raw(sentinel, "SENTINEL", "DEBUG", "info-period", 500, "publish-period", 300)
        eventually(self.is_whole, SETTLE_TIMEOUT_S, "the sentinels know all")

    def _watch(self) -> str:
        name, port = self.SERVICE, self.servers[0].port
        return (
            f"sentinel monitor {name} 127.0.0.1 {port} 2\n"
            f"sentinel down-after-milliseconds {name} 1000\n"
            f"sentinel failover-timeout {name} 3000\n"
            f"sentinel parallel-syncs {name} 2\n"
        )

    def stop(self) -> None:
        """Kill everything."""
        for one in [*self.sentinels, *self.servers]:
            if one.is_running:
                one.kill()

    @property
    def primary(self) -> Server:
        """The primary that most sentinels name."""
        ports = [self._primary_port(one) for one in self.sentinels if one.is_running]
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if server.port == port)

    def _primary_port(self, sentinel: Server) -> int:
        return int(raw(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])

    def is_whole(self) -> bool:
        """Whether all sentinels agree on a primary that has all others as replicas."""
        running = [one for one in self.servers if one.is_running]
        if len({self._primary_port(one) for one in self.sentinels}) != 1:
            return False
        for sentinel in self.sentinels:
            flat = raw(sentinel, "SENTINEL", "MASTER", self.SERVICE)
            info = dict(zip(flat[::2], flat[1::2], strict=True))
            if info["flags"] != "master" or int(info["num-other-sentinels"]) != SENTINELS - 1:
                return False
            # Killed replicas are still counted.
            if int(info["num-slaves"]) < len(running) - 1:
                return False
        primary = self.primary
        if not primary.is_running:
            return False
        links = [raw(one, "INFO", "replication") for one in running if one is not primary]
        if not all("master_link_status:up" in one for one in links):
            return False
        replication = raw(primary, "INFO", "replication")
        return replication.count("state=online") == len(links) and _are_replicas_synced(replication)

    def until_whole(self) -> None:
        """Wait until `is_whole`."""
        eventually(lambda: _holds(self.is_whole), SETTLE_TIMEOUT_S, "the sentinels agree")

    def fail_over(self) -> None:
        """Fail over from a running primary; return once it is done."""
        before = self.primary
        deadline = time.monotonic() + SETTLE_TIMEOUT_S

        def is_begun() -> bool:
            try:
                return bool(raw(self.sentinels[0], "SENTINEL", "FAILOVER", self.SERVICE))
            except redis.ResponseError:
                # The last failover is not over for it, or it does not know the replicas yet.
                if time.monotonic() > deadline:
                    raise
                return False

        eventually(is_begun, SETTLE_TIMEOUT_S, "a failover begins")
        eventually(lambda: self.primary is not before, SETTLE_TIMEOUT_S, "a failover")

    def kill_primary(self) -> Server:
        """SIGKILL the primary; return it once another one took over."""
        before = self.primary
        before.kill()
        eventually(lambda: self.primary is not before, SETTLE_TIMEOUT_S, "a failover")
        return before

    def replicas(self) -> list[Server]:
        """Return the running servers that are not the primary."""
        return [one for one in self.servers if one.is_running and one is not self.primary]
