"""Test the rights of a user on a server, with commands that are queued and discarded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from broker.backend.acl import ROLES, SHARDED, SINCE, Role
from broker.backend.topology import Client
from broker.protocol.names import ShardKeys, config_key

NOOP_SCRIPT: Final = "return 1"

# Arguments after the key, so that the server reaches the check of rights.
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
    "spublish": ("v",),
}
_WITHOUT_KEY: Final[dict[str, tuple[Any, ...]]] = {
    "select": (0,),
    "client|setname": ("x",),
    "client|setinfo": ("LIB-NAME", "x"),
    "script|load": (NOOP_SCRIPT,),
    "wait": (0, 0),
    "waitaof": (0, 0, 0),
    "config|get": ("save",),
}


Rights = dict[str, list[tuple[str, tuple[Any, ...]]]]


def rights_of(
    namespace: str, node: str, shards: int, version: tuple[int, ...], *, is_cluster: bool
) -> Rights:
    """Return, for each role, its rights and a command that tests each."""
    return {
        name: list(_rights(role, namespace, node, shards, version, is_cluster=is_cluster))
        for name, role in ROLES.items()
    }


def _rights(
    role: Role,
    namespace: str,
    node: str,
    shards: int,
    version: tuple[int, ...],
    *,
    is_cluster: bool,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    keys = ShardKeys.of(namespace, 0, shards)
    server = {"cluster|slots", *role.server} if is_cluster else role.server
    for command in sorted(server):
        if SINCE.get(command, (0, 0)) <= version:
            yield command, (*command.split("|"), *_WITHOUT_KEY.get(command, ()))
    for channel, commands in ((keys.channel, role.channel), (keys.bulk, role.bulk)):
        for command in sorted({SHARDED[name] for name in commands} if is_cluster else commands):
            yield f"{command} {channel}", (command, channel, *_AFTER_KEY.get(command, ()))
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


async def try_rights(client: Client, rights: Rights) -> tuple[dict[str, list[str]], bool]:
    """Return (role -> the rights that our user lacks, whether it has rights that no role needs).

    Each command is queued in a transaction that is then discarded: the server checks the rights
    when it queues the command, and executes nothing.
    """
    wanted = {right: words for commands in rights.values() for right, words in commands}
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
                # Another error: the check of rights was passed.
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
        # A connection with an open transaction must not be used again.
        await connection.disconnect()
        raise
    finally:
        await client.connection_pool.release(connection)
    lacking = {
        role: [right for right, _ in commands if right in refused]
        for role, commands in rights.items()
    }
    return lacking, is_owner
