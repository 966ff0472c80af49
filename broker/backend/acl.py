"""The rights that each role needs on the server, and the ACL rules derived from them.

The rules grant the least privilege: each command only on the keys that the role uses it on. They
need ACL selectors, which every supported server has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.protocol.names import ShardKeys, config_key

# Above this many shards one pattern covers all: servers try a user's patterns one by one.
MAX_EXACT_SHARDS: Final = 16

# Commands that the oldest supported server lacks, and would reject in a rule -> first version.
SINCE: Final[Mapping[str, tuple[int, int]]] = {"client|setinfo": (7, 2), "waitaof": (7, 2)}

# Granted to every client. INFO shows whether the server is supported, ROLE whether it is the
# primary; `statebroker doctor` tests rights with a transaction that it queues and discards.
EVERY_CLIENT: Final = (
    *("ping", "select", "client|setname", "client|setinfo", "info", "role"),
    *("script|load", "time", "multi", "exec", "discard"),
)
# Commands that discover the nodes of a Cluster.
CLUSTER: Final = (
    *("cluster|slots", "cluster|shards", "cluster|nodes", "cluster|info"),
    *("command", "asking", "readonly", "readwrite"),
)
SHARDED: Final = {"publish": "spublish", "subscribe": "ssubscribe", "unsubscribe": "sunsubscribe"}


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of process and the rights it needs.

    Attributes:
        does: its purpose, for the help text.
        keys: name of a key as in `ShardKeys` (or "config", "stage") -> commands on it, in lower
            case, including those that scripts call.
        channel: commands on the shards' channels.
        bulk: commands on the channels of bulk chunks.
        server: commands without keys, in addition to those of every client.
    """

    does: str
    keys: Mapping[str, frozenset[str]]
    channel: frozenset[str] = frozenset()
    bulk: frozenset[str] = frozenset()
    server: frozenset[str] = field(default=frozenset())


# What is on the stage is moved into the queue, and nothing out of it.
_INTO_QUEUE: Final = (["lmove"], "queue")


def _rights(**lines: str) -> Mapping[str, frozenset[str]]:
    return {name: frozenset(line.split()) for name, line in lines.items()}


PRODUCER: Final = Role(
    "writes deltas: Producer, `statebroker set`, `delete`, `increment`",
    _rights(
        config="evalsha hmget hset",
        meta="hmget",
        intake="evalsha hget hmget hset hdel",
        queue="evalsha llen lmove rpush",
        stage="del evalsha lmove rpush",
        ready="evalsha rpush llen",
        dicts="hmget",
    ),
    server=frozenset({"wait", "waitaof"}),
)
FLUSHER: Final = Role(
    "publishes deltas: `statebroker flush`",
    _rights(
        config="evalsha hmget hset",
        meta="evalsha hmget hset",
        intake="del evalsha hget hmget hset",
        queue="del evalsha lrange ltrim llen",
        ready="blpop",
        log="evalsha xadd",
        workers="evalsha hset hdel hrandfield",
    ),
    channel=frozenset({"publish", "subscribe", "unsubscribe"}),
    bulk=frozenset({"publish"}),
)
SCHEDULER: Final = Role(
    "writes the full state: `statebroker schedule`",
    _rights(
        config="evalsha hmget hset",
        meta="evalsha hget hmget hset hincrby",
        log="evalsha xrange xtrim",
        state="evalsha hmget hset hdel hscan hlen memory|usage",
        tables="evalsha hset hdel hscan memory|usage",
        intake="evalsha hget hmget hset",
        dicts="del evalsha hdel hkeys hmget hset",
        lease="evalsha get set del pexpire",
        workers="evalsha hset hdel",
        dead="evalsha rpush ltrim",
    ),
    channel=frozenset({"publish"}),
)
SUBSCRIBER: Final = Role(
    "reads only: Replica, `statebroker watch`, `get`, `verify`",
    _rights(
        config="hmget",
        meta="hmget",
        intake="hget",
        log="xrange",
        dicts="hmget",
        state="evalsha_ro hmget hscan",
        tables="hlen hscan",
    ),
    channel=frozenset({"subscribe", "unsubscribe"}),
    bulk=frozenset({"subscribe", "unsubscribe"}),
)


