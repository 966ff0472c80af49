"""`statebroker status` shows where the shards of a deployment are."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from broker import Inspector, Producer
from broker.protocol.names import ShardKeys, slot_of_key
from broker.testing.clusters import SentinelDeployment
from broker.testing.waiting import eventually
from tests.conformance.deployments import SHARDS, BehindSentinels, Clustered, Deployment, first_slot
from workers.cli import statebroker


@pytest.fixture
def told_at(deployment: Deployment, namespace: str) -> str:
    """Give the URL of a deployment that holds the namespace; shards are where they are now."""
    with Producer(deployment.url, namespace=namespace, shards=SHARDS) as producer:
        producer.set("key", 1)
        producer.flush(20)
    return deployment.url


def places(url: str, namespace: str) -> list[tuple[int | None, str | None]]:
    """Return (slot, node) of each shard."""
    with Inspector(url, namespace=namespace) as inspector:
        return [(one.slot, one.held_by) for one in inspector.status().shards]


def test_status_tells_where_each_shard_is(
    deployment: Deployment, told_at: str, namespace: str
) -> None:
    """Status shows slot and node on a Cluster, the primary behind Sentinels, else nothing."""
    found = places(told_at, namespace)
    if isinstance(deployment, Clustered):
        slots = [
            slot_of_key(ShardKeys.of(namespace, shard, SHARDS).meta.encode())
            for shard in range(SHARDS)
        ]
        owners = [f"127.0.0.1:{deployment.cluster.owner(slot).port}" for slot in slots]
        assert found == list(zip(slots, owners, strict=True))
    elif isinstance(deployment, BehindSentinels):
        primary = _watched(deployment).primary
        assert found == [(None, f"127.0.0.1:{primary.port}")] * SHARDS
    else:
        assert found == [(None, None)] * SHARDS


def test_status_follows_a_failover(deployment: Deployment, told_at: str, namespace: str) -> None:
    """After a failover the status names the new server."""
    if not isinstance(deployment, BehindSentinels | Clustered):
        pytest.skip("one server stays what it is")
    _, before = places(told_at, namespace)[0]
    deployment.replace_primary(namespace)
    eventually(lambda: places(told_at, namespace)[0][1] != before, 20, "another node is told")


def test_an_inspector_that_was_open_follows_a_failover(
    deployment: Deployment, told_at: str, namespace: str
) -> None:
    """What it asks at the server that was demoted is asked again at the new owner."""
    if not isinstance(deployment, Clustered):
        pytest.skip("no slots that move to another server")
    with Inspector(told_at, namespace=namespace) as inspector:
        before = inspector.status().shards[0].held_by
        deployment.replace_primary(namespace)
        eventually(lambda: inspector.status().shards[0].held_by != before, 20)


def test_status_follows_a_slot(with_slots: Clustered, told_at: str, namespace: str) -> None:
    """A shard whose slot moved is listed at its new node."""
    cluster, slot = with_slots.cluster, first_slot(namespace)
    others = (cluster.owner(at) for at in (0, 8000, 16000))
    target = next(node for node in others if node is not cluster.owner(slot))
    cluster.move_slot(slot, target)
    wanted = (slot, f"127.0.0.1:{target.port}")
    eventually(lambda: places(told_at, namespace)[0] == wanted, 20, "the new node is told")


def test_the_command_shows_it(deployment: Deployment, told_at: str, namespace: str) -> None:
    """The command shows it as a table and as JSON."""
    where = ["status", "--url", told_at, "--namespace", namespace]
    with deployment.serve(namespace):
        human = CliRunner(env={"COLUMNS": "200"}).invoke(statebroker, where)
        machine = CliRunner().invoke(statebroker, [*where, "--json"])
    assert (human.exit_code, machine.exit_code) == (0, 0), human.output + machine.output
    found = json.loads(machine.stdout)
    kind = found["server"]["deployment"]
    held_by = [one["held_by"] for one in found["shards"]]
    if isinstance(deployment, Clustered):
        assert kind == "cluster"
        assert "(Cluster)" in human.stdout
        for one in found["shards"]:
            row = [one["shard"], one["slot"], one["held_by"]]
            assert any(
                line.replace("│", " ").split() == list(map(str, row))
                for line in human.stdout.splitlines()
            )
    elif isinstance(deployment, BehindSentinels):
        assert kind == "sentinel"
        assert f"(primary {held_by[0]}, behind Sentinels)" in human.stdout
    else:
        assert (kind, set(held_by)) == ("single", {None})
        assert "slot" not in human.stdout


def _watched(deployment: BehindSentinels) -> SentinelDeployment:
    return deployment._set
