"""What the tests of the Lua commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.testing.server import Server
from tests.integration.lua_shard import Shard


@pytest.fixture
def shard(server: Server, namespace: str) -> Iterator[Shard]:
    """Give a shard that does not exist yet."""
    made = Shard(server, namespace)
    yield made
    made.close()
