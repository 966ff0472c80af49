"""Redis users with the rights of each role, created with the server owner's rights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import redis

from broker.backend.acl import ROLES, rules

PASSWORD = "of-a-role"


def with_login(url: str, user: str, password: str = PASSWORD) -> str:
    """Return a URL with another user and password; of any scheme, with any number of hosts."""
    return re.sub(r"^([a-z+]+://)(?:[^@/]*@)?", rf"\g<1>{user}:{password}@", url)


class RoleUsers:
    """A user for each role in one namespace, for as long as the `with` lasts.

    Args:
        servers: URLs of every server of the deployment with the owner's rights: an ACL is not
            replicated.
        namespace: of the rules.
        node: whose lists the producer is limited to; None: any.
        shards: see `broker.backend.acl.rules`.
        is_cluster: whether the servers are a Cluster.
        is_saved: whether the servers keep their users in a file, beyond a restart.
    """

    def __init__(
        self,
        servers: Sequence[str],
        namespace: str,
        *,
        node: str | None = None,
        shards: int | None = None,
        is_cluster: bool = False,
        is_saved: bool = False,
    ) -> None:
        self.namespace = namespace
        self._is_saved = is_saved
        self._admins = [redis.Redis.from_url(url, protocol=2) for url in servers]
        for admin in self._admins:
            reported: Any = admin.info("server")
            major, minor, *_ = map(int, reported["redis_version"].split("."))
            for role in ROLES:
                words = rules(
                    [role],
                    namespace,
                    node=node if role == "producer" else None,
                    shards=shards,
                    version=(major, minor),
                    is_cluster=is_cluster,
                )
                admin.execute_command(
                    "ACL", "SETUSER", self.user(role), "reset", "on", f">{PASSWORD}", *words
                )
            if is_saved:
                admin.execute_command("ACL", "SAVE")

    def user(self, role: str) -> str:
        """Return the user's name."""
        return f"{self.namespace}-{role}"

    def url(self, role: str, url: str) -> str:
        """Return this URL with the login of a role."""
        return with_login(url, self.user(role))

    def refused(self) -> set[tuple[str, str]]:
        """Return (role, object) of each command that the server refused to these users so far."""
        users = {self.user(role): role for role in ROLES}
        entries: list[dict[str, Any]] = [
            entry for admin in self._admins for entry in admin.acl_log(1000)
        ]
        return {
            (users[entry["username"]], entry["object"])
            for entry in entries
            if entry["username"] in users
        }

    def __enter__(self) -> Self:
        """Return the users, which the constructor created."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _tb: TracebackType | None,
    ) -> None:
        """Remove them."""
        for admin in self._admins:
            admin.execute_command("ACL", "DELUSER", *map(self.user, ROLES))
            if self._is_saved:
                admin.execute_command("ACL", "SAVE")
            admin.close()
