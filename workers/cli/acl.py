"""`acl`: print the least privileges that a process needs on the server, as an ACL rule."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import click

from broker.backend.acl import ROLES, rules
from broker.backend.connections import Connections, attached, check_server
from broker.backend.credentials import first_line
from broker.config import checked_name
from broker.errors import ConfigError
from broker.runtime import eventloop
from workers.cli.options import checked_options, connection_options, setting_options
from workers.cli.terminal import say, tell

_VERSION = re.compile(r"(\d+)\.(\d+)")


@click.command(
    epilog="Roles: " + ". ".join(f"{name}: {role.does}" for name, role in ROLES.items()) + "."
)
@click.argument(
    "roles", nargs=-1, required=True, type=click.Choice(list(ROLES)), metavar="ROLE [ROLE ...]"
)
@connection_options
@setting_options("shards")
@click.option("--node", metavar="NAME", help="Restrict a producer to the stage of this node.")
@click.option("--user", metavar="NAME", help="Name of the user.  [default: NAMESPACE-ROLE[-NODE]]")
@click.option(
    "--user-password-file",
    metavar="FILE",
    help="Read the new password from the first line of FILE; only its SHA-256 is printed.",
)
@click.option(
    "--cluster", is_flag=True, help="Print the rule for a Cluster; detected if --url is given."
)
@click.option("--aclfile", is_flag=True, help="Print a line for an aclfile instead of a command.")
def acl(  # noqa: PLR0917 - how click calls
    roles: tuple[str, ...],
    url: str,
    namespace: str,
    node: str | None,
    user: str | None,
    user_password_file: str | None,
    cluster: bool,  # noqa: FBT001 - how click calls
    aclfile: bool,  # noqa: FBT001
    **texts: str | None,
) -> None:
    """Print the ACL rule for a process with these roles.

    It grants the least privileges that the roles need.

    \b
    Examples:
      statebroker acl producer --namespace fleet --node bus42
      statebroker acl flusher scheduler --namespace fleet    # for `statebroker serve`
      statebroker acl subscriber --namespace fleet --user-password-file FILE | redis-cli

    With --url (or STATEBROKER_URL) the rule fits the version, deployment and database of that
    server; nothing is changed on it. Without, it fits the oldest supported server, Redis 7.0, and
    the channels of any database. (Rules for keys hold in all databases anyway.) On a
    Cluster, or with replicas, apply it to every server, since ACLs are not replicated.

    The rule allows the commands of the roles on the keys and channels of this namespace. An ACL
    restricts keys, not fields: a writer could damage the counters of the namespace, but with
    --node it cannot open the name of another node, and only a flusher or a scheduler can publish.
    """  # noqa: D301 - click reads the escapes
    _, settings, given = checked_options(namespace, texts)
    names = list(dict.fromkeys(roles))
    if node is not None:
        checked_name("node", node)
        if names != ["producer"]:
            fault = (
                "--node is only for a producer, since the other roles serve all nodes; give the "
                "producer a user of its own, or leave --node out"
            )
            raise ConfigError([fault])
    user = checked_name("user", user or "-".join([namespace, *names, *([node] if node else [])]))
    found: dict[str, Any] = {}
    database: int | None = None
    if not url.startswith("embedded:"):
        found, database = eventloop.run(_asked(url))
    version = _VERSION.match(str(found.get("redis_version", "7.0")))
    words = rules(
        names,
        namespace,
        node=node,
        shards=settings["shards"] if "shards" in given else None,
        database=database,
        version=(int(version[1]), int(version[2])) if version else (7, 0),
        is_cluster=cluster or "cluster" in (found.get("redis_mode"), found.get("server_mode")),
    )
    start = ["user", user] if aclfile else ["ACL", "SETUSER", user, "reset"]
    if user_password_file is not None:
        password = first_line(user_password_file)
        words.insert(0, "#" + hashlib.sha256(password.encode()).hexdigest())
    say(" ".join([*start, "on", *words]))
    if user_password_file is None:
        tell(
            "the user has no password yet, so it cannot log in; use --user-password-file, or ACL "
            "SETUSER with >PASSWORD"
        )


async def _asked(url: str) -> tuple[dict[str, Any], int]:
    """Return (the INFO of the server, empty if this user may not read it; the database)."""
    connections = Connections(attached(url)[0])
    try:
        info = await check_server(connections.commands(), connections.name)
        return info, connections.database
    finally:
        await connections.close()
