"""The Lua files, and how a command runs one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from redis.exceptions import NoScriptError

from broker.backend.connections import translated
from broker.backend.routing import load_script
from broker.backend.topology import Client

NAMES: Final = (
    "join",
    "open",
    "append",
    "confirm",
    "leave",
    "drain",
    "heartbeat",
    "lease_take",
    "lease_release",
    "dict_add",
    "snapshot_begin",
    "snapshot_page",
    "snapshot_commit",
    "state_ranges",
)

# Called with EVALSHA_RO, which needs only the right to read their keys.
READERS: Final = frozenset({"state_ranges"})


def source(name: str) -> str:
    """Return the text of one command's Lua file."""
    return files("broker.backend").joinpath("lua", f"{name}.lua").read_text("utf-8")


def sha_of(text: str) -> str:
    """Return the name that Redis gives a script."""
    return hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - how Redis names scripts


class Scripts:
    """The Lua commands on one connection; the base of the typed methods.

    Args:
        client: made by `broker.backend.connections`.
        publish: "PUBLISH", or "SPUBLISH" on a Cluster.
    """

    def __init__(self, client: Client, publish: str = "PUBLISH") -> None:
        self.client = client
        self.publish = publish
        self.sources = {name: source(name) for name in NAMES}
        self.hashes = {name: sha_of(text) for name, text in self.sources.items()}

    async def run(self, name: str, keys: Sequence[str], *args: str | bytes | float) -> Any:
        """Run a Lua file as one atomic step; return its reply.

        Args:
            name: one of `NAMES`.
            keys: its KEYS.
            args: its ARGV.

        Raises:
            BackendError: Redis failed.
        """
        return await self._run(name, self.sources[name], self.hashes[name], keys, *args)

    async def run_for_admin(
        self, name: str, keys: Sequence[str], *args: str | bytes | float
    ) -> Any:
        """Run a Lua file that is no part of the protocol, read when it is needed; as `run`."""
        text = files("broker.backend").joinpath(f"{name}.lua").read_text("utf-8")
        return await self._run(name, text, sha_of(text), keys, *args)

    async def _run(
        self, name: str, text: str, sha: str, keys: Sequence[str], *args: str | bytes | float
    ) -> Any:
        async with translated(name):
            call = self.client.evalsha_ro if name in READERS else self.client.evalsha
            try:
                return await call(sha, len(keys), *keys, *args)
            except NoScriptError:
                # First use on this server, or SCRIPT FLUSH, or a restart.
                await load_script(self.client, keys[0], text)
                return await call(sha, len(keys), *keys, *args)
