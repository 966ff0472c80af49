"""The programs start while a slot of the Cluster has no owner."""

from __future__ import annotations

import json

from broker import Producer
from broker.protocol.names import ShardKeys, shard_of, slot_of_key
from broker.testing.clusters import SLOTS, ask
from broker.testing.server import free_port
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.processes.conftest import NewProgram, Run
from tests.processes.programs import START_SECONDS

SHARDS = 3


def test_programs_serve_the_shards_that_are_there(
    own_server: OwnServer, namespace: str, start: NewProgram, run: Run
) -> None:
    """`serve` is ready, `set` and `get` work, `status` names the shard that is away."""
    server = own_server(
        *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
        *("--cluster-require-full-coverage", "no"),
        port=0,
    )
    ask(server, "CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
    url = f"redis+cluster://127.0.0.1:{server.port}"
    eventually(lambda: "cluster_state:ok" in str(ask(server, "CLUSTER", "INFO")))
    Producer(url, namespace=namespace, shards=SHARDS).close()
    lost = slot_of_key(ShardKeys.of(namespace, 1, SHARDS).meta.encode())
    ask(server, "CLUSTER", "DELSLOTS", lost)
    place = {"STATEBROKER_URL": url, "STATEBROKER_NAMESPACE": namespace}
    ready = start.directory / "ready"
    workers = start("serve", "--ready-file", str(ready), **place)
    eventually(ready.exists, START_SECONDS, lambda: workers.err)
    key = next(f"k{number}" for number in range(99) if shard_of(f"k{number}", SHARDS) == 0)
    assert run("set", key, "1", **place).code == 0
    eventually(lambda: run("get", key, **place).out == "1\n", START_SECONDS)
    reported = run("status", "--check", "--json", **place)
    assert reported.out, reported.err
    away = {one["shard"]: one["away"] for one in json.loads(reported.out)["shards"]}
    assert [shard for shard, why in away.items() if why] == [1]
    assert f"slot {lost}" in away[1]
    assert "shard 1 is away" in reported.err
    human = run("status", **place)
    assert "shard 1 is away" in human.out
    assert "Traceback" not in workers.err
