"""`statebroker doctor` on real servers: it reports the settings, and its fixes work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import Producer
from broker.testing.server import KINDS, free_port
from broker.testing.waiting import eventually
from tests.acl_users import RoleUsers
from tests.certificates import Certificates
from tests.conftest import OwnServer
from tests.processes.conftest import Run
from tests.processes.programs import Result


def findings(result: Result) -> dict[str, dict[str, str]]:
    """The findings by check; the worst of each."""
    order = ["ok", "note", "warning", "error"]
    reported = json.loads(result.out)["findings"]
    return {
        one["check"]: one for one in sorted(reported, key=lambda one: order.index(one["severity"]))
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_fixes_fix(kind: str, own_server: OwnServer, run: Run) -> None:
    """The server accepts each suggested command, which resolves the finding."""
    server = own_server(
        *("--maxmemory-policy", "allkeys-lru", "--appendfsync", "no"),
        *("--client-output-buffer-limit", "pubsub 1mb 512kb 10"),
        kind=kind,
        port=0,
    )
    place = {"STATEBROKER_URL": server.url}
    sick = {"eviction", "memory", "persistence", "output-buffer"}
    first = run("doctor", "--json", **place)
    assert first.code == 1
    assert {n for n, one in findings(first).items() if "CONFIG SET" in one["fix"]} == sick
    with redis.Redis.from_url(server.url) as owner:
        for _ in range(2):
            # appendonly has to be on before anybody asks how it is synced.
            for one in findings(run("doctor", "--json", **place)).values():
                if one["fix"].startswith("CONFIG SET"):
                    owner.execute_command(*shlex.split(one["fix"]))
    last = run("doctor", "--json", **place)
    assert (last.code, last.err) == (0, "")
    healed = findings(last)
    assert {name: healed[name]["severity"] for name in sick} == {
        "eviction": "ok",
        "memory": "ok",
        "persistence": "note",
        "output-buffer": "ok",
    }
    assert healed["persistence"]["fix"].startswith("nothing, or")


def test_exit_status_and_words_for_people(own_server: OwnServer, run: Run) -> None:
    """0 with warnings, 1 with --strict or an error; every finding has its consequence and fix."""
    server = own_server(port=0)
    place = {"STATEBROKER_URL": server.url}
    reported = run("doctor", **place)
    assert (reported.code, reported.err) == (0, "")
    assert reported.out.splitlines()[0] == server.url
    assert "warning  persistence    appendonly no, no snapshots" in reported.out
    assert "so:  after a restart it is empty" in reported.out
    assert "fix: CONFIG SET appendonly yes" in reported.out
    assert "CONFIG REWRITE keeps it" in reported.out
    assert run("doctor", "--strict", **place).code == 1
    with redis.Redis.from_url(server.url) as owner:
        owner.config_set("maxmemory-policy", "allkeys-lru")
    assert run("doctor", **place).code == 1


def test_it_changes_nothing(own_server: OwnServer, namespace: str, run: Run) -> None:
    """The doctor changes no key, setting or data, although it tests every right."""
    server = own_server(port=0)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("a", 1)
    with redis.Redis.from_url(server.url) as owner:

        def everything() -> dict[str, Any]:
            content = {key: owner.dump(key) for key in owner.scan_iter()}
            return {"content": content, "config": owner.config_get(), "acl": owner.acl_list()}

        before = everything()
        assert before["content"]
        assert run("doctor", STATEBROKER_URL=server.url, STATEBROKER_NAMESPACE=namespace).code == 0
        assert everything() == before


@pytest.mark.parametrize("role", ["producer", "flusher", "scheduler", "subscriber", "admin"])
def test_each_role_is_known_by_its_rights(
    role: str, own_server: OwnServer, namespace: str, run: Run
) -> None:
    """Findings name the roles that a user has, and what it lacks for another."""
    server = own_server(port=0)
    with RoleUsers([server.url], namespace, node="bus1") as users:
        place = {
            "STATEBROKER_URL": users.url(role, server.url),
            "STATEBROKER_NAMESPACE": namespace,
        }
        reported = run("doctor", "--json", "--role", role, "--node", "bus1", **place)
        found = findings(reported)
        assert (reported.code, found["acl"]["severity"]) == (0, "ok"), found["acl"]
        assert role in found["acl"]["seen"] or role == "admin"
        assert found["user"] == {
            "check": "user",
            "severity": "ok",
            "seen": users.user(role),
            "consequence": "",
            "fix": "",
            "servers": [],
        }
        assert found["scripts"]["severity"] == "ok"
        sees_settings = role == "admin"
        assert ("could not look" in found["output-buffer"]["seen"]) != sees_settings
        if role in ("flusher", "subscriber"):
            other = run("doctor", "--json", "--role", "producer", **place)
            lacks = findings(other)["acl"]
            assert (other.code, lacks["severity"]) == (1, "error")
            assert "may not be producer" in lacks["seen"]
            assert lacks["fix"].startswith(f"statebroker acl producer --namespace {namespace}")


def test_a_producer_of_another_node_is_reported(
    own_server: OwnServer, namespace: str, run: Run
) -> None:
    """A user limited to one node lacks only the stage of another node."""
    server = own_server(port=0)
    with RoleUsers([server.url], namespace, node="bus1") as users:
        reported = run(
            *("doctor", "--json", "--role", "producer", "--node", "bus2"),
            STATEBROKER_URL=users.url("producer", server.url),
            STATEBROKER_NAMESPACE=namespace,
        )
        lacks = findings(reported)["acl"]
        assert lacks["seen"].endswith(
            f"lacks del sb:{{{namespace}:0}}:stage:bus2, "
            f"evalsha sb:{{{namespace}:0}}:stage:bus2, "
            f"lmove sb:{{{namespace}:0}}:stage:bus2, "
            f"rpush sb:{{{namespace}:0}}:stage:bus2"
        )


def test_a_server_that_cannot_be_asked_is_a_finding(own_server: OwnServer, run: Run) -> None:
    """A missing server or wrong password is an error with exit status 1, also as JSON."""
    away = run("doctor", "--json", STATEBROKER_URL=f"redis://127.0.0.1:{free_port()}")
    assert (away.code, away.err) == (1, "")
    assert "cannot reach redis://127.0.0.1" in findings(away)["connection"]["seen"]
    server = own_server(port=0, password="right")
    url = f"redis://:wr0ng@127.0.0.1:{server.port}"
    refused = run("doctor", "--json", STATEBROKER_URL=url)
    assert (refused.code, "wr0ng" in refused.out) == (1, False)
    assert "check the user and password" in findings(refused)["connection"]["seen"]


def test_replication_is_seen_from_both_sides(own_server: OwnServer, run: Run) -> None:
    """A primary's findings name replicas and possible loss; a replica is refused."""
    primary = own_server(port=0)
    replica = own_server("--replicaof", "127.0.0.1", str(primary.port), port=0)
    with redis.Redis.from_url(primary.url) as owner:
        eventually(
            lambda: owner.info("replication").get("slave0", {}).get("state") == "online",
            20,
            "the replica is there",
        )
    found = findings(run("doctor", "--json", STATEBROKER_URL=primary.url))
    assert (found["replicas"]["severity"], found["replicas"]["seen"]) == ("ok", "1 online")
    assert found["min-replicas"]["severity"] == "warning"
    seen = run("doctor", "--json", STATEBROKER_URL=replica.url)
    assert (seen.code, findings(seen)["role"]["severity"]) == (1, "error")
    assert f"127.0.0.1:{primary.port}" in findings(seen)["role"]["fix"]


def test_tls_is_seen(own_server: OwnServer, run: Run, tmp_path: Path) -> None:
    """The doctor uses the TLS options of its URL, and reports a wrong certificate."""
    certificates = Certificates.made(tmp_path / "certificates")
    port = free_port()
    own_server(*certificates.server_args(port), kind="redis")
    url = f"rediss://localhost:{port}"
    good = run("doctor", "--json", STATEBROKER_URL=url + certificates.options(certificates.client))
    assert findings(good)["tls"]["seen"] == "on"
    bad = run("doctor", "--json", STATEBROKER_URL=url)
    assert "ssl_ca_certs" in findings(bad)["connection"]["seen"]
