"""What `statebroker doctor` says of what it saw: one fact changed at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.backend.acl import CLUSTER, EVERY_CLIENT, ROLES, SHARDED
from workers.doctor import Facts, Finding, SentinelFacts, Severity, Survey
from workers.doctor import assess as assess_with_bound
from workers.doctor.consequences import CONSEQUENCES, consequence
from workers.doctor.survey import _of_shards

OK, NOTE, WARNING, ERROR = Severity

INFO: dict[str, Any] = {
    "redis_version": "7.0.15",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "maxmemory": 1000,
    "used_memory": 100,
    "total_system_memory": 10_000,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "connected_slaves": 1,
    "slave0": {"ip": "10.0.0.2", "port": 6379, "state": "online", "lag": 0},
    "connected_clients": 10,
    "maxclients": 100,
}
CONFIG = {
    "save": "",
    "appendfsync": "always",
    "client-output-buffer-limit": (
        "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"
    ),
    "min-replicas-to-write": "1",
    "min-replicas-max-lag": "10",
}
WELL = Facts(
    "rediss://me:***@redis.example",
    is_tls=True,
    is_local=False,
    has_password=True,
    info=INFO,
    config=CONFIG,
    user="me",
    lacking={role: [] for role in ROLES},
)


def assess_survey(survey: Survey) -> list[Finding]:
    """What is said beside replicas with the default bound."""
    return assess_with_bound(survey, 3.0)


def test_a_namespace_that_is_refused_is_named_with_the_fix() -> None:
    """The error that programs of this release would raise, split into what is seen and the fix."""
    reason = "namespace 'n' needs the feature word ttl, which this release does not know"
    survey = Survey(WELL.url, "single", (WELL,), refusal=f"{reason}; use another namespace")
    (found,) = [one for one in assess_survey(survey) if one.check == "namespace"]
    assert (found.severity, found.seen, found.fix) == (ERROR, reason, "use another namespace")
    assert "refuse it" in found.consequence
    assert not [one for one in assess(WELL) if one.check == "namespace"]


def assess(facts: Facts) -> list[Finding]:
    """What is said of a single server."""
    return assess_survey(Survey(facts.url, "single", (facts,), unreachable=facts.unreachable))


def judged(facts: Facts) -> dict[str, Finding]:
    """Findings by what they are about; a healthy one gives way to one that is not."""
    return {one.check: one for one in sorted(assess(facts), key=lambda one: one.severity)}


def test_a_server_that_keeps_every_promise_is_ok_in_everything() -> None:
    """Every check has a finding, and every finding is ok."""
    found = assess(WELL)
    assert {one.check for one in found} == {
        *("version", "eviction", "memory", "persistence", "replicas", "min-replicas"),
        *("output-buffer", "user", "acl", "tls", "clock", "scripts"),
    }
    assert [one for one in found if one.severity or one.consequence or one.fix] == []


def info(**changed: Any) -> Facts:
    """All well, but for this in INFO."""
    return replace(WELL, info=INFO | changed)


def config(**changed: str) -> Facts:
    """All well, but for this in CONFIG; underscores are dashes."""
    return replace(WELL, config=CONFIG | {n.replace("_", "-"): v for n, v in changed.items()})


def pubsub(limits: str, rate: float = 0.0) -> Facts:
    """All well, but for the limits of subscribers' buffers, and bytes published per second."""
    limited = config(client_output_buffer_limit=f"normal 0 0 0 slave 0 0 0 pubsub {limits}")
    return replace(limited, published_bytes_per_s=rate)


LATE = {"ip": "10.0.0.2", "port": 6379, "state": "online", "lag": 60}
SYNC = {"ip": "10.0.0.2", "port": 6379, "state": "wait_bgsave", "lag": 0}
MIB = 1 << 20


