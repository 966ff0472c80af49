"""Test the rights of a user on a server, with commands that are queued and discarded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from broker.backend.acl import CLUSTER, EVERY_CLIENT, ROLES, SHARDED, SINCE, Role
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
    "lindex": (0,),
    "lrem": (1, "v"),
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
# What a transaction is made of, and what the server does not queue in one.
_TRANSACTION: Final = ("discard", "exec", "multi")
_NEVER_QUEUED: Final = ("unsubscribe", "subscribe", "sunsubscribe", "ssubscribe")


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
    server = {*EVERY_CLIENT, *(CLUSTER if is_cluster else ()), *role.server}
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
    when it queues the command, and executes nothing. Subscriptions, which it never queues, are
    made and ended. Without MULTI nothing else can be tested; each role lacks it then.
    """
    wanted = {right: words for commands in rights.values() for right, words in commands}
    refused = set()
    is_owner = False
    async with _connection(client) as may:
        for right, words in _in_order(wanted, _NEVER_QUEUED):
            if not await may(*words):
                refused.add(right)
    async with _connection(client) as may:
        refused |= {word for word in _TRANSACTION if not await may(word)}
        if not refused.intersection(_TRANSACTION):
            rest = {right: words for right, words in wanted.items() if right not in _TRANSACTION}
            for right, words in rest.items():
                if words[0] not in _NEVER_QUEUED and not await may(*words):
                    refused.add(right)
            is_owner = await may("KEYS", "*")
            await may("DISCARD")
    lacking = {
        role: [right for right, _ in commands if right in refused]
        for role, commands in rights.items()
    }
    return lacking, is_owner


def _in_order(
    wanted: dict[str, tuple[Any, ...]], commands: Sequence[str]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the rights for these commands, command by command."""
    for command in commands:
        yield from ((right, words) for right, words in wanted.items() if words[0] == command)


@asynccontextmanager
async def _connection(client: Client) -> AsyncIterator[Callable[..., Awaitable[bool]]]:
    """Give a function that tells whether a command is allowed, on a connection of its own."""
    connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]

    async def may(*words: Any) -> bool:
        try:
            await connection.send_command(*words)
            await connection.read_response()
        except NoPermissionError:
            return False
        except ResponseError as error:
            # Any other error: the check of rights was passed. That of EXEC is in an EXECABORT.
            return not is_unknown(error) and "NOPERM" not in str(error)
        return True

    try:
        yield may
    finally:
        # Its transaction or its subscriptions must not reach the next user.
        await connection.disconnect()
        await client.connection_pool.release(connection)


def is_unknown(error: ResponseError) -> bool:
    """Whether a server lacks the command: it was renamed, or the provider took it away."""
    return "unknown command" in str(error).lower() or "unknown subcommand" in str(error).lower()
