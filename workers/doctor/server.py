"""Assess the state and settings of a server. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from broker.protocol.constants import MIN_REDIS
from workers.doctor.model import Facts, Finding, Severity
from workers.doctor.replication import assess_replicas, assess_role

OK, NOTE, WARNING, ERROR = Severity

FULL_WARNING, FULL_ERROR = 0.8, 0.95
# A subscriber may be suspended for this long without being disconnected.
PATIENCE_S = 10.0
# The output buffer of a subscriber should hold at least this many batches.
BATCHES_BEHIND = 8


def assess_server(facts: Facts) -> list[Finding]:
    """Return the findings about the state of one server."""
    if not facts.info:
        return [
            Finding(
                "server",
                WARNING,
                "could not look: INFO is refused",
                "version, memory, persistence and replication are not known",
                "run it as a user of `statebroker acl admin`",
            )
        ]
    return [
        *_version(facts),
        *_databases(facts),
        *assess_role(facts),
        *_memory(facts),
        *_persistence(facts),
        *assess_replicas(facts),
        *_buffers(facts),
        *_clients(facts),
    ]


def _version(facts: Facts) -> Iterator[Finding]:
    version = str(facts.info.get("redis_version", ""))
    name = facts.info.get("server_name", "redis")
    text = f"{name} {facts.info.get('valkey_version', version)}"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MIN_REDIS:
        yield Finding(
            "version",
            ERROR,
            text,
            "statebroker refuses it: commands and ACL selectors that it needs are missing",
            "upgrade to Redis 7.0 or Valkey 7.2, or newer",
        )
    else:
        yield Finding("version", OK, text)


def _databases(facts: Facts) -> Iterator[Finding]:
    if facts.databases:
        numbers = ", ".join(map(str, facts.databases))
        yield Finding(
            "databases",
            NOTE,
            f"namespace {facts.namespace!r} is also in database {numbers}",
            "they are separate: whoever takes the number of another one reads and writes that",
            "give each database its own namespace",
        )
    for channel, count in facts.shared_channels.items():
        yield Finding(
            "channels",
            WARNING,
            f"{count} connections hear {channel}, which has no number of a database",
            "they are of an earlier version, and share this channel with every database of this "
            "server: namespaces of the same name disturb each other there",
            "stop these programs or update them, or rename all but one of these namespaces",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    policy = str(facts.info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        yield Finding("eviction", OK, f"maxmemory-policy {policy}")
    else:
        yield Finding(
            "eviction",
            ERROR,
            f"maxmemory-policy {policy}",
            "when memory is full it silently drops state; statebroker refuses such a server",
            "CONFIG SET maxmemory-policy noeviction",
        )
    used, limit = int(facts.info.get("used_memory", 0)), int(facts.info.get("maxmemory", 0))
    whole = limit or int(facts.info.get("total_system_memory", 0))
    share = used / whole if whole else 0.0
    text = f"{_size(used)} of {_size(whole)}" + ("" if limit else " of the machine, maxmemory 0")
    severity = ERROR if share > FULL_ERROR else WARNING if share > FULL_WARNING else OK
    if severity:
        yield Finding(
            "memory",
            severity,
            f"{text} in use",
            "at the limit appends are refused (OOM), and producers block when their buffers are "
            "full",
            f"CONFIG SET maxmemory {2 * used}, or write less state, or lower log_bytes",
        )
    elif not limit:
        yield Finding(
            "memory",
            NOTE,
            f"{text} in use",
            "if it grows too large the kernel kills it, and what is not on disk is lost",
            f"CONFIG SET maxmemory {int(whole * 0.7)}" if whole else "CONFIG SET maxmemory BYTES",
        )
    else:
        yield Finding("memory", OK, f"{text} in use")


def _persistence(facts: Facts) -> Iterator[Finding]:
    for name, what in (
        ("aof_last_write_status", "the append-only file cannot be written"),
        ("rdb_last_bgsave_status", "the last snapshot failed"),
    ):
        if facts.info.get(name, "ok") != "ok":
            yield Finding(
                "persistence",
                ERROR,
                f"{what} ({name}:{facts.info[name]})",
                "the server refuses writes (MISCONF), or loses them at its next restart",
                "free space on its disk, read its log, then run BGSAVE or BGREWRITEAOF",
            )
    if facts.info.get("aof_enabled"):
        yield _append_only(facts)
        return
    known = facts.config is not None
    save = (facts.config or {}).get("save", "")
    if save:
        yield Finding(
            "persistence",
            WARNING,
            f"snapshots only (save {save})",
            "a crash loses what came after the last one; producers send again what they kept "
            "(keep_seconds, 60 s by default), and count the rest as lost",
            "CONFIG SET appendonly yes",
        )
    else:
        yield Finding(
            "persistence",
            WARNING,
            "appendonly no"
            + (
                ", no snapshots"
                if known
                else "; could not look for snapshots: CONFIG GET is refused"
            ),
            "after a restart it is empty"
            + ("" if known else ", or as old as its last snapshot")
            + "; producers send again only what they kept (keep_seconds, 60 s by default)",
            "CONFIG SET appendonly yes",
        )


def _append_only(facts: Facts) -> Finding:
    fsync = None if facts.config is None else facts.config.get("appendfsync")
    if fsync == "always":
        return Finding(
            "persistence", OK, "appendonly yes, appendfsync always: what is accepted is on disk"
        )
    if fsync == "everysec":
        return Finding(
            "persistence",
            NOTE,
            "appendonly yes, appendfsync everysec",
            "a crash of the machine may lose about a second of accepted deltas; producers that are "
            "still running send them again",
            "nothing, or CONFIG SET appendfsync always, or flush(fsynced=True) where it matters",
        )
    if fsync is None:
        return Finding(
            "persistence",
            NOTE,
            "appendonly yes; could not look for appendfsync: CONFIG GET is refused",
            "how much a crash of the machine may lose is not known",
            "run it as a user of `statebroker acl admin`",
        )
    return Finding(
        "persistence",
        WARNING,
        f"appendonly yes, appendfsync {fsync}",
        "a crash of the machine may lose half a minute of accepted deltas",
        "CONFIG SET appendfsync everysec",
    )


def _buffers(facts: Facts) -> Iterator[Finding]:
    if facts.config is None:
        yield Finding(
            "output-buffer",
            NOTE,
            "could not look: CONFIG GET is refused",
            "how far a subscriber may fall behind before it is disconnected is not known",
            "run it as a user of `statebroker acl admin`",
        )
        return
    match = re.search(
        r"pubsub (\d+) (\d+) (\d+)", facts.config.get("client-output-buffer-limit", "")
    )
    if match is None:
        return
    hard, soft, soft_s = map(int, match.groups())
    text = f"client-output-buffer-limit pubsub {hard} {soft} {soft_s}"
    rate = facts.published_bytes_per_s
    lasts_s = hard / rate if hard and rate else float("inf")
    least = max(BATCHES_BEHIND * facts.largest_batch, int(rate * PATIENCE_S))
    if hard and (hard < least or lasts_s < PATIENCE_S):
        yield Finding(
            "output-buffer",
            WARNING,
            f"{text}; {_size(int(rate))}/s are published, batches have up to "
            f"{_size(facts.largest_batch)}",
            "a subscriber that is suspended for "
            + (f"{lasts_s:.1f} s" if lasts_s < PATIENCE_S else "a few batches")
            + " is disconnected and reads the log again; a slow one never becomes live",
            f"CONFIG SET client-output-buffer-limit 'pubsub {4 * least} {least} 60'",
        )
    else:
        yield Finding("output-buffer", OK, text)


def _clients(facts: Facts) -> Iterator[Finding]:
    count, most = int(facts.info.get("connected_clients", 0)), facts.info.get("maxclients")
    if most is None or count <= FULL_WARNING * int(most):
        return
    yield Finding(
        "clients",
        WARNING,
        f"{count} of {most} connections",
        "at the limit new producers, subscribers and workers are refused",
        f"CONFIG SET maxclients {2 * int(most)}, and raise its limit of open files",
    )


def _size(number: int) -> str:
    if number < 1 << 10:
        return f"{number} B"
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << shift:
            return f"{number / (1 << shift):.1f} {unit}"
    raise AssertionError(number)