def _all_of(roles: Iterable[Role], does: str) -> Role:
    roles = list(roles)
    names = dict.fromkeys(name for role in roles for name in role.keys)
    return Role(
        does,
        {
            name: frozenset().union(*(role.keys.get(name, frozenset()) for role in roles))
            for name in names
        },
        frozenset().union(*(role.channel for role in roles)),
        frozenset().union(*(role.bulk for role in roles)),
        frozenset().union(*(role.server for role in roles)),
    )


_OPERATOR: Final = Role(
    "",
    _rights(
        config="del",
        meta="del evalsha hgetall hdel",
        intake="del evalsha hgetall",
        idle="del evalsha hdel hget hgetall hset",
        workers="del hgetall",
        queue="del evalsha lindex llen lrem lset",
        stage="del",
        ready="del llen",
        log="del evalsha xadd xlen",
        state="del evalsha hdel hlen",
        tables="del evalsha hdel",
        lease="get",
        dead="del llen",
    ),
    # CONFIG GET reveals the default user's password if `requirepass` set it; no other role has it.
    server=frozenset({"config|get", "cluster|info", "cluster|nodes"}),
)
ADMIN: Final = _all_of(
    (PRODUCER, FLUSHER, SCHEDULER, SUBSCRIBER, _OPERATOR),
    "has all of these rights, inspects and mends: `statebroker status`, `verify`, `repair`, "
    "`doctor`",
)

ROLES: Final[Mapping[str, Role]] = {
    "producer": PRODUCER,
    "flusher": FLUSHER,
    "scheduler": SCHEDULER,
    "subscriber": SUBSCRIBER,
    "admin": ADMIN,
}


def rules(
    roles: Collection[str],
    namespace: str,
    *,
    node: str | None = None,
    shards: int | None = None,
    database: int | None = None,
    version: tuple[int, int] = (7, 0),
    is_cluster: bool = False,
) -> list[str]:
    """Return the rights of one user as arguments of `ACL SETUSER`, without state or password.

    Args:
        roles: names from `ROLES`; the user gets the rights of all of them.
        namespace: a validated name.
        node: a validated name; limits the user to this node's stage, so producer must be the only
            role that uses it. None: all nodes.
        shards: shard count of the namespace; up to 16 the keys are listed one by one. Above, or
            with None, patterns are used; they match no other namespace, since names hold no colon.
        database: number of the Redis database, for the channels; None: of any. (Rules for keys hold
            in all databases.)
        version: of the server; commands that it lacks are left out.
        is_cluster: whether the server is a node of a Cluster.
    """
    role = _all_of([ROLES[name] for name in roles], "")
    shard_keys = _shard_keys(namespace, shards, 0 if is_cluster else database)

    def commands(names: Iterable[str]) -> list[str]:
        known = {name for name in names if SINCE.get(name, version) <= version}
        return [f"+{SHARDED.get(name, name) if is_cluster else name}" for name in sorted(known)]

    every_client = {*EVERY_CLIENT, *(CLUSTER if is_cluster else ())}
    root = commands(every_client | role.server | role.channel | role.bulk)
    if role.channel:
        root += [f"&{keys.channel}" for keys in shard_keys]
    if role.bulk:
        root += [f"&{keys.bulk}" for keys in shard_keys]
    # All keys of a command must be in the same selector.
    groups: dict[tuple[str, ...], list[str]] = {}
    for command in sorted(frozenset().union(*role.keys.values())):
        places = tuple(name for name, may in role.keys.items() if command in may)
        groups.setdefault(places, []).append(command)
    selectors = []
    for places, granted in groups.items():
        patterns = [
            f"{'%W' if (granted, name) == _INTO_QUEUE else ''}~{pattern}"
            for name in places
            for pattern in _patterns(name, namespace, node, shard_keys)
        ]
        selectors.append(f"({' '.join([*commands(granted), *patterns])})")
    return [*root, *selectors]


def _shard_keys(namespace: str, shards: int | None, database: int | None) -> list[ShardKeys]:
    number = "*" if database is None else database
    if shards is None or shards > MAX_EXACT_SHARDS:
        return [ShardKeys.of_tag(f"{namespace}:*", number)]
    return [ShardKeys.of(namespace, shard, shards, number) for shard in range(shards)]


def _patterns(name: str, namespace: str, node: str | None, shards: list[ShardKeys]) -> list[str]:
    if name == "config":
        return [config_key(namespace)]
    if name == "stage":
        return [keys.stage(node or "*") for keys in shards]
    return [str(getattr(keys, name)) for keys in shards]
