"""A Redis client whose commands find the server that answers for their key.

It looks like the client of one server, so that what uses it need not know what it talks to. What
a server refused because it is not its turn was not carried out: only that is sent again. Where the
outcome is unknown the caller decides, as with one server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, TypeVar

from redis.asyncio import Redis  # noqa: TID251 - to look like one
from redis.asyncio.client import Pipeline
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker.backend.topology import Directory
from broker.backend.urls import Address
from broker.runtime.tasks import cancel_and_wait

PATIENCE: Final = 1.0  # seconds for which a refused command is tried again
PAUSE: Final = 0.03
SLOW: Final = 1.0  # seconds after which a server that has not answered is taken for gone

# It was refused, so it was not carried out.
REFUSED: Final = (AskError, TryAgainError, ClusterDownError, ReadOnlyError)

# Commands without a key. Of scripts it comes after the number of keys, else it is the first
# argument.
_KEYLESS: Final = frozenset(
    ("ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "ECHO", "INFO", "LATENCY", "MEMORY", "PING")
) | {"ROLE", "SCRIPT", "SLOWLOG", "TIME", "WAIT", "WAITAOF"}
_SCRIPTED: Final = frozenset(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO"))

T = TypeVar("T")


class Routed(Redis):
    """A client for everything that a directory knows of.

    Args:
        directory: says who answers.
        make: makes the client of one server.
        is_blocking: commands may wait for long; silence does not count against a server.
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
        self._leaving: set[asyncio.Task[None]] = set()
        directory.on_change.append(self._keep)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command where its key is."""
        return await self.at(
            key_of(args),
            lambda node: node.execute_command(*args, **options),  # type: ignore[no-untyped-call]
        )

    def pipeline(
        self,
        transaction: bool = True,  # noqa: FBT001, FBT002 - as the library has it
        shard_hint: Any = None,  # noqa: ARG002
    ) -> Pipeline:
        """Return a pipeline that runs where the first of its keys is."""
        return RoutedPipeline(self, is_transaction=transaction)

    async def at(self, key: Any, ask: Callable[[Redis], Awaitable[T]]) -> T:
        """Return what `ask` returns for the client of the server that answers for a key.

        Args:
            key: None for any server.
            ask: called again if, and only if, the server refused because it is not its turn.

        Raises:
            RedisConnectionError: nobody's turn within the patience; nothing was done.
            RedisError, OSError: as `ask`.
        """
        ends = time.monotonic() + PATIENCE
        redirects = 0
        while True:
            address = await self._directory.owner(key)
            client = self.server(address)
            try:
                answer = await self._watched(address, ask(client))
            except REFUSED as error:
                is_known = self._directory.redirected(address, error)
                redirects += 1
                if time.monotonic() > ends:
                    raise RedisConnectionError(
                        f"{address} still says {type(error).__name__} {error}; is a slot or the "
                        "primary on its way to another server?"
                    ) from error
                if redirects > 1 or not is_known:
                    await asyncio.sleep(PAUSE)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                self._directory.invalidate(address)
                # Where there was no connection nothing was sent, and another one may be known.
                is_unsent = isinstance(error.__context__, ConnectionRefusedError)
                if not is_unsent or await self._directory.owner(key) == address:
                    raise
            else:
                self._directory.answered(address)
                return answer

    async def _watched(self, address: Address | None, answer: Awaitable[T]) -> T:
        if self._is_blocking:
            return await answer
        invalidation = asyncio.get_running_loop().call_later(
            SLOW, self._directory.invalidate, address
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

    def _keep(self, owners: Collection[Address]) -> None:
        """Let go of servers that own nothing any more; who waits for their answer gets an error."""
        for address, client in self._clients.items():
            if address not in owners:
                leaving = asyncio.create_task(_leave(client))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002, FBT001
        """Close every connection."""
        self._directory.on_change.remove(self._keep)
        await cancel_and_wait(self._leaving)
        for client in self._clients.values():
            await client.aclose()


async def _leave(client: Redis) -> None:
    # Also the connections in use: nobody waits for a server that was replaced.
    await client.connection_pool.disconnect(inuse_connections=True)


class RoutedPipeline(Pipeline):
    """Gathers commands, and runs them in one step where the first of their keys is."""

    def __init__(self, routed: Routed, *, is_transaction: bool) -> None:
        super().__init__(
            routed.connection_pool, routed.response_callbacks, is_transaction, shard_hint=None
        )
        self._routed = routed

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002
        """Run what was gathered."""
        commands = list(self.command_stack)
        keys = (key_of(args) for args, _ in commands)
        key = next((key for key in keys if key is not None), None)

        async def ask(node: Redis) -> list[Any]:
            pipe = node.pipeline(transaction=self.is_transaction)
            pipe.command_stack = [(args, dict(options)) for args, options in commands]
            return await pipe.execute(raise_on_error=raise_on_error)

        self.command_stack = []
        return await self._routed.at(key, ask)


def key_of(args: tuple[Any, ...]) -> Any:
    """Return the first key of a command, None if it has none."""
    name = str(args[0]).partition(" ")[0].upper()
    if name in _KEYLESS:
        return None
    if name in _SCRIPTED:
        return args[3] if int(args[2]) else None
    return args[1] if len(args) > 1 else None


async def load_script(client: Redis, key: str, text: str) -> None:
    """Have the server that answers for a key know a script."""
    if isinstance(client, Routed):
        await client.at(key, lambda node: node.script_load(text))
    else:
        await client.script_load(text)
