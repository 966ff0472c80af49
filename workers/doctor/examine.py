"""Collect the facts of a server; changes nothing on it, except that it caches a short script."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.exceptions import NoPermissionError, ResponseError

from broker.backend import queries
from broker.backend.replies import DrainLimits
from broker.backend.stored import number_or_none
from broker.backend.topology import Client
from broker.backend.urls import has_login
from broker.errors import BackendError, DamagedError
from broker.protocol.names import ShardKeys, config_key
from workers.doctor.model import Facts
from workers.doctor.rights import NOOP_SCRIPT, find_rights, rights_of

SECTIONS: Final = ("server", "clients", "memory", "persistence", "replication", "keyspace")
SETTINGS: Final = (
    *("save", "appendfsync", "client-output-buffer-limit"),
    *("min-replicas-to-write", "min-replicas-max-lag", "cluster-require-full-coverage"),
)


async def examine(client: Client, url: str, asked: Facts, shards: int) -> Facts:
    """Return the facts of one server.

    Args:
        client: connected to that server only.
        url: of that server.
        asked: facts known before, and what to test: roles, namespace, node.
        shards: of the namespace.

    Raises:
        RedisError, OSError: it no longer answers.
    """
    info = await allowed(client, "INFO", *SECTIONS) or {}
    clock, error = await _clock(client)
    version = tuple(map(int, re.findall(r"\d+", str(info.get("redis_version", "7.0")))[:2]))
    is_cluster = asked.kind == "cluster"
    keys = ShardKeys.of(asked.namespace, 0, shards, _database(client))
    rights = rights_of(keys, asked.namespace, asked.node, version, is_cluster=is_cluster)
    found = await find_rights(client, rights)
    parts = urlsplit(url)
    return replace(
        asked,
        is_tls=parts.scheme.startswith("rediss"),
        is_local=parts.scheme == "unix" or _is_loopback(parts.hostname or ""),
        user=unquote(parts.username or "") or "default",
        has_password=has_login(url),
        info=info,
        config=await _config(client),
        clock_s=clock,
        clock_error_s=error,
        script_error=await _script_error(client),
        lacking=found.lacking,
        untested=found.untested,
        surplus=found.surplus,
        largest_batch=DrainLimits().batch_bytes,
        cluster=await _cluster_info(client) if is_cluster else {},
        databases=await _databases(client, asked.namespace, info),
        shared_channels=await _shared_channels(
            client, asked.namespace, shards, is_cluster=is_cluster
        ),
    )


def _database(client: Client) -> int:
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


async def _databases(client: Client, namespace: str, info: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the other databases that hold the namespace too, as far as this user may look."""
    own = _database(client)
    others = sorted(int(name[2:]) for name in info if re.fullmatch(r"db\d+", name))
    found = []
    for number in others:
        if number == own:
            continue
        # On one connection, which goes back to its own database.
        pipe = client.pipeline(transaction=False)
        pipe.execute_command("SELECT", number)
        pipe.exists(config_key(namespace))
        pipe.execute_command("SELECT", own)
        selected, exists, _ = await pipe.execute(raise_on_error=False)
        if not isinstance(selected, Exception) and exists == 1:
            found.append(number)
    return tuple(found)


async def _shared_channels(
    client: Client, namespace: str, shards: int, *, is_cluster: bool
) -> dict[str, int]:
    """Return the channels of version 2 that somebody on this server subscribes to, and how many.

    Pub/sub knows no databases, and their names do not either.
    """
    names = [
        channel.rpartition(":")[0]
        for shard in range(shards)
        for keys in [ShardKeys.of(namespace, shard, shards)]
        for channel in (keys.channel, keys.bulk)
    ]
    word = "SHARDNUMSUB" if is_cluster else "NUMSUB"
    reply = await allowed(client, "PUBSUB", word, *names) or []
    pairs = reply.items() if isinstance(reply, dict) else _pairs(reply)
    return {name.decode(): int(count) for name, count in pairs if count}


def _pairs(reply: Sequence[Any]) -> Iterable[tuple[bytes, int]]:
    # The client makes pairs of the one command, and leaves the other as it came.
    if reply and isinstance(reply[0], tuple | list):
        return [(one[0], one[1]) for one in reply]
    return zip(reply[::2], reply[1::2], strict=True)


async def _cluster_info(client: Client) -> dict[str, str]:
    text = await allowed(client, "CLUSTER", "INFO") or b""
    lines = text.decode().splitlines() if isinstance(text, bytes) else ()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def allowed(client: Client, *words: str) -> Any:
    """Return the reply; None if the server refuses the command, to this user or to all."""
    try:
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]
    except ResponseError:
        return None


async def _config(client: Client) -> dict[str, str] | None:
    try:
        found = await client.config_get(*SETTINGS)
    except ResponseError:
        return None
    return {str(name): str(value) for name, value in found.items()}


async def _clock(client: Client) -> tuple[float | None, float]:
    """Return (clock of the server minus ours or None, measurement error), in seconds."""
    found = []
    for _ in range(3):
        before = time.time()
        answer = await allowed(client, "TIME")
        after = time.time()
        if answer is None:
            return None, 0.0
        found.append((answer[0] + answer[1] / 1e6 - (before + after) / 2, (after - before) / 2))
    return min(found, key=lambda one: one[1])


async def _script_error(client: Client) -> str | None:
    try:
        sha = await client.script_load(NOOP_SCRIPT)
    except NoPermissionError:
        return None
    except ResponseError as error:
        return f"SCRIPT LOAD: {error}"
    for call in ("EVALSHA", "EVALSHA_RO"):
        try:
            await client.execute_command(call, sha, 0)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            continue
        except ResponseError as error:
            return f"{call}: {error}"
        return ""
    return None


async def made_as(client: Client, namespace: str) -> tuple[int, str]:
    """Return (shards of a namespace, why it cannot be used and the fix, or "").

    One shard if it does not exist or may not be read.
    """
    try:
        found = await queries.config(client, namespace)
    except DamagedError as error:
        return 1, str(error)
    except BackendError:
        return 1, ""
    if found is None:
        return 1, ""
    reason = found.refusal()
    return found.shards, reason and f"namespace {namespace!r} {reason}"


async def rhythm(client: Client, namespace: str, shards: int) -> tuple[float, float]:
    """Return (heartbeat interval, age threshold) in seconds, the longest of a shard; 0: unknown."""
    found = [0, 0]
    for shard in range(shards):
        meta = ShardKeys.of(namespace, shard, shards).meta
        try:
            replies: list[bytes | None] = await client.hmget(meta, ["heartbeat", "max_age"])  # type: ignore[assignment]
        except ResponseError:
            continue
        found = [max(n, number_or_none(one) or 0) for n, one in zip(found, replies, strict=True)]
    return found[0] / 1000, found[1] / 1000


async def rates(client: Client, namespace: str, shards: int, seconds: float) -> list[float]:
    """Return the bytes per second that each shard publishes; zeros if they may not be read."""
    metas = [ShardKeys.of(namespace, shard, shards).meta for shard in range(shards)]

    async def published() -> list[int]:
        return [int((await client.hmget(meta, ["bytes"]))[0] or 0) for meta in metas]

    try:
        before, began = await published(), time.monotonic()
        await asyncio.sleep(seconds)
        after, passed = await published(), time.monotonic() - began
    except (ResponseError, ValueError):
        # Refused, or another program wrote something else there: what is not read is not assessed.
        return [0.0] * shards
    return [(new - old) / passed for old, new in zip(before, after, strict=True)]
