"""Servers restart one after the other, with the options of docker-compose.yml."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from broker import FlushTimeoutError, Producer, Replica
from broker.protocol.names import ShardKeys, slot_of_key
from broker.testing.clusters import ClusterOfServers, NewDirectory, SentinelDeployment, ask
from broker.testing.server import REDIS, Server, find_binary
from broker.testing.waiting import eventually
from tests.compose_file import server_options
from tests.integration.running_workers import Serving

# The fleet writes about this often, so that a rollback of seconds is hundreds of deltas.
PAUSE_S = 0.005
BETWEEN = 100
# What replication may have had under way: far below what was accepted between two faults.
UNDER_WAY = BETWEEN // 2
TIMEOUT_S = 30.0


@pytest.fixture
def new_directory() -> Iterator[NewDirectory]:
    """Give a factory of short directories; a socket's path may have about 100 bytes."""
    if isinstance(reason := find_binary(REDIS), str):
        pytest.skip(reason)
    with ExitStack() as stack:

        def make() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))

        yield make


class Writing:
    """A producer that counts, and waits each time until Redis has accepted it.

    Attributes:
        accepted: how many increments Redis has accepted.
        error: what ended it before `stop`; None: nothing.
    """

    def __init__(self, producer: Producer) -> None:
        self.accepted = 0
        self.error: BaseException | None = None
        self._producer = producer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        try:
            while not self._stop.wait(PAUSE_S):
                self._producer.increment("total", 1)
                self._producer.flush(TIMEOUT_S)
                self.accepted += 1
        except BaseException as error:  # noqa: BLE001 - for the test
            self.error = error

    def go_on(self) -> None:
        """Wait until so many more are accepted."""
        wanted = self.accepted + BETWEEN

        def is_done() -> bool:
            assert self.error is None, self.error
            return self.accepted >= wanted

        eventually(is_done, TIMEOUT_S, lambda: f"{self.accepted} of {wanted} are accepted")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT_S)


def follow_again(server: Server, primary: Server) -> None:
    """Start a killed replica, which knows its primary as one with store.conf does."""
    server.start()
    ask(server, "REPLICAOF", "127.0.0.1", primary.port)


@contextmanager
def running(url: str, namespace: str) -> Iterator[tuple[Producer, Replica]]:
    """Run workers, and give a producer and a replica."""
    workers = Serving(url, namespace)
    try:
        with (
            Producer(url, namespace=namespace) as producer,
            Replica(url, namespace=namespace) as replica,
        ):
            yield producer, replica
    finally:
        workers.stop()


def check_nothing_went_back(writing: Writing, producer: Producer, replica: Replica) -> None:
    """Require that what was accepted stayed, and is there once."""
    stats = producer.stats()
    assert (stats.lost, stats.accepted) == (0, writing.accepted)
    assert stats.resent <= UNDER_WAY
    replica.wait_for(producer.flush(TIMEOUT_S), TIMEOUT_S)
    assert replica["total"] == writing.accepted


@pytest.fixture
def watched(new_directory: NewDirectory) -> Iterator[SentinelDeployment]:
    """Give a primary, two replicas and three Sentinels with the options of the profile."""
    one = SentinelDeployment(REDIS, new_directory, options=server_options("store-1"))
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.mark.slow
def test_behind_sentinels_nothing_accepted_goes_back(
    watched: SentinelDeployment, namespace: str
) -> None:
    """Replicas restart, and the primary dies while they synchronise: none of it is sent again."""
    with running(watched.url, namespace) as (producer, replica):
        with Writing(producer) as writing:
            writing.go_on()
            primary = watched.primary
            for server in watched.replicas():
                server.kill()
                follow_again(server, primary)
            writing.go_on()
            watched.kill_primary()
            writing.go_on()
            primary.start()
            watched.until_whole()
            writing.go_on()
        check_nothing_went_back(writing, producer, replica)


def test_without_a_replica_writers_wait_and_go_on(
    watched: SentinelDeployment, namespace: str
) -> None:
    """A primary whose replicas are all away accepts nothing; with the first one all continue."""
    with running(watched.url, namespace) as (producer, replica):
        producer.set("a", 1)
        replica.wait_for(producer.flush(TIMEOUT_S), TIMEOUT_S)
        primary, replicas = watched.primary, watched.replicas()
        for server in replicas:
            server.kill()
        # What was under way when they died may still be accepted.
        eventually(lambda: ask(primary, "INFO", "replication")["connected_slaves"] == 0, 10)
        producer.set("a", 2)
        with pytest.raises(FlushTimeoutError, match="min-replicas-to-write"):
            producer.flush(3)
        follow_again(replicas[0], primary)
        replica.wait_for(producer.flush(TIMEOUT_S), TIMEOUT_S)
        assert replica["a"] == 2
        assert producer.stats().resent == producer.stats().lost == 0


@pytest.fixture
def cluster(new_directory: NewDirectory) -> Iterator[ClusterOfServers]:
    """Give three primaries and three replicas with the options of the profile."""
    words = server_options("node-1")
    named = [*zip(words[::2], words[1::2], strict=True)]
    # The names of containers; and what is the default there but not in our own test servers.
    options = [word for one in named for word in one if one[0] != "--cluster-announce-hostname"]
    one = ClusterOfServers(
        REDIS, new_directory, options=["--cluster-replica-validity-factor", "10", *options]
    )
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.mark.slow
def test_on_a_cluster_nothing_accepted_goes_back(cluster: ClusterOfServers, namespace: str) -> None:
    """The only replica restarts, and then its primary dies: none of it is sent again."""
    with running(cluster.url, namespace) as (producer, replica):
        slot = slot_of_key(ShardKeys.of(namespace, 0, 1).meta.encode())
        with Writing(producer) as writing:
            writing.go_on()
            before = cluster.replica_of(cluster.owner(slot))
            before.kill()
            before.start()
            writing.go_on()
            primary = cluster.kill_owner(slot)
            writing.go_on()
            primary.start()
            cluster.until_whole()
            writing.go_on()
        check_nothing_went_back(writing, producer, replica)
