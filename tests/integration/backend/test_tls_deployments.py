"""TLS with a Cluster and with Sentinels: certificates of both sides on every connection."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker import BackendError, Inspector, Producer, Replica
from broker.backend.connections import Connections
from broker.testing.clusters import ClusterOfServers, SentinelDeployment
from broker.testing.server import REDIS, find_binary
from broker.testing.waiting import eventually
from tests.certificates import Certificates
from tests.integration.running_workers import NewServing
from workers.doctor import assess, survey

SHARDS = 6


@pytest.fixture
def new_directory() -> Iterator[Callable[[], Path]]:
    """Give a factory of directories whose paths are short enough for sockets."""
    if isinstance(reason := find_binary(REDIS), str):
        pytest.skip(reason)
    with ExitStack() as stack:

        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))

        yield directory


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Give certificates of one authority."""
    return Certificates.made(tmp_path / "ours")


def works(url: str, namespace: str, serving: NewServing, fail_over: Callable[[], object]) -> None:
    """Write and read by all kinds of connections, also after another server took over."""
    serving(url, namespace, shards=SHARDS, interval=0.2)
    with (
        Producer(url, namespace=namespace) as producer,
        Replica(url, namespace=namespace) as replica,
    ):
        producer.set_many({f"k{n}": n for n in range(100)})
        replica.wait_for(producer.flush(20), 20)
        fail_over()
        producer.set_many({f"k{n}": -n for n in range(100)})
        replica.wait_for(producer.flush(30), 30)
        assert dict(replica) == {f"k{n}": -n for n in range(100)}
        with Inspector(url, namespace=namespace) as inspector:
            eventually(lambda: inspector.folded() == dict(replica), 20)
    # Without the client's certificate no server talks, whichever is asked.
    bare = re.sub(r"&ssl_certfile=.*", "", url)
    with pytest.raises(BackendError), Producer(bare, namespace=namespace):
        pass


def examined(url: str, namespace: str) -> set[str]:
    """Return which servers the doctor found to have TLS; nothing that it saw is an error."""
    found = assess(asyncio.run(survey(url, namespace, seconds=0.1)), 3.0)
    assert [one for one in found if one.check == "connection"] == []
    (tls,) = [one for one in found if one.check == "tls"]
    assert tls.seen == "on"
    return set(tls.servers)


@pytest.mark.parametrize("host", [None, pytest.param("localhost", marks=pytest.mark.slow)])
def test_a_cluster_of_which_every_node_wants_certificates(
    host: str | None,
    certificates: Certificates,
    new_directory: Callable[[], Path],
    namespace: str,
    serving: NewServing,
) -> None:
    """Nodes are reached by what they call themselves, address or name; also after a failover."""
    cluster = ClusterOfServers(REDIS, new_directory, tls=certificates, host=host)
    try:
        cluster.start()
        called = host or "127.0.0.1"
        assert cluster.url.startswith(f"rediss+cluster://{called}:")
        works(cluster.url, namespace, serving, lambda: cluster.fail_over(0))
        nodes = {f"{called}:{node.port}" for node in cluster.nodes}
        assert examined(cluster.url, namespace) == nodes
        assert asyncio.run(owners(cluster.url)) < nodes
    finally:
        cluster.stop()


async def owners(url: str) -> set[str]:
    """Return who owns slots, as clients call them."""
    connections = Connections(url)
    try:
        return {str(owner) for owner in await connections.directory.owners()}
    finally:
        await connections.close()


def test_sentinels_and_servers_that_want_certificates(
    certificates: Certificates,
    new_directory: Callable[[], Path],
    namespace: str,
    serving: NewServing,
) -> None:
    """The client sends its certificate to sentinels and servers, also after a failover."""
    watched = SentinelDeployment(REDIS, new_directory, tls=certificates)
    try:
        watched.start()
        assert watched.url.startswith("rediss+sentinel://")
        works(watched.url, namespace, serving, watched.fail_over)
        watched.until_whole()
        servers = {f"127.0.0.1:{server.port}" for server in watched.servers}
        assert examined(watched.url, namespace) == servers
    finally:
        watched.stop()
