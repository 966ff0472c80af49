"""redis-py's client, without the work that it does for each command and nobody here needs.

The base classes look after retries, metrics and events of the pool, which are switched off here.
That takes 30 us for a command, as long as the command itself.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis  # noqa: TID251 - the base class


class Client(Redis):
    """A client for one server; it sends each command once."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command. Raises as the base class, which also closes its connection first."""
        pool: Any = self.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_command(*args)
            return await self.parse_response(connection, args[0], **options)
        finally:
            await pool.release(connection)


class Pool(BlockingConnectionPool):
    """Connections to one server; without a free one a call waits."""

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection that is ready. Raises as the base class."""
        if not self._available_connections:
            return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        connection: Any = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            if not await connection.is_ready():
                await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        """Take a connection back."""
        if connection.should_reconnect():
            await super().release(connection)
            return
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)
        async with self._condition:
            self._condition.notify()
