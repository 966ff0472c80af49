"""Find the rights of a user on a server: ask it, or else queue commands and discard them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from redis.exceptions import NoPermissionError, ResponseError

from broker.backend.acl import CLUSTER, EVERY_CLIENT, ROLES, SHARDED, SINCE, Role
from broker.backend.topology import Client
from broker.protocol.names import ShardKeys, config_key

# A command and its arguments.
Words: TypeAlias = tuple[Any, ...]

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
    "lset": (0, "v"),
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


# What is only called where it is queued.
_CHANGING: Final = frozenset(
    [
        "hset",
        "hdel",
        "hincrby",
        "rpush",
        "lmove",
        "lrem",
        "lset",
        "ltrim",
        "blpop",
        "xadd",
        "xtrim",
        "set",
        "pexpire",
        "del",
        "publish",
        "spublish",
    ]
)
# What no role needs, most of it destructive.
_NEEDED_BY_NONE: Final[tuple[Words, ...]] = (
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SHUTDOWN",),
    ("CONFIG SET", "maxmemory", "0"),
    ("ACL SETUSER", "somebody"),
    ("REPLICAOF", "NO", "ONE"),
)

Wanted = dict[str, list[tuple[str, Words]]]


def rights_of(
    keys: ShardKeys, namespace: str, node: str, version: tuple[int, ...], *, is_cluster: bool
) -> Wanted:
    """Return, for each role, its rights on a shard and a command that tests each."""
    return {
        name: list(_rights(role, keys, namespace, node, version, is_cluster=is_cluster))
        for name, role in ROLES.items()
    }


def _rights(
    role: Role,
    keys: ShardKeys,
    namespace: str,
    node: str,
    version: tuple[int, ...],
    *,
    is_cluster: bool,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
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
            else keys.stage(node)
            if name == "stage"
            else getattr(keys, name)
        )
        for command in sorted(commands):
            if command == "lmove":
                # From the stage into the queue: one right on both.
                if name == "stage":
                    yield f"{command} {key}", (command, key, keys.queue, "RIGHT", "RIGHT")
                continue
            before = ("0" * 40, 1) if command.startswith("evalsha") else ()
            words = (command.replace("|", " "), *before, key, *_AFTER_KEY.get(command, ()))
            yield f"{command} {key}", words


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may do on a server.

    Attributes:
        lacking: role -> the rights that the user lacks for it.
        surplus: commands that no role needs, in upper case, which the user may call.
        untested: rights of which nothing is known.
    """

    lacking: dict[str, list[str]]
    surplus: tuple[str, ...]
    untested: frozenset[str] = frozenset()


async def find_rights(client: Client, wanted: Wanted) -> Rights:
    """Return what our user may do; nothing is changed, and no refused command ends it.

    The server is asked (ACL DRYRUN), where it can be and our user may ask. Else the commands are
    tried: queued in a transaction that is never executed, for the server checks the rights when it
    queues a command. Subscriptions, which it never queues, are made and ended. Without MULTI what
    changes nothing is called, and what changes something is not tested.
    """
    every = {right: words for commands in wanted.values() for right, words in commands}
    untested: frozenset[str] = frozenset()
    asked = await _ask(client, every)
    if asked is not None:
        refused, surplus = asked
    else:
        refused, surplus, untested = await _try(client, every)
    lacking = {
        role: [right for right, _ in commands if right in refused]
        for role, commands in wanted.items()
    }
    return Rights(lacking, surplus, untested)


async def _ask(
    client: Client, wanted: Mapping[str, Words]
) -> tuple[set[str], tuple[str, ...]] | None:
    """Return (rights that are refused, surplus commands); None if the server does not tell."""
    try:
        user = await client.execute_command("ACL", "WHOAMI")  # type: ignore[no-untyped-call]

        async def may(words: Words) -> bool:
            try:
                reply = await client.execute_command(  # type: ignore[no-untyped-call]
                    "ACL", "DRYRUN", user, *str(words[0]).split(), *words[1:]
                )
            except ResponseError as error:
                # A command that the server lacks: it was renamed, or taken away.
                if "not found" in str(error):
                    return False
                raise
            return reply in {b"OK", "OK", True}

        refused = {right for right, words in wanted.items() if not await may(words)}
        surplus = [words[0] for words in _NEEDED_BY_NONE if await may(words)]
    except ResponseError:
        # An older server, or a user who may not ask.
        return None
    return refused, tuple(dict.fromkeys(map(str, surplus)))


async def _try(
    client: Client, wanted: Mapping[str, Words]
) -> tuple[set[str], tuple[str, ...], frozenset[str]]:
    """Return (rights that are refused, surplus commands, rights that could not be tried)."""
    refused: set[str] = set()
    surplus: tuple[str, ...] = ()
    async with _connection(client) as may:
        for right, words in _in_order(wanted, _NEVER_QUEUED):
            if not await may(*words):
                refused.add(right)
    async with _connection(client) as may:
        refused |= {word for word in _TRANSACTION if not await may(word)}
        is_queued = "multi" not in refused
        tried = {
            right: words
            for right, words in wanted.items()
            if right not in _TRANSACTION
            and words[0] not in _NEVER_QUEUED
            and (is_queued or words[0] not in _CHANGING)
        }
        for right, words in tried.items():
            if not await may(*words):
                refused.add(right)
        if is_queued and await may("KEYS", "*"):
            surplus = ("KEYS",)
    # The connection is closed, which discards what was queued.
    known = tried.keys() | set(_TRANSACTION)
    untested = {
        right
        for right, words in wanted.items()
        if right not in known and words[0] not in _NEVER_QUEUED
    }
    return refused, surplus, frozenset(untested)


def _in_order(wanted: Mapping[str, Words], commands: Sequence[str]) -> Iterator[tuple[str, Words]]:
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