@pytest.mark.parametrize(
    ("facts", "check", "severity", "seen", "fix"),
    [
        (info(redis_version="6.2.20"), "version", ERROR, "redis 6.2.20", "upgrade"),
        (
            info(role="slave", master_host="h", master_port=1),
            "role",
            ERROR,
            "replica of h:1",
            "h:1",
        ),
        (
            info(maxmemory_policy="allkeys-lru"),
            *("eviction", ERROR, "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        ),
        (info(used_memory=801), "memory", WARNING, "801 B of 1000 B", "CONFIG SET maxmemory 1602"),
        (info(used_memory=951), "memory", ERROR, "951 B of 1000 B", "CONFIG SET maxmemory 1902"),
        (info(maxmemory=0), "memory", NOTE, "maxmemory 0", "CONFIG SET maxmemory 7000"),
        (info(maxmemory=0, used_memory=9_000), "memory", WARNING, "of the machine", "maxmemory"),
        (info(aof_enabled=0), "persistence", WARNING, "no snapshots", "CONFIG SET appendonly yes"),
        (
            replace(info(aof_enabled=0), config=CONFIG | {"save": "3600 1"}),
            *("persistence", WARNING, "snapshots only (save 3600 1)", "CONFIG SET appendonly yes"),
        ),
        (
            replace(info(aof_enabled=0), config=None),
            *(
                "persistence",
                WARNING,
                "could not look for snapshots: CONFIG GET is refused",
                "CONFIG SET appendonly yes",
            ),
        ),
        (config(appendfsync="everysec"), "persistence", NOTE, "everysec", "flush(fsynced=True)"),
        (config(appendfsync="no"), "persistence", WARNING, "appendfsync no", "everysec"),
        (
            replace(WELL, config=None),
            "persistence",
            NOTE,
            "could not look for appendfsync",
            "admin",
        ),
        (
            info(aof_last_write_status="err"),
            *("persistence", ERROR, "aof_last_write_status:err", "BGREWRITEAOF"),
        ),
        (info(rdb_last_bgsave_status="err"), "persistence", ERROR, "snapshot failed", "BGSAVE"),
        (info(connected_slaves=0), "replicas", NOTE, "none", "REPLICAOF"),
        (info(slave0=LATE), "replicas", WARNING, "10.0.0.2:6379 (online, 60 s)", "INFO"),
        (info(slave0=SYNC), "replicas", WARNING, "10.0.0.2:6379 (wait_bgsave", "INFO"),
        (
            config(min_replicas_to_write="0"),
            *("min-replicas", WARNING, "min-replicas-to-write 0", "min-replicas-to-write 1"),
        ),
        (
            pubsub("4194304 1048576 60"),
            *(
                "output-buffer",
                WARNING,
                "pubsub 4194304 1048576 60",
                "'pubsub 33554432 8388608 60'",
            ),
        ),
        (
            pubsub("33554432 8388608 60", rate=8 * MIB),
            *("output-buffer", WARNING, "8.0 MiB/s", "'pubsub 335544320 83886080 60'"),
        ),
        (
            replace(WELL, config=None),
            "output-buffer",
            NOTE,
            "could not look: CONFIG GET is refused",
            "admin",
        ),
        (info(connected_clients=81), "clients", WARNING, "81 of 100", "CONFIG SET maxclients 200"),
        (replace(WELL, info={}), "server", WARNING, "could not look: INFO is refused", "acl admin"),
        (
            replace(WELL, user="default", has_password=False),
            *("user", WARNING, "default, without a password", "ACL SETUSER default"),
        ),
        (
            replace(WELL, user="default", has_password=False, is_local=True),
            *("user", NOTE, "default, without a password", "ACL SETUSER default"),
        ),
        (
            replace(WELL, surplus=("FLUSHALL",)),
            "user",
            NOTE,
            "me, with more rights",
            "statebroker acl",
        ),
        (
            replace(WELL, lacking={role: ["multi"] for role in ROLES}),
            *("acl", ERROR, "MULTI is refused", "ACL SETUSER me +multi"),
        ),
        (
            replace(WELL, lacking={role: ["config|get"] * (role == "admin") for role in ROLES}),
            *("acl", NOTE, "CONFIG GET is refused; so this user may not be admin", "+config|get"),
        ),
        (replace(WELL, clock_s=None), "clock", NOTE, "could not look: TIME is refused", "acl"),
        (replace(WELL, is_tls=False), "tls", WARNING, "off", "tls-port"),
        (replace(WELL, clock_s=-2.5), "clock", NOTE, "-2500 ms", "timedatectl"),
        (replace(WELL, clock_s=90.0), "clock", WARNING, "+90000 ms", "timedatectl"),
        (replace(WELL, script_error="EVALSHA: no"), "scripts", ERROR, "EVALSHA: no", "SCRIPT LOAD"),
        (replace(WELL, script_error=None), "scripts", NOTE, "may not run any", "statebroker acl"),
        (
            Facts("redis://h", unreachable="connecting: no"),
            *("connection", ERROR, "connecting: no", "PING"),
        ),
    ],
)
def test_each_fault_is_reported_with_what_follows_and_the_fix(
    facts: Facts, check: str, severity: Severity, seen: str, fix: str
) -> None:
    """Severity, what was seen, a consequence, and a fix that names the command."""
    one = judged(facts)[check]
    assert one.severity == severity
    assert seen in one.seen
    assert one.consequence
    assert fix in one.fix


@pytest.mark.parametrize(
    "facts",
    [
        pubsub("0 0 0", rate=1e12),
        pubsub("33554432 8388608 60", rate=3 * MIB),
        replace(WELL, is_tls=False, is_local=True),
        replace(WELL, clock_s=1.4, clock_error_s=0.5),
        info(used_memory=800, connected_clients=80),
        info(valkey_version="9.1.2", redis_version="7.2.4", server_name="valkey"),
    ],
)
def test_what_is_well_within_the_limits_is_no_finding(facts: Facts) -> None:
    """No limit, a rate that leaves ten seconds, and an uncertain clock are no findings."""
    assert [one for one in assess(facts) if one.severity] == []


def test_a_role_that_is_wanted_has_to_be_possible() -> None:
    """Without --role one possible role is enough; else the missing rights of the role are named."""
    six = ("hmget", "hset", "rpush", "ltrim", "evalsha", "llen")
    lacking = {role: [f"{command} {role}" for command in six] for role in ROLES}
    able = replace(WELL, lacking=lacking | {"subscriber": []})
    assert judged(able)["acl"] == Finding("acl", OK, "may be subscriber in 'default'")
    scripts = judged(able)["scripting"]
    assert scripts.severity == NOTE
    assert "fill the server's memory" in scripts.consequence
    missing = judged(replace(able, wanted=("producer", "subscriber"), node="bus1"))["acl"]
    assert missing.severity == ERROR
    assert "may not be producer" in missing.seen
    told = "hmget producer, hset producer, rpush producer, ltrim producer and 2 more"
    assert told in missing.seen
    assert "nobody can join the namespace" in missing.consequence
    assert missing.fix == "statebroker acl producer --namespace default --node bus1"
    none = judged(replace(WELL, lacking=lacking | {"flusher": ["publish ch"]}))["acl"]
    assert none.severity == ERROR
    assert none.seen == "PUBLISH is refused; so this user may not be flusher"
    assert "replicas get nothing" in none.consequence


def test_what_follows_is_known_of_each_command_of_a_role() -> None:
    """A command that a role begins to need comes with what breaks without it."""
    needed = {*EVERY_CLIENT, *CLUSTER}
    for role in ROLES.values():
        needed |= role.server | role.channel | role.bulk
        needed |= frozenset().union(*role.keys.values())
    assert needed == set(CONSEQUENCES)
    assert {consequence(f"{SHARDED[name]} c") for name in SHARDED} <= set(CONSEQUENCES.values())


# -- deployments ----------------------------------------------------------------------------------

FOLLOWS = {"role": "slave", "master_link_status": "up", "connected_slaves": 0}


def node(at: str, slots: tuple[int, int] | None = None, primary: str = "") -> Facts:
    """A node of a Cluster that is well."""
    return replace(
        WELL,
        kind="cluster",
        at=at,
        primary=primary,
        slots=(slots,) if slots else (),
        info=INFO | FOLLOWS if primary else INFO,
        cluster={"cluster_state": "ok", "cluster_slots_ok": "16384"},
    )


NODES = (
    *(node("a:1", (0, 5000)), node("b:1", (5001, 11000)), node("c:1", (11001, 16383))),
    *(node("a:2", primary="a:1"), node("b:2", primary="b:1"), node("c:2", primary="c:1")),
)


def cluster(*changed: Facts, without: str = "") -> Survey:
    """A Cluster that is well but for these nodes."""
    nodes = {one.at: one for one in (*NODES, *changed)}
    nodes.pop(without, None)
    return Survey("redis+cluster://a:1", "cluster", tuple(nodes.values()))


PRIMARY = replace(WELL, kind="sentinel", at="p:1")
REPLICA = replace(PRIMARY, at="r:1", primary="p:1", info=INFO | FOLLOWS)
SENTINELS = tuple(
    SentinelFacts(f"s:{n}", primary="p:1", quorum=2, others=2, replicas={"r:1": "slave"})
    for n in range(3)
)


def watched(
    *changed: SentinelFacts, servers: tuple[Facts, ...] = (PRIMARY, REPLICA), count: int = 3
) -> Survey:
    """A primary with a replica behind sentinels, well but for these."""
    sentinels = {one.at: one for one in (*SENTINELS[:count], *changed)}
    return Survey("redis+sentinel://s", "sentinel", servers, tuple(sentinels.values()))


def sentinel(number: int, **changed: Any) -> SentinelFacts:
    """One of the sentinels, well but for this."""
    return replace(SENTINELS[number], **changed)


def changed(facts: Facts, **changed: Any) -> Facts:
    """A server, but for this in INFO."""
    return replace(facts, info={**facts.info, **changed})


def of_shard(slots: tuple[int, ...], **nodes: tuple[bytes, bytes]) -> list[Any]:
    """A shard as CLUSTER SHARDS replies it, with the role and health of each node."""
    told = []
    for host, (role, health) in nodes.items():
        at = [b"id", host.encode(), b"port", 1, b"ip", host.encode(), b"endpoint", host.encode()]
        told.append([*at, b"role", role, b"health", health])
    return [b"slots", [*slots], b"nodes", told]


@pytest.mark.parametrize("told", [(0, 5000), ()])
def test_a_failed_primary_keeps_its_slots(told: tuple[int, ...]) -> None:
    """CLUSTER SHARDS of Redis 8 lists no slots of it; those who own them are in CLUSTER SLOTS."""
    shards = [
        of_shard(told, a=(b"master", b"fail"), c=(b"replica", b"fail")),
        of_shard((5001, 9000, 9002, 16383), b=(b"master", b"online")),
    ]
    ranges = [
        [0, 5000, [b"a", 1, b"a", []]],
        [5001, 9000, [b"b", 1, b"b", []]],
        [9002, 16383, [b"b", 1, b"b", []]],
    ]
    assert _of_shards(shards, ranges, "", is_tls=False) == {
        "a:1": {"primary": "", "slots": ((0, 5000),)},
        "c:1": {"primary": "a:1", "slots": ()},
        "b:1": {"primary": "", "slots": ((5001, 9000), (9002, 16383))},
    }


@pytest.mark.parametrize("survey", [cluster(), watched()])
def test_a_deployment_that_keeps_every_promise_is_ok_in_everything(survey: Survey) -> None:
    """A finding that all servers share is reported once, with all their names."""
    found = assess_survey(survey)
    assert [one for one in found if one.severity] == []
    everywhere = tuple(one.at for one in survey.servers)
    assert {one.check for one in found if one.servers == everywhere} >= {
        *("version", "eviction", "memory", "persistence"),
        *("output-buffer", "user", "acl", "tls", "clock", "scripts"),
    }
    whole = {"slots", "replicas"} if survey.kind == "cluster" else {"sentinels", "quorum"}
    assert whole <= {one.check for one in found if not one.servers}


FULL = CONFIG | {"cluster-require-full-coverage": "yes"}


@pytest.mark.parametrize(
    ("survey", "check", "severity", "seen", "servers"),
    [
        (
            cluster(node("b:1", (5101, 11000))),
            *("slots", ERROR, "100 of 16384 have no owner: 5001-5100", ()),
        ),
        (cluster(node("c:1", (11001, 16382))), "slots", ERROR, "1 of 16384", ()),
        (
            cluster(node("a:1", (0, 11000)), without="b:1"),
            *("majority", WARNING, "2 primaries own slots", ()),
        ),
        (cluster(without="b:2"), "replicas", WARNING, "1 of 3 primaries have none: b:1", ()),
        (
            cluster(replace(NODES[4], unreachable="no")),
            *("replicas", WARNING, "1 of 3 primaries have none: b:1", ()),
        ),
        (cluster(replace(NODES[4], unreachable="no")), "connection", WARNING, "no", ("b:2",)),
        (cluster(replace(NODES[1], unreachable="no")), "connection", ERROR, "no", ("b:1",)),
        (
            cluster(replace(NODES[2], cluster={"cluster_state": "fail"})),
            *("cluster-state", ERROR, "cluster_state:fail", ("c:1",)),
        ),
        (
            cluster(
                replace(NODES[2], cluster={"cluster_state": "ok", "cluster_slots_ok": "16383"})
            ),
            *("cluster-state", ERROR, "of 16384 slots 16383", ("c:1",)),
        ),
        (cluster(replace(NODES[2], config=FULL)), "coverage", NOTE, "coverage yes", ("c:1",)),
        (
            cluster(changed(NODES[3], master_link_status="down")),
            *("link", WARNING, "its link to a:1 is down", ("a:2",)),
        ),
        (
            cluster(changed(NODES[3], role="master")),
            *("link", WARNING, "does not follow a:1", ("a:2",)),
        ),
        (
            cluster(replace(NODES[3], config=CONFIG | {"appendfsync": "no"})),
            *("persistence", WARNING, "appendfsync no", ("a:2",)),
        ),
        (
            cluster(replace(NODES[0], config=CONFIG | {"min-replicas-to-write": "0"})),
            *("min-replicas", NOTE, "min-replicas-to-write 0", ("a:1",)),
        ),
        (
            watched(sentinel(2, unreachable="gone")),
            *("sentinels", WARNING, "1 of 3 cannot be asked: s:2 (gone)", ()),
        ),
        (
            watched(sentinel(0, others=1), sentinel(1, others=1), count=2),
            *("sentinels", WARNING, "2 in all", ()),
        ),
        (watched(sentinel(1, others=3)), "sentinels", WARNING, "s:1 knows 3 others", ()),
        (watched(sentinel(1, trouble="NOQUORUM 1")), "quorum", ERROR, "s:1: NOQUORUM 1", ()),
        (watched(sentinel(1, quorum=3)), "quorum", WARNING, "s:1 has 3", ()),
        (watched(sentinel(1, primary="r:1")), "primary", ERROR, "p:1 say 2, r:1 say 1", ()),
        (
            watched(sentinel(1, flags="master,s_down")),
            *("primary", ERROR, "1 of 3 sentinels cannot reach it: s:1", ()),
        ),
        (
            watched(sentinel(0, replicas={"r:1": "slave,s_down,disconnected"})),
            *("candidates", WARNING, "cannot reach r:1", ()),
        ),
        (
            watched(servers=(replace(PRIMARY, unreachable="no"), REPLICA)),
            *("connection", ERROR, "no", ("p:1",)),
        ),
        (
            watched(servers=(PRIMARY, replace(REPLICA, unreachable="no"))),
            *("connection", WARNING, "no", ("r:1",)),
        ),
        (
            watched(servers=(changed(PRIMARY, connected_slaves=0), REPLICA)),
            *("replicas", WARNING, "none", ("p:1",)),
        ),
        (
            watched(servers=(changed(PRIMARY, role="slave", master_host="x"), REPLICA)),
            *("role", ERROR, "replica of x", ("p:1",)),
        ),
        (
            watched(
                servers=(
                    replace(PRIMARY, config=CONFIG | {"min-replicas-to-write": "0"}),
                    REPLICA,
                )
            ),
            *("min-replicas", WARNING, "min-replicas-to-write 0", ("p:1",)),
        ),
    ],
)
def test_each_fault_of_a_deployment_is_reported_with_its_servers(
    survey: Survey, check: str, severity: Severity, seen: str, servers: tuple[str, ...]
) -> None:
    """The finding names the fault, its consequence, the fix, and the servers that have it."""
    found = [one for one in assess_survey(survey) if one.check == check and one.severity]
    assert [(one.severity, one.servers) for one in found] == [(severity, servers)]
    assert seen in found[0].seen
    assert found[0].consequence
    assert found[0].fix


def test_a_deployment_that_nobody_can_tell_of_is_an_error() -> None:
    """No node, or no sentinel, answers."""
    (one,) = assess_survey(Survey("redis+cluster://a", "cluster", unreachable="connecting: no"))
    assert (one.check, one.severity, one.seen) == ("connection", ERROR, "connecting: no")


def test_the_same_namespace_in_another_database_is_told() -> None:
    """It is easily taken for this one."""
    found = judged(replace(WELL, databases=(1, 3)))["databases"]
    assert found.severity is NOTE
    assert "'default' is also in database 1, 3" in found.seen
    assert "databases" not in judged(WELL)


def test_a_channel_that_databases_share_is_told() -> None:
    """Programs of an earlier version still listen there."""
    found = judged(replace(WELL, shared_channels={"sb:{default:0}:live": 2}))["channels"]
    assert found.severity is WARNING
    assert "2 connections hear sb:{default:0}:live, which has no number" in found.seen
    assert "channels" not in judged(WELL)
