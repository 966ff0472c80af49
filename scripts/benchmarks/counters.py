"""What the server itself counts: bytes of all connections, batches, commands."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import redis

from broker.protocol.names import ShardKeys
from scripts.benchmarks.contenders.statebroker import NAMESPACE


class Counters:
    """A connection of one's own to ask a server; what it costs is in what it counts.

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
        """Return how many bytes came in and went out over all connections so far."""
        info: Any = self._client.info("stats")
        return info["total_net_input_bytes"], info["total_net_output_bytes"]

    def calls(self, command: str) -> int:
        """Return how often a command was carried out so far, by scripts too."""
        info: Any = self._client.info("commandstats")
        return int(info.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def meta(self, field: str) -> int:
        """Return a counter of shard 0 of ours, such as `published` or `bytes`; absent: 0."""
        found: Any = self._client.hget(ShardKeys.of(NAMESPACE, 0, 1).meta, field)
        return int(found or 0)
