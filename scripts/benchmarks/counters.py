"""Counters of a server: bytes of all connections, batches, commands."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import redis

from broker.protocol.names import ShardKeys
from scripts.benchmarks.contenders.statebroker import NAMESPACE


class Counters:
    """Reads the counters of a server, over a connection of its own that is counted, too.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=2)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnect."""
        self._client.close()

    def bytes(self) -> tuple[int, int]:
        """Return the bytes received and sent over all connections so far."""
        info: Any = self._client.info("stats")
        return info["total_net_input_bytes"], info["total_net_output_bytes"]

    def calls(self, command: str) -> int:
        """Return how often a command was executed so far, including by scripts."""
        info: Any = self._client.info("commandstats")
        return int(info.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def meta(self, field: str) -> int:
        """Return a counter of our shard 0, such as `published` or `bytes`; 0 if absent."""
        found: Any = self._client.hget(ShardKeys.of(NAMESPACE, 0, 1).meta, field)
        return int(found or 0)
