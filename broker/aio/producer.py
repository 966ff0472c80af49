"""The producer for asyncio code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Self, Unpack
from weakref import finalize

from broker.core.tables.kinds import table_key
from broker.engine.producer import (
    CLOSE_TIMEOUT,
    HURRIED_CLOSE_TIMEOUT,
    ProducerEngine,
    ProducerSettings,
    Retry,
    chosen_replicas,
)
from broker.model import Token
from broker.protocol.messages import Value
from broker.protocol.operations import OP_DELETE, OP_INCREMENT
from broker.runtime.forgotten import close_when_forgotten
from broker.stats.producer import ProducerStats

if TYPE_CHECKING:
    from broker.aio.table_writer import TableWriter


class Producer:
    """A writer of one namespace: its calls buffer and return, a task of its own appends to Redis.

    Every accepted delta takes effect exactly once and in the order of this producer's calls,
    with any retries. Deltas of one `set_many` that belong to one shard become visible at once.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`. None: STATEBROKER_URL, else
            `embedded://`.
        namespace: the state's name; letters, digits, `_`, `.`, `-`. None: STATEBROKER_NAMESPACE,
            else `default`.
        node: this writer's name; one process at a time can hold it, a newer one fences the older.
            None generates a unique name.
        shards: shard count to make a new namespace with; for an existing one it must agree.
        local_delta_max_age: seconds a delta of this node may wait; None: the workers' setting.
        local_delta_max_count: pending deltas of this node that are published at once; likewise.
        linger: most seconds for which deltas gather before they are sent; never more than a tenth
            of the max age.
        chunk_bytes: size at which a chunk is sent.
        compress: level of zstd at which chunks are compressed that become smaller, 1 to 19; 0: none
            is. Only in a namespace with the word `compress`.
        buffer_bytes: most bytes not accepted yet.
        when_full: "block" until there is room or `full_timeout` is over, "raise" at once, or
            "conflate": drop deltas that a newer set of the same key overwrites, then block.
        full_timeout: seconds for which a full buffer blocks.
        keep_seconds: how long accepted chunks are kept, to be sent again if Redis loses them.
        keep_bytes: most bytes of accepted chunks that are kept.
        timestamps: send the wall clock of each delta, not only of each chunk.
        conflate: of the sets and deletes of a key within a chunk send only the newest, and no
            increment before it. Replicas end with the same content; `changes()` yields fewer.
        pending_bytes: most bytes pending in one shard in Redis, before it refuses chunks as BUSY.
        credentials: called for each new connection to a server; returns the password, or (user,
            password), at once or as an awaitable. It may block. A `CredentialProvider` of
            redis-py is asked likewise. None: those of the URL.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        self._engine = ProducerEngine(url, namespace, settings)
        self._finalizer: finalize[..., object] | None = None

    @property
    def node(self) -> str:
        """This writer's name."""
        return self._engine.node

    @property
    def namespace(self) -> str:
        """The state it writes to."""
        return self._engine.namespace

    # -- writing ----------------------------------------------------------------------------------

    async def set(self, key: str, value: Value) -> None:
        """Set a key to a value.

        Raises:
            EncodeError: the key or value cannot be sent; nothing was buffered.
            BufferFullError: no room (in time).
            FencedError, ClosedError, ForkedError: this producer cannot write any more.
        """
        retry = self._engine.set(key, value)
        if retry is not None:
            await self._engine.wait_for_room(retry)

    async def delete(self, key: str) -> None:
        """Remove a key; removing an absent key is no error. Raises as `set`."""
        await self._end(self._engine.put(OP_DELETE, key, None))

    async def increment(self, key: str, amount: float = 1) -> None:
        """Add a number to a key; an absent key counts as 0. Raises as `set`.

        Integers stay integers; with a float on either side the sum is a float. Where the key holds
        something else, or an integer would leave the 64-bit range, every replica refuses the delta
        and counts it.
        """
        await self._end(self._engine.put(OP_INCREMENT, key, amount))

    async def _end(self, retry: Retry | None) -> None:
        if retry is not None:
            await self._engine.wait_for_room(retry)

    async def set_many(self, mapping: Mapping[str, Value]) -> None:
        """Set many keys; those of one shard become visible at once. Raises as `set`."""
        for retry in self._engine.put_many(mapping):
            await self._engine.wait_for_room(retry)

    def table(
        self, name: str, *, keys: type[str | int] = str, values: type[float | int] = float
    ) -> TableWriter:
        """Return a writer of a table: many keys to numbers, in columns.

        Args:
            name: letters, digits, `_`, `.`, `-`.
            keys: `str`, or `int` for numbers of your own from 0 to 2^64 - 1.
            values: `float` or `int`, both of 64 bits. Tables of one name and different types of
                keys or values are different tables.

        Raises:
            NumpyMissingError: it is an extra.
            ConfigError: the name or a type is not valid.
        """
        key = table_key(name, keys, values)
        from broker.aio.table_writer import TableWriter  # noqa: PLC0415 - needs numpy

        return TableWriter(self, self._engine, key)

    # -- waiting ----------------------------------------------------------------------------------

    async def flush(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - same as sync
        *,
        redis_replicas: int = 0,
        fsynced: bool = False,
        replicas: int | None = None,
    ) -> Token:
        """Wait until Redis accepted everything written so far, without lingering.

        Accepted is in Redis' memory. With `redis_replicas` it is in the memory of so many replicas
        of the server too, in each shard: it survives a loss of the server if one of these becomes
        the primary.
        With `fsynced` it is in the append-only file on the server's disk, and on the disks of these
        replicas: it survives a crash of the machine, with any `appendfsync` except `no`.

        Args:
            timeout: seconds; None waits without a limit.
            redis_replicas: how many replicas of the server have to have it; 0: none.
            fsynced: whether it has to be on disk; needs Redis 7.2 or Valkey, and `appendonly yes`.
            replicas: the old name of `redis_replicas`; it goes with version 1.0.

        Returns:
            A token; `replica.wait_for(token)` returns once a replica shows all of it.

        Raises:
            FlushTimeoutError: not all accepted in time; the rest stays buffered and is still sent.
            NotReplicatedError: all is accepted, but too few replicas or disks have it in time.
            UnsupportedServerError: this server cannot confirm `fsynced`; all is accepted.
            FencedError: another process took the node name.
            DataLostError: Redis lost accepted deltas that were no longer kept; raised once.
        """
        wanted = chosen_replicas(redis_replicas, replicas)
        return await self._engine.flush(timeout, wanted, fsynced=fsynced)

    def stats(self) -> ProducerStats:
        """Return counters since it was opened; docs/statistics.md explains each.

        `buffered = accepted + conflated + pending` at any moment.
        """
        return self._engine.stats()

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect, join the namespace and take the node name.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
        """
        await self._engine.open()
        if self._finalizer is None:
            close = partial(self._engine.close_logged, CLOSE_TIMEOUT)
            self._finalizer = close_when_forgotten(self, f"Producer({self.node})", close)
        return self

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> None:  # noqa: ASYNC109 - same as sync
        """Send what is buffered, then disconnect. Calling it again does nothing.

        In a signal handler that interrupted a write of this producer it returns at once, and the
        rest happens in the background; the end of the program waits for that.

        Args:
            timeout: seconds after which it gives up.

        Raises:
            FlushTimeoutError: not everything was accepted in time; says how many deltas were not.
            FencedError, DataLostError: as `flush`.
        """
        self._detach()
        await self._engine.close(timeout)

    def _detach(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Close it when Redis has accepted all; after an error in the block wait only briefly.

        An error of closing never hides one of the block; it is logged.
        """
        if kind is None:
            await self.close()
        else:
            self._detach()
            await self._engine.close_logged(HURRIED_CLOSE_TIMEOUT)
