"""The producer for ordinary, threaded code."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from broker.config import checked_timeout
from broker.core.fast_path import FastSet
from broker.core.tables.kinds import table_key
from broker.engine.producer import (
    CLOSE_TIMEOUT,
    HURRIED_CLOSE_TIMEOUT,
    ProducerEngine,
    ProducerSettings,
    Retry,
    chosen_replicas,
)
from broker.errors import BrokerError, FlushTimeoutError
from broker.model import Token
from broker.protocol.messages import Value
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.runtime.closing import Closing
from broker.stats.producer import ProducerStats
from broker.sync.loop_thread import LoopThread

if TYPE_CHECKING:
    from broker.sync.table_writer import TableWriter


T = TypeVar("T")


class Producer(FastSet[None]):
    """A writer of one namespace: its calls buffer and return, a thread of its own appends to Redis.

    May be used from many threads. Connects when made; takes the arguments of `broker.aio.Producer`
    and gives the same promises. Use it with `with`, or call `close()`.

    Raises:
        ConfigError: every fault of the arguments at once.
        ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        **settings: Unpack[ProducerSettings],
    ) -> None:
        super().__init__()
        self._engine = ProducerEngine(url, namespace, settings)
        self._thread = LoopThread(f"Producer({self._engine.node})")
        try:
            self._thread.call(self._engine.open(self._thread.loop.call_soon_threadsafe))
        except BaseException:
            self._thread.stop()
            raise
        self._open_fast_path(self._engine.plain_keys, self._engine.wake)
        # A program that ends without close() still gets its last deltas sent.
        self._closing = Closing(
            self, self._thread, partial(self._engine.close_logged, CLOSE_TIMEOUT)
        )

    @property
    def node(self) -> str:
        """This writer's name."""
        return self._engine.node

    @property
    def namespace(self) -> str:
        """The state it writes to."""
        return self._engine.namespace

    # -- writing; `set` is FastSet's --------------------------------------------------------------

    def _set_exactly(self, key: str, value: Value) -> None:
        retry = self._engine.put(OP_SET, key, value)
        if retry is not None:
            self._thread.call(self._engine.wait_for_room(retry))

    def _set_cell(self, key: str, cell: bytes) -> None:
        self._end(self._engine.put_packed(key, cell))

    def delete(self, key: str) -> None:
        """Remove a key; removing an absent key is no error. Raises as `set`."""
        self._end(self._engine.put(OP_DELETE, key, None))

    def increment(self, key: str, amount: float = 1) -> None:
        """Add a number to a key; an absent key counts as 0. Raises as `set`.

        Integers stay integers; with a float on either side the sum is a float. Where the key holds
        something else, or an integer would leave the 64-bit range, every replica refuses the delta
        and counts it.
        """
        self._end(self._engine.put(OP_INCREMENT, key, amount))

    def _end(self, retry: Retry | None) -> None:
        if retry is not None:
            self._thread.call(self._engine.wait_for_room(retry))

    def set_many(self, mapping: Mapping[str, Value]) -> None:
        """Set many keys; those of one shard become visible at once. Raises as `set`."""
        for retry in self._engine.put_many(mapping):
            self._thread.call(self._engine.wait_for_room(retry))

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
        from broker.sync.table_writer import TableWriter  # noqa: PLC0415 - needs numpy

        return TableWriter(self, self._engine, self._thread, key)

    # -- waiting ----------------------------------------------------------------------------------

    def flush(
        self,
        timeout: float | None = None,
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
        timeout = checked_timeout(timeout)
        self._engine.check_not_interrupted()
        return self._wait(self._engine.flush(timeout, wanted, fsynced=fsynced), timeout)

    def _wait(self, work: Coroutine[Any, Any, T], timeout: float | None) -> T:
        try:
            return self._thread.call(work, timeout)
        except TimeoutError as error:
            if isinstance(error, BrokerError):
                raise
            raise FlushTimeoutError(str(error)) from None

    def stats(self) -> ProducerStats:
        """Return counters since it was opened; docs/statistics.md explains each.

        `buffered = accepted + conflated + pending` at any moment.
        """
        return self._engine.stats()

    # -- life -------------------------------------------------------------------------------------

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Send what is buffered, then disconnect. Calling it again does nothing.

        In a signal handler that interrupted a write of this producer it returns at once, and the
        rest happens in the background; the end of the program waits for that.

        Args:
            timeout: seconds after which it gives up.

        Raises:
            FlushTimeoutError: not everything was accepted in time; says how many deltas were not.
            FencedError, DataLostError: as `flush`.
        """
        seconds = checked_timeout(timeout)
        self._close(partial(self._engine.close, seconds), seconds)

    def _close(
        self, work: Callable[[], Coroutine[Any, Any, object]], timeout: float | None
    ) -> None:
        self._closing.close(work, timeout, waits=not self._engine.is_interrupted)

    def __enter__(self) -> Self:
        """Return itself; it is open already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Close it when Redis has accepted all; after an error in the block wait only briefly.

        An error of closing never hides one of the block; it is logged.
        """
        if kind is None:
            self.close()
        else:
            hurried = HURRIED_CLOSE_TIMEOUT
            self._close(partial(self._engine.close_logged, hurried), hurried)
