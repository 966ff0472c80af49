"""The Lua commands of statebroker: one file, one command, one typed method.

A module holds the commands of one role. Each method is documented in terms of Python; the header
of its Lua file in terms of Redis.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.backend.commands.flush import FlushCommands
from broker.backend.commands.producer import ProducerCommands, fenced_error
from broker.backend.commands.reader import ReaderCommands
from broker.backend.commands.scripts import NAMES, READERS, source
from broker.backend.commands.snapshot import SnapshotCommands, lease_lost_error
from broker.backend.stored import MadeAs, made_as
from broker.protocol.features import text_of
from broker.protocol.names import config_key

__all__ = ["NAMES", "READERS", "Commands", "fenced_error", "lease_lost_error", "source"]


class Commands(ProducerCommands, FlushCommands, SnapshotCommands, ReaderCommands):
    """The commands of all roles on one connection; every method is one atomic step on the server.

    Args:
        client: made by `broker.backend.connections`.
        publish: "PUBLISH", or "SPUBLISH" on a Cluster.
    """

    async def join(
        self, namespace: str, protocol: int, shards: int, features: Sequence[str]
    ) -> MadeAs:
        """Create the namespace if it is new; return how it was made.

        Raises:
            DamagedError: they cannot be read.
        """
        key = config_key(namespace)
        found = await self.run("join", [key], protocol, shards, text_of(features))
        # Never None: a new namespace has what was given.
        made = made_as(key, found[0], found[1], found[3])
        return made or MadeAs(protocol, shards, tuple(features))
