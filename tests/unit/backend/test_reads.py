"""Reads of one moment without a transaction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.backend.reads import TRIES, at_one_moment
from broker.errors import BackendError
from broker.protocol.names import ShardKeys

KEYS = ShardKeys.of("fleet", 0, 1)


class Server:
    """Answers pipelines; between the first and the last read others write `writes` times."""

    def __init__(self, writes: int) -> None:
        self.writes = writes
        self.pipelines = 0

    def pipeline(self, *, transaction: bool) -> Server:
        """Return itself."""
        assert not transaction
        self.pipelines += 1
        self.queued: list[str] = []
        return self

    def hmget(self, key: str, _fields: Any) -> None:
        """Queue a read of the marks."""
        self.queued.append(key)

    def get(self, key: str) -> None:
        """Queue another read."""
        self.queued.append(key)

    async def execute(self) -> list[Any]:
        """Return the replies."""
        assert self.queued == [KEYS.meta, KEYS.lease, KEYS.meta]
        is_disturbed = self.pipelines <= self.writes
        return [[b"1"], b"read", [b"2" if is_disturbed else b"1"]]


def test_reads_that_a_write_came_between_are_repeated() -> None:
    """The replies are those of an undisturbed pipeline."""
    server = Server(writes=2)
    client: Any = server
    found = asyncio.run(at_one_moment(client, KEYS, lambda pipe: pipe.get(KEYS.lease)))
    assert (found, server.pipelines) == ([b"read"], 3)


def test_reads_that_are_always_disturbed_are_an_error() -> None:
    """After some tries, and one that is worth trying again."""
    client: Any = Server(writes=TRIES)
    with pytest.raises(BackendError, match="changed between reads") as caught:
        asyncio.run(at_one_moment(client, KEYS, lambda pipe: pipe.get(KEYS.lease)))
    assert caught.value.is_temporary
