"""What each error reply of a server means for the connection: one table.

docs/decisions/0024-replies-that-mean-the-wrong-server.md has the reasons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from redis.exceptions import RedisError

from broker.errors import AccessError, BackendError, ConnectError


class Then(Enum):
    """What to do with the connection on which a reply arrived; each command is tried again."""

    RECONNECT = "reconnect"
    """Close it: the next try resolves the address and logs in again, as a new process would."""
    REDIRECT = "redirect"
    """Another node owns the key: a Cluster is asked for it; for one server as `RECONNECT`."""
    WAIT = "wait"
    """Keep it: this server may execute the command later."""
    ADMIN = "admin"
    """Keep it: an administrator has to act, which takes effect on open connections."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reply means.

    Attributes:
        then: what to do with the connection.
        says: what the server does or is; follows its name.
        fix: what to do about it.
        error: class of our exception.
        is_temporary: whether it can end without anybody's action, so that a start waits.
    """

    then: Then
    says: str
    fix: str
    error: type[BackendError] = ConnectError
    is_temporary: bool = True


_LOGIN: Final = "check the user and password"
_CLUSTER: Final = "use a URL that starts with redis+cluster:// or rediss+cluster://"

MEANINGS: Final[Mapping[str, Meaning]] = {
    "READONLY": Meaning(
        Then.RECONNECT,
        "is a replica, which takes no writes",
        "the address is resolved again for the next try; it must lead to the primary",
    ),
    "UNBLOCKED": Meaning(
        Then.RECONNECT,
        "became a replica",
        "the address is resolved again for the next try; it must lead to the primary",
    ),
    "MASTERDOWN": Meaning(
        Then.RECONNECT,
        "is a replica that lost its primary",
        "the address is resolved again for the next try; it must lead to the primary",
    ),
    "NOREPLICAS": Meaning(
        Then.RECONNECT,
        "has fewer replicas than its min-replicas-to-write",
        "start its replicas; the address is resolved again for the next try",
    ),
    "LOADING": Meaning(
        Then.RECONNECT,
        "is still loading its data",
        "wait for it; the address is resolved again for the next try",
    ),
    "NOAUTH": Meaning(
        Then.RECONNECT, "refuses the password", _LOGIN, AccessError, is_temporary=False
    ),
    "WRONGPASS": Meaning(
        Then.RECONNECT, "refuses the password", _LOGIN, AccessError, is_temporary=False
    ),
    "DENIED": Meaning(
        Then.RECONNECT,
        "is in protected mode, so it serves only its own machine",
        "give it a password or ACL users, or set protected-mode no",
        AccessError,
        is_temporary=False,
    ),
    "MOVED": Meaning(
        Then.REDIRECT, "is a node of a Redis Cluster", _CLUSTER, BackendError, is_temporary=False
    ),
    "ASK": Meaning(Then.REDIRECT, "is a node of a Redis Cluster", _CLUSTER, BackendError),
    "TRYAGAIN": Meaning(Then.REDIRECT, "is migrating a slot", "wait for it", BackendError),
    "CLUSTERDOWN": Meaning(
        Then.REDIRECT,
        "is a node of a Redis Cluster that does not serve this slot",
        "see `redis-cli --cluster check`",
    ),
    "BUSY": Meaning(
        Then.WAIT,
        "is busy with a script or function of somebody",
        "run SCRIPT KILL or FUNCTION KILL",
        BackendError,
    ),
    "OOM": Meaning(Then.WAIT, "is out of memory", "raise maxmemory or store less", BackendError),
    "MISCONF": Meaning(
        Then.WAIT,
        "accepts no writes because it cannot write to its disk",
        "free disk space, and look at its log",
        BackendError,
    ),
    "NOPERM": Meaning(
        Then.ADMIN,
        "does not permit it",
        "check the ACL of this user",
        BackendError,
        is_temporary=False,
    ),
}

# Replies that have the code ERR, or that the client reports by a text of its own.
_PHRASES: Final = (
    ("cannot be used with replica instances", "READONLY"),
    ("invalid password", "WRONGPASS"),
    ("username-password", "WRONGPASS"),
    ("without any password configured", "WRONGPASS"),
    # An unauthenticated client may not send much.
    ("Protocol error: unauthenticated", "NOAUTH"),
)

# In front of the code of a command in a pipeline.
_IN_FRONT: Final = re.compile(r".* of pipeline caused error: ", re.DOTALL)


def meaning(error: BaseException) -> Meaning | None:
    """Return what a server's reply means; None if it is not in the table."""
    text = str(error)
    for phrase, code in _PHRASES:
        if phrase in text:
            return MEANINGS[code]
    code = getattr(error, "status_code", None) or ""
    if code in MEANINGS:
        return MEANINGS[code]
    return MEANINGS.get(_IN_FRONT.sub("", text).partition(" ")[0])


def is_refused(error: RedisError) -> bool:
    """Whether a server did not execute a command because it is for another one, or for later."""
    found = meaning(error)
    # A command that was unblocked was executed in part.
    if found is None or found is MEANINGS["UNBLOCKED"]:
        return False
    return found.then in (Then.RECONNECT, Then.REDIRECT)
