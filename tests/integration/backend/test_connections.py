"""Connections of a process: every released one is closed, whatever fails meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoReplyError

from broker.backend.connections import Connections
from broker.testing.server import Server
from tests.conftest import OwnServer


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


def test_a_cancellation_as_a_command_is_sent_is_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is cancelled in the step after its command was sent does not go on."""

    async def ping() -> None:
        connections = Connections(server.url)
        client = connections.commands(connections=1)
        await client.ping()
        connection = client.connection_pool._available_connections[0]
        send = connection._send_packed_command
        task = asyncio.ensure_future(client.ping())

        async def send_and_cancel(command: object) -> None:
            await send(command)
            asyncio.get_running_loop().call_soon(task.cancel)

        monkeypatch.setattr(connection, "_send_packed_command", send_and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connection.is_connected, "the reply of a cancelled command could be read later"
        monkeypatch.undo()
        assert await client.ping()
        await connections.close()

    asyncio.run(ping())


def test_a_server_that_takes_nothing_more(
    own_server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that does not fit into the socket of a server that hangs ends in time."""
    monkeypatch.setattr("broker.backend.connections.REPLY_TIMEOUT_S", 0.2)
    server = own_server()

    async def send() -> None:
        connections = Connections(server.url)
        client = connections.commands(connections=1)
        await client.ping()
        server.pause()
        try:
            with pytest.raises(NoReplyError, match="Timeout writing"):
                await client.set("key", bytes(16 << 20))
        finally:
            server.resume()
        assert await client.ping()
        await connections.close()

    asyncio.run(send())


def test_the_reply_to_another_command_is_never_read(server: Server) -> None:
    """A connection on which something is unread is not used again."""

    async def ping() -> None:
        connections = Connections(server.url)
        client = connections.commands(connections=1)
        connection = await client.connection_pool.get_connection()
        await connection.send_command("ECHO", "a late reply")
        await connection._reader._wait_for_data("test")
        await client.connection_pool.release(connection)
        assert await client.ping() is True
        await connections.close()

    asyncio.run(ping())


def test_a_command_waits_for_a_free_connection(server: Server) -> None:
    """Any number of callers share the connections there may be."""

    async def ping() -> None:
        connections = Connections(server.url)
        client = connections.commands(connections=2)
        async with asyncio.timeout(10):
            assert all(await asyncio.gather(*(client.ping() for _ in range(20))))
        assert len(client.connection_pool._available_connections) <= 2
        await connections.close()

    asyncio.run(ping())
