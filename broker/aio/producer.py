"""The asyncio producer; the sync face runs this one on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, TypeVar, Unpack

from broker.backend.session import Session
from broker.config import checked_name, checked_of, default_node
from broker.core.tables.kinds import table_key
from broker.engine.durability import Confirmer
from broker.engine.sender import Sender
from broker.errors import (
    BrokerError,
    BufferFullError,
    ClosedError,
    ConfigError,
    DataLostError,
    FlushTimeoutError,
)
from broker.model import Token
from broker.protocol.messages import TableRun, Value
from broker.protocol.names import shard_of
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.protocol.values import SCALAR_BYTES, STAMP_BYTES, admit, admit_amount, admit_key
from broker.stats import ProducerStats

if TYPE_CHECKING:
    from broker.aio.table_writer import TableWriter
    from broker.core.buffer import ProducerBuffer

log = logging.getLogger(__name__)

T = TypeVar("T")

FullPolicy = Literal["block", "raise", "conflate"]
FULL_POLICIES = ("block", "raise", "conflate")

CLOSE_TIMEOUT = 10.0
HURRIED_CLOSE_TIMEOUT = 1.0


class ProducerSettings(TypedDict, total=False):
    """What producers of both faces may be given; `Producer` says what each is."""

    node: str | None
    shards: int | None
    local_delta_max_age: float | None
    local_delta_max_count: int | None
    linger: float | None
    chunk_bytes: int | None
    buffer_bytes: int | None
    when_full: FullPolicy
    full_timeout: float | None
    keep_seconds: float | None
    keep_bytes: int | None
    timestamps: bool
    conflate: bool
    pending_bytes: int | None


class Producer:
    """A writer of one namespace: its calls buffer and return, a task of its own appends to Redis.

    Every accepted delta takes effect exactly once and in the order of this producer's calls,
    whatever is retried. Deltas of one `set_many` that belong to one shard become visible at once.

    Use it with `async with`, or call `open()` and `close()`.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`; None means `embedded://`.
        namespace: which state; letters, digits, `_`, `.`, `-`.
        node: this writer's name; one process at a time can hold it, a newer one fences the older.
            None makes a name that nobody else has.
        shards: shard count to make a new namespace with; for an existing one it must agree.
        local_delta_max_age: seconds a delta of this node may wait; None: what the workers say.
        local_delta_max_count: pending deltas of this node that are published at once; likewise.
        linger: most seconds for which deltas gather before they are sent; never more than a tenth
            of the max age.
        chunk_bytes: size at which a chunk is sent.
        buffer_bytes: most bytes not accepted yet.
        when_full: "block" until there is room or `full_timeout` is over, "raise" at once, or
            "conflate": drop what a newer set of the same key makes pointless, then block.
        full_timeout: seconds for which a full buffer blocks.
        keep_seconds: how long accepted chunks are kept, to be sent again if Redis forgets them.
        keep_bytes: most bytes of them.
        timestamps: send the wall clock of each delta, not only of each chunk.
        conflate: of the sets and deletes of a key within a chunk send only the newest, and no
            increment before it. What a replica ends with is the same; `changes()` tells less.
        pending_bytes: most bytes that wait in one shard in Redis before it says BUSY.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        **settings: Unpack[ProducerSettings],
    ) -> None:
        self._settings = checked_of(ProducerSettings.__annotations__, settings)
        node = settings.get("node")
        when_full = settings.get("when_full", "block")
        max_age = settings.get("local_delta_max_age")
        if when_full not in FULL_POLICIES:
            raise ConfigError([f"when_full={when_full!r}; allowed: {', '.join(FULL_POLICIES)}"])
        self.namespace = checked_name("namespace", namespace)
        self.node = checked_name("node", node) if node is not None else default_node()
        self._named = node is not None
        self.when_full = when_full
        self.full_timeout: float = self._settings["full_timeout"]
        self._max_age_ms = None if max_age is None else round(max_age * 1000)
        self._max_count = settings.get("local_delta_max_count")
        self._timestamps = settings.get("timestamps", False)
        self._conflate = settings.get("conflate", False)
        self._session = Session(url, self.namespace, settings.get("shards"))
        self._sender: Sender | None = None
        self._confirmer: Confirmer
        self._reported_lost = 0
        self._ended: ClosedError | None = None
        # Another thread's calls need another way to wake the tasks; the sync face puts it here.
        self.wake: Callable[[int], object] = self.wake_here
        # What `set` tries first; true: it has to be buffered exactly.
        self._try_set: Callable[[str, Any], bool | None] = _exactly

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect, join the namespace and take the node name.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
        """
        try:
            await self._session.connect()
            await self._session.create_or_join()
            await self._session.ensure_workers()
            sender = Sender(
                self._session,
                self.node,
                self._settings,
                max_age_ms=self._max_age_ms,
                max_count=self._max_count,
                conflates=self._conflate,
            )
            await sender.start()
        except BaseException:
            await self._session.close()
            raise
        self._sender = sender
        self._confirmer = Confirmer(self._session, sender)
        self._try_set = self.setter(_exactly)
        self._session.guard.in_child = sender.buffer.shut_in_child
        return self

    @property
    def sender(self) -> Sender:
        """What sends, if this producer can still write.

        Raises:
            ClosedError: not open, or closed.
            FencedError: another process took the node name.
        """
        self._session.guard.check()
        # Without its old traceback: an error that is raised again and again must not grow.
        if self._sender is None or self._ended is not None:
            raise (self._ended or _not_open()).with_traceback(None)
        if self._sender.stopped is not None:
            raise self._sender.stopped.with_traceback(None)
        return self._sender

    @property
    def shards(self) -> int:
        """How many shards the namespace has."""
        return len(self._session.keys)

    async def __aenter__(self) -> Self:
        """Open it."""
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Close it, after what was buffered reached Redis; on an error without waiting long.

        An error of the block is never hidden by one of closing; that is logged.
        """
        if kind is None:
            await self.close()
            return
        try:
            await self.close(HURRIED_CLOSE_TIMEOUT)
        except BrokerError as error:
            log.error("producer_closed_with_loss node=%s error=%s", self.node, error)  # noqa: TRY400

    async def close(self, timeout: float = CLOSE_TIMEOUT) -> None:  # noqa: ASYNC109 - same as sync
        """Send what is buffered, then disconnect. Calling it again does nothing.

        Args:
            timeout: seconds to try for.

        Raises:
            FlushTimeoutError: not everything was accepted in time; says how many deltas were not.
            FencedError, DataLostError: as `flush`.
        """
        sender = self._sender
        if sender is None or self._ended is not None or self._session.guard.is_forked:
            return
        try:
            await self.flush(timeout)
        finally:
            self._ended = ClosedError("this producer is closed; make a new one")
            sender.buffer.shut()
            # Whoever waits for room learns that there will be none.
            sender.progress.set()
            await sender.stop()
            if not self._named:
                await sender.leave()
            await self._session.close()

    # -- writing ----------------------------------------------------------------------------------

    async def set(self, key: str, value: Value) -> None:
        """Set a key to a value.

        Raises:
            EncodeError: the key or value cannot be sent; nothing was buffered.
            BufferFullError: no room (in time).
            FencedError, ClosedError: this producer cannot write any more.
        """
        if self._try_set(key, value):
            await self._put(OP_SET, key, value)

    async def delete(self, key: str) -> None:
        """Remove a key; removing an absent key is no error. Raises as `set`."""
        await self._put(OP_DELETE, key, None)

    async def increment(self, key: str, amount: float = 1) -> None:
        """Add a number to a key; an absent key counts as 0. Raises as `set`.

        Integers stay integers; with a float on either side the sum is a float. Where the key holds
        something else, or an integer would leave the 64-bit range, every replica refuses the delta
        and counts it.
        """
        await self._put(OP_INCREMENT, key, amount)

    async def set_many(self, mapping: Mapping[str, Value]) -> None:
        """Set many keys; those of one shard become visible at once. Raises as `set`."""
        groups = self.prepare_many(mapping)
        for group in groups:
            if not self.add_group(*group):
                await self.make_room(partial(self.add_group, *group))

    def setter(self, exact: Callable[[str, Any], T]) -> Callable[[str, Any], T | None]:
        """Return the fastest way to set a key from any thread; `exact` is what cannot go it."""
        return exact if self._timestamps else self.buffer.make_fast_set(exact, self.wake_for)

    async def _put(self, op: int, key: str, value: Any) -> None:
        if not self.put(op, key, value):
            await self.make_room(partial(self.put, op, key, value))

    def put(self, op: int, key: str, value: Any) -> bool:
        """Buffer one delta from any thread; false if there is no room."""
        buffer = self.sender.buffer
        size = admit_key(key)
        if op == OP_SET:
            value, value_size = admit(value)
            size += value_size
        elif op == OP_INCREMENT:
            value, size = admit_amount(value), size + SCALAR_BYTES
        stamp = None
        if self._timestamps:
            stamp, size = round(time.time() * 1000), size + STAMP_BYTES
        shard = shard_of(key, self.shards)
        news = buffer.add(shard, op, key, value, size, stamp, time.monotonic())
        if news:
            self.wake(shard)
        return news is not None

    def prepare_many(
        self, mapping: Mapping[str, Value]
    ) -> list[tuple[int, list[str], list[Any], int]]:
        """Check a whole mapping before any of it is buffered; return it by shard."""
        buffer = self.sender.buffer
        groups: dict[int, tuple[int, list[str], list[Any], int]] = {}
        extra = STAMP_BYTES if self._timestamps else 0
        for key, given in mapping.items():
            size = admit_key(key) + extra
            value, value_size = admit(given)
            shard = shard_of(key, self.shards)
            _, keys, values, total = groups.setdefault(shard, (shard, [], [], 0))
            keys.append(key)
            values.append(value)
            groups[shard] = (shard, keys, values, total + size + value_size)
        for _, keys, _, size in groups.values():
            buffer.check_group(len(keys), size)
        return list(groups.values())

    def add_group(self, shard: int, keys: list[str], values: list[Any], size: int) -> bool:
        """Buffer one shard's part of a `set_many` from any thread; false if there is no room."""
        buffer = self.sender.buffer
        stamp = round(time.time() * 1000) if self._timestamps else None
        news = buffer.add_many(shard, keys, values, size, stamp, time.monotonic())
        if news:
            self.wake(shard)
        return news is not None

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
            ConfigError: the name or a type is not one.
        """
        key = table_key(name, keys, values)
        from broker.aio.table_writer import TableWriter  # noqa: PLC0415 - needs numpy

        return TableWriter(self, key)

    @property
    def buffer(self) -> ProducerBuffer:
        """Where deltas go. Raises as `sender`."""
        return self.sender.buffer

    def add_table_run(self, shard: int, run: TableRun) -> bool:
        """Buffer one run of a table from any thread; false if there is no room."""
        news = self.sender.buffer.add_table_run(shard, run, time.monotonic())
        if news:
            self.wake(shard)
        return news is not None

    async def make_room(self, retry: Callable[[], bool]) -> None:
        """Do what the policy says about a full buffer, until `retry` finds room.

        Raises:
            BufferFullError: policy "raise", or no room within `full_timeout`.
        """
        sender = self.sender
        # Lanes that hold nothing but ids of table keys wait for deltas, unless room is wanted.
        for wake in sender.wakes:
            wake.set()
        most = f"producer buffer is full ({sender.buffer.max_bytes} bytes)"
        if self.when_full == "raise":
            raise BufferFullError(
                f"{most}; slow down, raise buffer_bytes, or use when_full='block' or 'conflate'"
            )
        if self.when_full == "conflate" and sender.buffer.conflate() and retry():
            return
        try:
            async with asyncio.timeout(self.full_timeout):
                while True:
                    sender.progress.clear()
                    if retry():
                        return
                    await sender.progress.wait()
        except TimeoutError:
            raise BufferFullError(
                f"{most} and still is after {self.full_timeout:g} s: "
                + (sender.trouble or "Redis does not take more; see `statebroker status`")
            ) from None

    def wake_for(self, key: str) -> None:
        """Tell the lane's task that this key's set came when it had just looked.

        Raises:
            ClosedError, FencedError: it looks no more.
        """
        self.wake(shard_of(key, len(self.sender.wakes)))

    def wake_here(self, shard: int) -> None:
        """Tell a lane's task, from the loop's own thread, that there is something to look at."""
        if self._sender is not None:
            self._sender.wakes[shard].set()

    # -- waiting ----------------------------------------------------------------------------------

    async def flush(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - same as sync
        *,
        replicas: int = 0,
        fsynced: bool = False,
    ) -> Token:
        """Wait until Redis accepted everything written so far, without lingering.

        Accepted is in Redis' memory. With `replicas` it is in the memory of so many replicas too,
        in each shard: it survives the server's end if one of these takes over. With `fsynced` it is
        in the append-only file on the server's disk, and on the disks of these replicas: it
        survives a crash of the machine, whatever `appendfsync` says but `no`.

        Args:
            timeout: seconds; None waits for ever.
            replicas: how many replicas have to have it; 0 asks for none.
            fsynced: whether it has to be on disk; needs Redis 7.2 or Valkey, and `appendonly yes`.

        Returns:
            A token; `replica.wait_for(token)` returns once a replica shows all of it.

        Raises:
            FlushTimeoutError: not all accepted in time; it stays buffered and goes on.
            NotReplicatedError: all is accepted, but too few replicas or disks have it in time.
            UnsupportedServerError: `fsynced` is more than this server can tell; all is accepted.
            FencedError: another process took the node name.
            DataLostError: Redis lost accepted deltas that were no longer kept here; said once.
        """
        if replicas < 0:
            raise ConfigError([f"replicas={replicas} is out of range; allowed: 0 or more"])
        sender = self.sender
        tickets = sender.buffer.close_all()
        for wake in sender.wakes:
            wake.set()
        accepted = partial(self._accepted, sender, tickets)
        if replicas or fsynced:
            await self._confirmer.confirm(accepted, replicas, fsynced=fsynced, timeout=timeout)
        else:
            await accepted(timeout)
        self._report_losses(sender)
        return Token(dict(sender.marks))

    async def _accepted(
        self,
        sender: Sender,
        tickets: list[int],
        timeout: float | None,  # noqa: ASYNC109 - as flush
    ) -> None:
        """Wait until Redis accepted everything up to these tickets."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    sender.progress.clear()
                    if sender.stopped is not None:
                        raise sender.stopped
                    if sender.buffer.settled(tickets):
                        return
                    await sender.progress.wait()
        except TimeoutError:
            raise FlushTimeoutError(
                f"Redis has not accepted {sender.buffer.pending} deltas within {timeout:g} s; they "
                "stay buffered and are sent as soon as it does"
                + (f" ({sender.trouble})" if sender.trouble else "")
            ) from None

    def _report_losses(self, sender: Sender) -> None:
        lost = sum(lane.lost for lane in sender.buffer.lanes)
        news, self._reported_lost = lost - self._reported_lost, lost
        if news:
            raise DataLostError(news)

    def stats(self) -> ProducerStats:
        """Return what it did since it was opened; docs/statistics.md explains each number.

        `buffered = accepted + conflated + pending` at any moment.

        Raises:
            ClosedError: it was never open.
        """
        if self._sender is None:
            raise _not_open()
        return self._sender.stats()


def _exactly(_key: str, _value: Any) -> bool:
    return True


def _not_open() -> ClosedError:
    return ClosedError("this producer is not open; call open() or use `async with`")
