"""Connections of a process: every released one is closed, whatever fails meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import RedisError

from broker.backend.connections import Connections
from broker.testing.server import Server


@pytest.mark.parametrize("error", [RedisError, OSError, TimeoutError])
def test_a_client_is_closed_though_its_subscription_would_not(
    server: Server, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has its own connections, which no other part uses."""

    async def fails() -> None:
        raise error("broken")

    async def let_go() -> None:
        connections = Connections(server.url)
        client = connections.commands()
        pubsub = client.pubsub()
        await client.ping()
        idle = await client.connection_pool.get_connection()
        await client.connection_pool.release(idle)
        assert idle.is_connected
        with monkeypatch.context() as broken:
            broken.setattr(pubsub, "aclose", fails)
            await connections.discard(client, pubsub)
        assert not idle.is_connected
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        await connections.close()

    asyncio.run(let_go())
