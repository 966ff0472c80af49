"""What breaks without a command: for each that a role needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from workers.doctor.model import Severity

NOTE, WARNING, ERROR = Severity.NOTE, Severity.WARNING, Severity.ERROR

_SCRIPTS = "nothing can be appended or published: every write is a script"
_JOINING = "replicas never become live"
_APPENDING = "producers cannot append"
_DRAINING = "flush workers publish nothing"
_WRITING = "schedulers write no full state: the log fills, and then nothing is published"
_INSPECTING = "`statebroker status` and `verify` fail"
_CLUSTERING = "the nodes of the Cluster are not found"

# Command -> how serious it is, and what follows. A command of several roles: the worst.
CONSEQUENCES: Final[Mapping[str, tuple[Severity, str]]] = {
    "ping": (NOTE, "nothing of ours fails; health checks of other tools do"),
    "select": (WARNING, "a URL with another database than 0 cannot be used"),
    "client|setname": (WARNING, "a URL with client_name cannot be used"),
    "client|setinfo": (NOTE, "CLIENT LIST does not show the library"),
    "info": (ERROR, f"{_JOINING}, and the version and eviction policy are not checked"),
    "role": (WARNING, "behind Sentinels a demoted primary is not noticed, and nothing connects"),
    "script|load": (ERROR, _SCRIPTS),
    "time": (ERROR, f"{_JOINING}, and `statebroker status` fails"),
    "multi": (ERROR, f"{_JOINING}, and rights cannot be tested"),
    "exec": (ERROR, _JOINING),
    "discard": (NOTE, "`statebroker doctor` cannot test rights"),
    "evalsha": (ERROR, _SCRIPTS),
    "evalsha_ro": (ERROR, "the self-check of replicas and `statebroker verify` fail"),
    "hmget": (ERROR, "nobody can join the namespace"),
    "hset": (ERROR, f"{_APPENDING}, {_DRAINING}, {_WRITING}"),
    "hget": (ERROR, f"{_APPENDING}, {_WRITING}"),
    "hdel": (ERROR, f"{_APPENDING}, {_DRAINING}, {_WRITING}"),
    "hincrby": (ERROR, f"{_DRAINING}, {_WRITING}"),
    "hgetall": (ERROR, _INSPECTING),
    "hkeys": (WARNING, "schedulers neither train dictionaries nor mend them: chunks stay larger"),
    "hlen": (ERROR, f"{_JOINING} where there are tables; {_INSPECTING}"),
    "memory|usage": (WARNING, "a bound on the bytes of the state cannot be held"),
    "hscan": (ERROR, f"{_JOINING}; {_WRITING}"),
    "hrandfield": (ERROR, _DRAINING),
    "rpush": (ERROR, f"{_APPENDING}, and dead letters are lost"),
    "lmove": (ERROR, "producers cannot append chunks of 64 KiB or more"),
    "ltrim": (ERROR, f"{_DRAINING}, and dead letters are lost"),
    "lrange": (ERROR, _DRAINING),
    "lindex": (ERROR, "`statebroker status` fails"),
    "lrem": (WARNING, "`statebroker repair` fails"),
    "lset": (WARNING, "`statebroker repair` fails"),
    "llen": (ERROR, f"{_APPENDING}, {_DRAINING}; {_INSPECTING}"),
    "blpop": (
        ERROR,
        "flush workers poll at each heartbeat (1 s): deltas are published up to that late",
    ),
    "del": (ERROR, f"{_APPENDING}, {_WRITING}"),
    "get": (ERROR, _WRITING),
    "set": (ERROR, _WRITING),
    "pexpire": (ERROR, _WRITING),
    "xadd": (ERROR, _DRAINING),
    "xrange": (ERROR, f"{_JOINING}; {_WRITING}"),
    "xtrim": (ERROR, _WRITING),
    "xlen": (ERROR, _INSPECTING),
    "publish": (ERROR, f"{_DRAINING}: replicas get nothing, and become stale"),
    "subscribe": (ERROR, f"{_JOINING}, and flush workers are red"),
    "unsubscribe": (WARNING, "subscriptions cannot follow a shard that moves, or pause"),
    "wait": (WARNING, "flush(redis_replicas=) fails"),
    "waitaof": (WARNING, "flush(fsynced=) fails"),
    "config|get": (NOTE, "`statebroker doctor` does not see settings"),
    "cluster|slots": (ERROR, _CLUSTERING),
    "cluster|shards": (ERROR, _CLUSTERING),
    "cluster|nodes": (NOTE, "`redis-cli --cluster` does not work for this user"),
    "cluster|info": (NOTE, "`statebroker doctor` does not see the state of nodes"),
    "command": (NOTE, "other clients than ours may fail"),
    "asking": (ERROR, "a shard whose slot moves cannot be reached"),
    "readonly": (NOTE, "other clients than ours cannot read from replicas"),
    "readwrite": (NOTE, "other clients than ours cannot read from replicas"),
}
_UNSHARDED: Final = {
    "spublish": "publish",
    "ssubscribe": "subscribe",
    "sunsubscribe": "unsubscribe",
}


def consequence(right: str) -> tuple[Severity, str]:
    """Return how serious it is that a right ("command key") is missing, and what follows."""
    command = right.partition(" ")[0]
    return CONSEQUENCES[_UNSHARDED.get(command, command)]
