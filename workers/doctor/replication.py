"""Assess the replication of a server: its role, its primary and its replicas. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from broker.protocol.names import SLOTS
from workers.doctor.model import Facts, Finding, Severity

OK, NOTE, WARNING, ERROR = Severity

LATE_REPLICA_S = 10


def assess_role(facts: Facts) -> Iterator[Finding]:
    """Return the findings about its role, its link to a primary, and its view of the Cluster."""
    yield from _role(facts)
    yield from _link(facts)
    yield from _cluster(facts)


def _role(facts: Facts) -> Iterator[Finding]:
    if facts.info.get("role") != "slave" or facts.primary:
        return
    primary = f"{facts.info.get('master_host')}:{facts.info.get('master_port')}"
    yield Finding(
        "role",
        ERROR,
        f"it is a replica of {primary}",
        "it refuses every write",
        f"give the URL of the primary, {primary}, or of its Sentinels (redis+sentinel://)",
    )


def _link(facts: Facts) -> Iterator[Finding]:
    """Return the findings about a server that should be a replica."""
    if not facts.primary:
        return
    is_following = facts.info.get("role") == "slave"
    if is_following and facts.info.get("master_link_status") == "up":
        yield Finding("link", OK, f"follows {facts.primary}")
        return
    yield Finding(
        "link",
        WARNING,
        f"its link to {facts.primary} is down"
        if is_following
        else f"it does not follow {facts.primary}",
        "it falls behind; after a failover to it, only what producers kept is sent again",
        "read its log; with passwords or TLS it needs masteruser, masterauth, tls-replication",
    )


def _cluster(facts: Facts) -> Iterator[Finding]:
    info = facts.cluster
    # Without cluster-require-full-coverage the state is ok even if slots have no owner.
    is_whole = info.get("cluster_slots_ok") == str(SLOTS)
    if info and (info.get("cluster_state") != "ok" or not is_whole):
        yield Finding(
            "cluster-state",
            ERROR,
            f"cluster_state:{info.get('cluster_state')}, of {SLOTS} slots "
            f"{info.get('cluster_slots_ok')} have a reachable owner",
            "shards in the other slots accept nothing, and where the state is fail no shard does",
            f"redis-cli --cluster check {facts.at}",
        )
    elif info:
        yield Finding("cluster-state", OK, "ok")
    if info and (facts.config or {}).get("cluster-require-full-coverage") == "yes":
        yield Finding(
            "coverage",
            NOTE,
            "cluster-require-full-coverage yes",
            "while one slot has no owner every shard stops, not only the shards on it",
            "CONFIG SET cluster-require-full-coverage no",
        )


def assess_replicas(facts: Facts) -> Iterator[Finding]:
    """Return the findings about its replicas."""
    if facts.info.get("role") == "slave":
        return
    count = int(facts.info.get("connected_slaves", 0))
    if not count and facts.kind == "cluster":
        # Reported for all primaries together.
        return
    if not count:
        yield Finding(
            "replicas",
            NOTE if facts.kind == "single" else WARNING,
            "none",
            "while this server is down nothing is accepted; flush(redis_replicas=1) never returns",
            "run a replica (REPLICAOF) and Sentinels, if you need failover",
        )
        return
    replicas = [facts.info.get(f"slave{n}", {}) for n in range(count)]
    late = [
        f"{one.get('ip')}:{one.get('port')} ({one.get('state')}, {one.get('lag')} s)"
        for one in replicas
        if one.get("state") != "online" or int(one.get("lag", 0)) > LATE_REPLICA_S
    ]
    if late:
        yield Finding(
            "replicas",
            WARNING,
            f"{len(late)} of {count} are behind: {', '.join(late)}",
            "after a failover to one of them, only what producers kept is sent again",
            "check its network, disk and log, and INFO replication",
        )
    else:
        yield Finding("replicas", OK, f"{count} online")
    least = None if facts.config is None else int(facts.config.get("min-replicas-to-write", 0))
    if least == 0:
        in_cluster = facts.kind == "cluster"
        yield Finding(
            "min-replicas",
            NOTE if in_cluster else WARNING,
            "min-replicas-to-write 0",
            "an isolated primary goes on accepting writes that the failover then discards"
            + (", until cluster-node-timeout" if in_cluster else ""),
            "CONFIG SET min-replicas-to-write 1",
        )
    elif least is not None:
        lag = (facts.config or {}).get("min-replicas-max-lag")
        yield Finding("min-replicas", OK, f"min-replicas-to-write {least}, at most {lag} s behind")
