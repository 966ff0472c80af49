"""What a user may do on a server: tried by commands that are queued and discarded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from broker.backend.acl import ROLES, SHARDED, SINCE, Role
from broker.backend.topology import Client
from broker.protocol.names import ShardKeys, config_key

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
    "spublish": ("v",),
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


Rights = dict[str, list[tuple[str, tuple[Any, ...]]]]


def rights_of(
    namespace: str, node: str, shards: int, version: tuple[int, ...], *, is_cluster: bool
) -> Rights:
    """Return of each role everything that it does: the right, and a command that takes it."""
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


async def tried(client: Client, rights: Rights) -> tuple[dict[str, list[str]], bool]:
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
