"""`statebroker doctor` checks every server of a deployment, and names it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import Producer
from broker.testing.clusters import ClusterOfServers, SentinelDeployment, ask, raw
from broker.testing.server import REDIS, REDIS_8, VALKEY, Server, find_binary
from broker.testing.waiting import eventually
from tests.acl_users import RoleUsers
from tests.processes.conftest import Run
from tests.processes.workers.test_doctor import findings

SECONDS = 30.0


@pytest.fixture
def new_directory() -> Iterator[Callable[[], Path]]:
    """Give a factory of directories whose paths are short enough for sockets."""
    with ExitStack() as stack:

        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="statebroker-")))

        yield directory


@pytest.fixture(params=[pytest.param(VALKEY, marks=pytest.mark.slow), REDIS, REDIS_8])
def kind(request: pytest.FixtureRequest) -> str:
    """Give each kind of server that there is."""
    if isinstance(reason := find_binary(request.param), str):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def cluster(kind: str, new_directory: Callable[[], Path]) -> Iterator[ClusterOfServers]:
    """Start a Cluster for one test."""
    one = ClusterOfServers(kind, new_directory)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.fixture
def sentinel_set(kind: str, new_directory: Callable[[], Path]) -> Iterator[SentinelDeployment]:
    """Start a Sentinel deployment for one test."""
    one = SentinelDeployment(kind, new_directory)
    try:
        one.start()
        yield one
    finally:
        one.stop()


def name_of(server: Server) -> str:
    """Return what a server is called in findings."""
    return f"127.0.0.1:{server.port}"


def test_every_node_of_a_cluster_is_examined(
    cluster: ClusterOfServers, namespace: str, run: Run
) -> None:
    """Any URL leads to all nodes; a finding names its node, rights and replicas included."""
    place = {"STATEBROKER_URL": cluster.url, "STATEBROKER_NAMESPACE": namespace}
    with Producer(cluster.url, namespace=namespace, shards=6) as producer:
        producer.set("a", 1)
    well = run("doctor", "--json", **place)
    found = findings(well)
    assert (well.code, well.err) == (0, "")
    assert (found["slots"]["severity"], found["replicas"]["severity"]) == ("ok", "ok")
    assert found["cluster-state"]["severity"] == "ok"
    everyone = {name_of(node) for node in cluster.nodes}
    assert set(found["version"]["servers"]) == everyone
    sick, replica = cluster.owner(0), cluster.replica_of(cluster.owner(16383))
    ask(sick, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    ask(replica, "CONFIG", "SET", "cluster-require-full-coverage", "yes")
    with RoleUsers([node.url for node in cluster.nodes], namespace, is_cluster=True) as users:
        # An ACL is not replicated: this one was forgotten.
        ask(replica, "ACL", "SETUSER", users.user("producer"), "-evalsha", "clearselectors")
        url = users.url("producer", cluster.nodes[0].url)
        place |= {"STATEBROKER_URL": url}
        reported = run("doctor", "--json", "--role", "producer", **place)
        found = findings(reported)
        assert reported.code == 1
        assert found["eviction"]["servers"] == [name_of(sick)]
        assert (found["acl"]["severity"], found["acl"]["servers"]) == ("error", [name_of(replica)])
        able = [one for one in told_findings(reported.out) if one["check"] == "acl"]
        assert {at for one in able if one["severity"] == "ok" for at in one["servers"]} == (
            everyone - {name_of(replica)}
        )
        place |= {"STATEBROKER_URL": users.url("admin", cluster.url)}
        found = findings(run("doctor", "--json", "--role", "admin", **place))
        assert found["acl"]["severity"] == "ok", found["acl"]
        assert found["coverage"]["servers"] == [name_of(replica)]
    words = run("doctor", STATEBROKER_URL=cluster.url)
    assert "at:  all 6 servers" in words.out
    assert f"at:  {name_of(sick)}\n" in words.out


def told_findings(out: str) -> list[dict[str, Any]]:
    """Return all findings."""
    found: list[dict[str, Any]] = json.loads(out)["findings"]
    return found


@pytest.mark.slow
def test_what_a_cluster_lacks_is_reported(cluster: ClusterOfServers, run: Run) -> None:
    """A missing replica and a missing primary are findings, with the slots that are lost."""
    place = {"STATEBROKER_URL": cluster.url}
    primary = cluster.owner(0)
    replica = cluster.replica_of(primary)
    replica.kill()
    away = findings(run("doctor", "--json", **place))
    assert f"1 of 3 primaries have none: {name_of(primary)}" in away["replicas"]["seen"]
    assert (away["connection"]["severity"], away["connection"]["servers"]) == (
        "warning",
        [name_of(replica)],
    )
    primary.kill()
    # Redis 8 then tells less of it.
    eventually(
        lambda: all(
            "cluster_slots_fail:0" not in raw(n, "CLUSTER", "INFO") for n in cluster.running
        ),
        SECONDS,
        "every node knows that it failed",
    )
    dead = run("doctor", "--json", **place)
    assert dead.code == 1
    assert findings(dead)["connection"]["severity"] == "error"
    assert name_of(primary) in findings(dead)["connection"]["servers"]
    for node in cluster.running:
        ask(node, "CLUSTER", "DELSLOTS", 16383)
    left = cluster.running[0]
    missing = findings(run("doctor", "--json", STATEBROKER_URL=left.url))
    assert missing["slots"]["severity"] == "error", missing
    assert "1 of 16384 have no owner: 16383-16383" in missing["slots"]["seen"]
    assert missing["cluster-state"]["severity"] == "error"


@pytest.mark.slow
def test_sentinels_and_all_servers_behind_them_are_examined(
    sentinel_set: SentinelDeployment, namespace: str, run: Run
) -> None:
    """Findings cover quorum, each sentinel's view, replicas, and writes at risk in a partition."""
    place = {"STATEBROKER_URL": sentinel_set.url, "STATEBROKER_NAMESPACE": namespace}
    well = run("doctor", "--json", **place)
    found = findings(well)
    assert (well.code, well.err) == (0, "")
    primary = sentinel_set.primary
    assert found["sentinels"]["seen"] == "all 3 answer"
    assert found["quorum"]["seen"].startswith("2, ")
    assert found["primary"]["seen"] == f"{name_of(primary)}, seen by 3 sentinels"
    assert (found["replicas"]["seen"], found["replicas"]["servers"]) == (
        "2 online",
        [name_of(primary)],
    )
    assert set(found["link"]["servers"]) == {name_of(one) for one in sentinel_set.replicas()}
    assert set(found["version"]["servers"]) == {name_of(one) for one in sentinel_set.servers}
    assert found["min-replicas"]["severity"] == "warning"
    # One sentinel of the URL is enough to find the others, and a missing one is reported.
    one_seed = f"redis+sentinel://127.0.0.1:{sentinel_set.sentinels[0].port}/{sentinel_set.SERVICE}"
    assert (
        findings(run("doctor", "--json", STATEBROKER_URL=one_seed))["sentinels"]
        == (found["sentinels"])
    )
    gone = sentinel_set.sentinels[2]
    gone.kill()
    less = findings(run("doctor", "--json", STATEBROKER_URL=one_seed))
    assert less["sentinels"]["severity"] == "warning"
    assert f"1 of 3 cannot be asked: {name_of(gone)}" in less["sentinels"]["seen"]
    sentinel_set.sentinels[1].kill()
    alone = sentinel_set.sentinels[0]

    def is_stuck() -> bool:
        try:
            raw(alone, "SENTINEL", "CKQUORUM", sentinel_set.SERVICE)
        except redis.ResponseError:
            return True
        return False

    eventually(is_stuck, SECONDS, "it knows that it is alone")
    stuck = run("doctor", "--json", STATEBROKER_URL=one_seed)
    assert stuck.code == 1
    assert "NOQUORUM" in findings(stuck)["quorum"]["seen"]
    primary.kill()
    down = run("doctor", "--json", STATEBROKER_URL=one_seed)
    assert (findings(down)["connection"]["severity"], down.code) == ("error", 1)
    assert findings(down)["connection"]["servers"] == [name_of(primary)]
    eventually(
        lambda: (
            "cannot reach it"
            in findings(run("doctor", "--json", STATEBROKER_URL=one_seed))["primary"]["seen"]
        ),
        SECONDS,
    )
    none = run("doctor", "--json", STATEBROKER_URL=one_seed.replace("/fleet", "/nobody"))
    assert none.code == 1
    assert "nobody" in findings(none)["connection"]["seen"]
