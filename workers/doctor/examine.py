"""Asking a server for the facts; changes nothing on it but for a cached script of one line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from broker import reads
from broker.connection import Connections, attached, translated
from broker.directory import Client
from broker.errors import BackendError
from broker.keys import ShardKeys, config_key
from broker.lua.replies import DrainLimits
from broker.roles import ROLES, SINCE, Role
from broker.urls import redacted
from workers.doctor.model import Facts

SECTIONS: Final = ("server", "clients", "memory", "persistence", "replication")
SETTINGS: Final = (
    *("save", "appendfsync", "client-output-buffer-limit"),
    *("min-replicas-to-write", "min-replicas-max-lag"),
)
NOTHING: Final = "return 1"

# What follows the key, so that the server gets as far as asking whether the user may.
_AFTER_KEY: Final[dict[str, tuple[Any, ...]]] = {
    "hmget": ("f",),
    "hget": ("f",),
    "hdel": ("f",),
    "hset": ("f", "v"),
    "hincrby": ("f", 1),
    "rpush": ("v",),
    "lrange": (0, 0),
    "ltrim": (0, -1),
    "blpop": (0,),
    "xadd": ("*", "f", "v"),
    "xrange": ("-", "+"),
    "xtrim": ("MAXLEN", 1),
    "hscan": (0,),
    "set": ("v",),
    "pexpire": (1,),
    "publish": ("v",),
}
_WITHOUT_KEY: Final[dict[str, tuple[Any, ...]]] = {
    "select": (0,),
    "client|setname": ("x",),
    "client|setinfo": ("LIB-NAME", "x"),
    "script|load": (NOTHING,),
    "wait": (0, 0),
    "waitaof": (0, 0, 0),
    "config|get": ("save",),
}


async def examine(
    url: str,
    namespace: str,
    *,
    node: str = "doctor",
    wanted: Sequence[str] = (),
    seconds: float = 1.0,
) -> Facts:
    """Return what a server shows; one that cannot be asked is a fact too.

    Args:
        url: any supported one; an embedded server is started if it does not run.
        namespace: whose keys are tried, and whose rate is measured.
        node: whose pending list is tried.
        wanted: the roles that this user is meant to have.
        seconds: for how long the rate is measured.

    Raises:
        ConfigError, EmbeddedError: the URL is no URL; the embedded server does not start.
    """
    real, attachment = await asyncio.to_thread(attached, url)
    connections = Connections(real)
    asked = Facts(redacted(real), wanted=tuple(wanted), namespace=namespace, node=node)
    try:
        client = connections.commands()
        async with translated("connecting", connections.name):
            return await _seen(client, real, asked, seconds)
    except BackendError as error:
        return replace(asked, unreachable=str(error))
    finally:
        await connections.close()
        if attachment is not None:
            await asyncio.to_thread(attachment.close)


async def _seen(client: Client, url: str, asked: Facts, seconds: float) -> Facts:
    info = await _allowed(client, "INFO", *SECTIONS) or {}
    clock, doubt = await _clock(client)
    shards = await _shards(client, asked.namespace)
    version = tuple(map(int, re.findall(r"\d+", str(info.get("redis_version", "7.0")))[:2]))
    rights = {
        name: list(_rights(role, asked.namespace, asked.node, shards, version))
        for name, role in ROLES.items()
    }
    lacking, is_owner = await _lacking(client, rights)
    parts = urlsplit(url)
    return replace(
        asked,
        is_tls=parts.scheme.startswith("rediss"),
        is_local=parts.scheme == "unix" or _is_loopback(parts.hostname or ""),
        user=unquote(parts.username or "") or "default",
        has_password=parts.password is not None,
        info=info,
        config=await _config(client),
        clock_s=clock,
        clock_doubt_s=doubt,
        script_error=await _script_error(client),
        lacking=lacking,
        is_owner=is_owner,
        published_bytes_per_s=await _rate(client, asked.namespace, shards, seconds),
        largest_batch=DrainLimits().batch_bytes,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def _allowed(client: Client, *words: str) -> Any:
    """Return the answer, None if this user may not ask."""
    try:
        return await client.execute_command(*words)  # type: ignore[no-untyped-call]
    except NoPermissionError:
        return None


async def _config(client: Client) -> dict[str, str] | None:
    try:
        found = await client.config_get(*SETTINGS)
    except NoPermissionError:
        return None
    return {str(name): str(value) for name, value in found.items()}


async def _clock(client: Client) -> tuple[float, float]:
    """Return (the server's clock minus ours, how far off that may be), in seconds."""
    found = []
    for _ in range(3):
        before = time.time()
        answer = await _allowed(client, "TIME")
        after = time.time()
        if answer is None:
            return 0.0, 0.0
        found.append((answer[0] + answer[1] / 1e6 - (before + after) / 2, (after - before) / 2))
    return min(found, key=lambda one: one[1])


async def _script_error(client: Client) -> str | None:
    try:
        sha = await client.script_load(NOTHING)
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


async def _shards(client: Client, namespace: str) -> int:
    try:
        found = await reads.config(client, namespace)
    except BackendError:
        return 1
    return found[1] if found else 1


async def _rate(client: Client, namespace: str, shards: int, seconds: float) -> float:
    """Return bytes per second that the namespace publishes now; 0 if we may not look."""
    metas = [ShardKeys.of(namespace, shard, shards).meta for shard in range(shards)]

    async def published() -> int:
        return sum([int((await client.hmget(meta, ["bytes"]))[0] or 0) for meta in metas])

    try:
        before, began = await published(), time.monotonic()
        await asyncio.sleep(seconds)
        return (await published() - before) / (time.monotonic() - began)
    except NoPermissionError:
        return 0.0


# -- what the user may do -------------------------------------------------------------------------


def _rights(
    role: Role, namespace: str, node: str, shards: int, version: tuple[int, ...]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (the right, a command that takes it) for everything that a role does."""
    keys = ShardKeys.of(namespace, 0, shards)
    for command in sorted(role.server):
        if SINCE.get(command, (0, 0)) <= version:
            yield command, (*command.split("|"), *_WITHOUT_KEY.get(command, ()))
    for command in sorted(role.channel):
        yield f"{command} {keys.channel}", (command, keys.channel, *_AFTER_KEY.get(command, ()))
    for name, commands in role.keys.items():
        key = (
            config_key(namespace)
            if name == "config"
            else keys.pending(node)
            if name == "pending"
            else getattr(keys, name)
        )
        for command in sorted(commands):
            before = ("0" * 40, 1) if command.startswith("evalsha") else ()
            words = (command, *before, key, *_AFTER_KEY.get(command, ()))
            yield f"{command} {key}", words


async def _lacking(
    client: Client, rights: dict[str, list[tuple[str, tuple[Any, ...]]]]
) -> tuple[dict[str, list[str]], bool]:
    """Return (role -> the rights that our user lacks, whether it may do what no role needs).

    Each command is queued in a transaction that is then discarded: the server says at once whether
    the user may, and nothing is done.
    """
    wanted = {right: words for told in rights.values() for right, words in told}
    refused = set()
    connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    try:

        async def may(*words: Any) -> bool:
            try:
                await connection.send_command(*words)
                await connection.read_response()
            except NoPermissionError:
                return False
            except ResponseError:
                # It objects to something else: it had come that far.
                return True
            return True

        if not (await may("DISCARD") and await may("MULTI")):
            return {}, False
        for right, words in wanted.items():
            if not await may(*words):
                refused.add(right)
        is_owner = await may("KEYS", "*")
        await may("DISCARD")
    except RedisError:
        # In the middle of a transaction it is of no use to anybody.
        await connection.disconnect()
        raise
    finally:
        await client.connection_pool.release(connection)
    lacking = {
        role: [right for right, _ in told if right in refused] for role, told in rights.items()
    }
    return lacking, is_owner
