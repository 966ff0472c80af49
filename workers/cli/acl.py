"""`acl`: the least rights that a process needs on the server, as a rule to give it."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import click

from broker.backend.acl import ROLES, rules
from broker.backend.connections import Connections, attached, check_server
from broker.config import checked_name
from broker.errors import ConfigError
from broker.runtime import eventloop
from workers.cli.options import checked_options, place_options, setting_options
from workers.cli.secrets import first_line

_VERSION = re.compile(r"(\d+)\.(\d+)")


@click.command(
    epilog="Roles: " + ". ".join(f"{name}: {role.does}" for name, role in ROLES.items()) + "."
)
@click.argument(
    "roles", nargs=-1, required=True, type=click.Choice(list(ROLES)), metavar="ROLE [ROLE ...]"
)
@place_options
@setting_options("shards")
@click.option(
    "--node", metavar="NAME", help="The producer may write this node's pending list only."
)
@click.option("--user", metavar="NAME", help="Of the user.  [default: NAMESPACE-ROLE[-NODE]]")
@click.option(
    "--user-password-file",
    metavar="FILE",
    help="File whose first line is the user's new password; printed as its SHA-256.",
)
@click.option("--cluster", is_flag=True, help="For a Cluster; found out by itself with --url.")
@click.option("--aclfile", is_flag=True, help="Print a line of an aclfile, not a command.")
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
    """Print the least rights that a process of these roles needs, as an ACL rule.

    \b
      statebroker acl producer --namespace fleet --node bus42
      statebroker acl flusher scheduler --namespace fleet    # for `statebroker serve`
      statebroker acl subscriber --namespace fleet --user-password-file FILE | redis-cli

    With --url (or STATEBROKER_URL) the rule is for the server there: its version is asked, and
    whether it is a Cluster. Nothing is changed on it. Without, the rule fits the oldest server
    that works, Redis 7.0. On a Cluster, or with replicas, give it to every server: an ACL is not
    replicated; an aclfile is best kept with the configuration.

    A rule allows the commands of the role, on the keys and the channel of this namespace. A
    server compares keys, not fields: who may write at all could spoil the namespace's counters
    by hand, but with --node not another node's list, and nobody but a flusher or scheduler can
    publish.
    """  # noqa: D301 - click reads the escapes
    _, settings, given = checked_options(namespace, texts)
    names = list(dict.fromkeys(roles))
    if node is not None:
        checked_name("node", node)
        if [name for name in names if "pending" in ROLES[name].keys] != ["producer"]:
            fault = (
                "--node is for a producer: a flusher has to read the lists of all nodes; give the "
                "producer a user of its own, or leave --node out"
            )
            raise ConfigError([fault])
    user = checked_name("user", user or "-".join([namespace, *names, *([node] if node else [])]))
    found = {} if url.startswith("embedded:") else eventloop.run(_asked(url))
    version = _VERSION.match(str(found.get("redis_version", "7.0")))
    words = rules(
        names,
        namespace,
        node=node,
        shards=settings["shards"] if "shards" in given else None,
        version=(int(version[1]), int(version[2])) if version else (7, 0),
        is_cluster=cluster or "cluster" in (found.get("redis_mode"), found.get("server_mode")),
    )
    start = ["user", user] if aclfile else ["ACL", "SETUSER", user, "reset"]
    if user_password_file is not None:
        password = first_line(user_password_file)
        words.insert(0, "#" + hashlib.sha256(password.encode()).hexdigest())
    click.echo(" ".join([*start, "on", *words]))
    if user_password_file is None:
        click.echo(
            "statebroker: it has no password yet, so nobody can log in with it; give "
            "--user-password-file, or ACL SETUSER with >PASSWORD",
            err=True,
        )


async def _asked(url: str) -> dict[str, Any]:
    """Return what the server says of itself; nothing if this user may not ask."""
    connections = Connections(attached(url)[0])
    try:
        return await check_server(connections.commands(), connections.name)
    finally:
        await connections.close()
