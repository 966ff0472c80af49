"""A Redis client that routes each command to the server that owns its key.

It has the interface of a client for one server, so its users need not know the deployment. A
command that a server refused because it does not own the key was not executed: only such a command
is sent again. If the outcome is unknown, the caller decides, as with a single server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, TypeVar

from redis.asyncio import Redis  # noqa: TID251 - the base class
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.backend.server_errors import is_refused
from broker.backend.topology import Directory
from broker.backend.urls import Address
from broker.runtime.tasks import cancel_and_wait

RETRY_WINDOW_S: Final = 1.0  # seconds for which a refused command is tried again
RETRY_PAUSE_S: Final = 0.03
SLOW_REPLY_S: Final = 1.0  # seconds after which the owner of a key is looked up again

# Commands without a key. The key of a script follows the number of keys; all other commands have it
# as their first argument.
_KEYLESS: Final = frozenset(
    ("ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "ECHO", "INFO", "LATENCY", "MEMORY", "PING")
) | {"ROLE", "SCRIPT", "SLOWLOG", "TIME", "WAIT", "WAITAOF"}
_SCRIPTED: Final = frozenset(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"))

T = TypeVar("T")


class Routed(Redis):
    """A client for all servers of a deployment.

    Args:
        directory: returns the server that owns a key.
        make: creates the client for one server.
        is_blocking: commands may block, so a slow reply is no reason to look up the owner again.
    """

    def __init__(
        self,
        directory: Directory,
        make: Callable[[Address | None], Redis],
        *,
        is_blocking: bool = False,
    ) -> None:
        # Its own pool never connects.
        super().__init__()
        self._directory = directory
        self._make = make
        self._is_blocking = is_blocking
        self._clients: dict[Address | None, Redis] = {}
        self._disconnecting: set[asyncio.Task[None]] = set()
        directory.on_change.append(self._drop_former_owners)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command on the server that owns its key."""
        return await self.run_where(
            key_of(args),
            lambda node: node.execute_command(*args, **options),  # type: ignore[no-untyped-call]
        )

    def pipeline(
        self,
        transaction: bool = True,  # noqa: FBT001, FBT002 - as the library has it
        shard_hint: Any = None,  # noqa: ARG002
    ) -> Pipeline:
        """Return a pipeline that runs on the server that owns its first key."""
        return RoutedPipeline(self, is_transaction=transaction)

    async def run_where(self, key: Any, call: Callable[[Redis], Awaitable[T]]) -> T:
        """Run `call` with the client of the server that owns a key, and return its result.

        Args:
            key: None for any server.
            call: called again if, and only if, the server refused because it is not the owner.

        Raises:
            RedisConnectionError: no server accepted it in time; it was not executed.
            RedisError, OSError: raised by `call`.
        """
        deadline = time.monotonic() + RETRY_WINDOW_S
        redirects = 0
        while True:
            address = await self._directory.owner(key)
            client = self.server(address)
            try:
                answer = await self._timed(address, call(client))
            except ResponseError as error:
                if not is_refused(error):
                    raise
                is_known = self._directory.redirected(address, error)
                redirects += 1
                if time.monotonic() > deadline:
                    # Translated by what the reply means: see `as_ours`.
                    raise RedisConnectionError(
                        f"{address} still answers {type(error).__name__} {error}; is a slot being "
                        "migrated or a failover in progress?"
                    ) from error
                if redirects > 1 or not is_known:
                    await asyncio.sleep(RETRY_PAUSE_S)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                self._directory.invalidate(address)
                # If the connection was refused, nothing was sent, so a new owner may be tried.
                is_unsent = isinstance(error.__context__, ConnectionRefusedError)
                if not is_unsent or await self._directory.owner(key) == address:
                    raise
            else:
                self._directory.answered(address)
                return answer

    async def _timed(self, address: Address | None, answer: Awaitable[T]) -> T:
        if self._is_blocking:
            return await answer
        invalidation = asyncio.get_running_loop().call_later(
            SLOW_REPLY_S, self._directory.invalidate, address
        )
        try:
            return await answer
        finally:
            invalidation.cancel()

    def server(self, address: Address | None) -> Redis:
        """Return the client of one server."""
        if address not in self._clients:
            self._clients[address] = self._make(address)
        return self._clients[address]

    def _drop_former_owners(self, owners: Collection[Address]) -> None:
        """Disconnect from servers that own nothing any more; their pending commands fail."""
        for address, client in self._clients.items():
            if address not in owners:
                disconnecting = asyncio.create_task(_disconnect(client))
                self._disconnecting.add(disconnecting)
                disconnecting.add_done_callback(self._disconnecting.discard)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002, FBT001
        """Close every connection."""
        self._directory.on_change.remove(self._drop_former_owners)
        await cancel_and_wait(self._disconnecting)
        for client in self._clients.values():
            await client.aclose()


async def _disconnect(client: Redis) -> None:
    # Also the connections in use: no command should wait for a server that was replaced.
    await client.connection_pool.disconnect(inuse_connections=True)


class RoutedPipeline(Pipeline):
    """Collects commands and runs them on the server that owns their first key."""

    def __init__(self, routed: Routed, *, is_transaction: bool) -> None:
        super().__init__(
            routed.connection_pool, routed.response_callbacks, is_transaction, shard_hint=None
        )
        self._routed = routed

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
        """Run the collected commands."""
        commands = list(self.command_stack)
        keys = (key_of(args) for args, _ in commands)
        key = next((key for key in keys if key is not None), None)

        async def call(node: Redis) -> list[Any]:
            pipe = node.pipeline(transaction=self.is_transaction)
            pipe.command_stack = [(args, dict(options)) for args, options in commands]
            return await pipe.execute(raise_on_error=raise_on_error)

        self.command_stack = []
        return await self._routed.run_where(key, call)


def key_of(args: tuple[Any, ...]) -> Any:
    """Return the first key of a command; None if it has none."""
    name = str(args[0]).partition(" ")[0].upper()
    if name in _KEYLESS:
        return None
    if name in _SCRIPTED:
        return args[3] if int(args[2]) else None
    return args[1] if len(args) > 1 else None


async def load_script(client: Redis, key: str, text: str) -> None:
    """Load a script into the server that owns a key."""
    if isinstance(client, Routed):
        await client.run_where(key, lambda node: node.script_load(text))
    else:
        await client.script_load(text)
