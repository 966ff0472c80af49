"""The engine of both producer faces: it buffers from any thread, and sends on one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, TypedDict
from warnings import warn

from broker.backend.credentials import Credentials
from broker.backend.session import Session
from broker.config import (
    checked_flag,
    checked_name,
    checked_timeout,
    chosen_namespace,
    default_node,
)
from broker.core.buffer import AddResult, ProducerBuffer
from broker.core.chunk_size import check_group
from broker.core.fast_path import FastSet, PlainKeys
from broker.engine.durability import Confirmer
from broker.engine.sender import CallOnLoop, Sender, call_here
from broker.engine.settings import checked_settings
from broker.errors import (
    BrokerError,
    BufferFullError,
    ClosedError,
    ConfigError,
    DataLostError,
    EncodeError,
    FlushTimeoutError,
    ReentrantError,
)
from broker.model import Token
from broker.protocol.cells import CELLS, cell_of, plain_columns
from broker.protocol.messages import TableRun, Value
from broker.protocol.names import shard_of
from broker.protocol.operations import OP_DELETE, OP_SET, OPERATIONS
from broker.protocol.refusal import shown
from broker.protocol.values import HEAD_BYTES, STAMP_BYTES, admit_key
from broker.runtime import clock
from broker.stats.producer import ProducerStats

log = logging.getLogger(__name__)

# Globals are found faster than an enum's members.
_WAKE, _, _NO_ROOM = AddResult

MAX_REPLICAS: Final = (1 << 31) - 1  # what Redis takes
# What validates the argument of an operation, by its code.
_CELLS = {op.code: CELLS[op.column] for op in OPERATIONS.values()}

FullPolicy = Literal["block", "raise", "conflate"]
FULL_POLICIES = ("block", "raise", "conflate")

CLOSE_TIMEOUT = 10.0
HURRIED_CLOSE_TIMEOUT = 1.0  # after an error of the caller's own

# Buffers a delta that had no room before; false if there still is none.
Retry = Callable[[], bool]


class ProducerSettings(TypedDict, total=False):
    """The arguments of producers of both faces; `broker.aio.Producer` documents each."""

    node: str | None
    shards: int | None
    local_delta_max_age: float | None
    local_delta_max_count: int | None
    linger: float | None
    chunk_bytes: int | None
    compress: int | None
    buffer_bytes: int | None
    when_full: FullPolicy
    full_timeout: float | None
    keep_seconds: float | None
    keep_bytes: int | None
    timestamps: bool
    conflate: bool
    pending_bytes: int | None
    credentials: Credentials | None


class ProducerEngine(FastSet[Retry | None]):
    """A producer without a face.

    Writing methods may be called from any thread and never wait. They return or yield deltas that
    had no room; the face passes these to `wait_for_room`. The coroutines run on one event loop.

    Args:
        url: as for the faces.
        namespace: likewise.
        settings: likewise.

    Raises:
        ConfigError: every fault of the arguments at once.
    """

    def __init__(self, url: str | None, namespace: str | None, settings: ProducerSettings) -> None:
        super().__init__()
        self._settings = checked_settings(ProducerSettings.__annotations__, settings)
        node = settings.get("node")
        self._when_full = settings.get("when_full", "block")
        max_age = settings.get("local_delta_max_age")
        self._timestamps = checked_flag("timestamps", settings.get("timestamps", False))
        self._conflate = checked_flag("conflate", settings.get("conflate", False))
        if self._when_full not in FULL_POLICIES:
            raise ConfigError(
                [f"when_full={shown(self._when_full)}; allowed: {', '.join(FULL_POLICIES)}"]
            )
        self.namespace = chosen_namespace(namespace)
        self.node = checked_name("node", node) if node is not None else default_node()
        self._is_named = node is not None
        self._full_timeout: float = self._settings["full_timeout"]
        self._max_age_ms = None if max_age is None else round(max_age * 1000)
        self._max_count = settings.get("local_delta_max_count")
        self._session = Session(
            url, self.namespace, settings.get("shards"), settings.get("credentials")
        )
        self._sender: Sender | None = None
        self._confirmer: Confirmer
        self._reported_lost = 0
        self._closed_error: ClosedError | None = None

    # -- life -------------------------------------------------------------------------------------

    async def open(self, call_on_loop: CallOnLoop = call_here) -> None:
        """Connect, join the namespace and take the node name.

        Args:
            call_on_loop: makes this loop call a function, from the thread of any caller.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError, NamespaceMismatchError: with a fix.
            ClosedError: it was closed before.
        """
        if self._closed_error is not None:
            raise self._closed_error.with_traceback(None)
        self._session.check()
        if self._sender is not None:
            return
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
                call_on_loop=call_on_loop,
            )
            await sender.start()
        except BaseException:
            await self._session.close()
            raise
        self._sender = sender
        self._confirmer = Confirmer(self._session, sender)
        self._session.guard.call_in_child(sender.buffer.shut_in_child)
        self._open_fast_path(self.plain_keys, self.wake)

    @property
    def plain_keys(self) -> PlainKeys:
        """Keys whose plain sets may gather: none, if each delta has a timestamp of its own."""
        return PlainKeys() if self._timestamps else self.buffer.plain_keys

    def wake(self, shard: int) -> None:
        """Wake a shard's sender; raises as `sender`."""
        self.sender.wake(shard)

    @property
    def sender(self) -> Sender:
        """The sender, if this producer can still write.

        Raises:
            ClosedError: not open, or closed.
            FencedError: another process took the node name.
        """
        self._session.guard.check()
        # Without its old traceback: an error that is raised repeatedly must not grow.
        if self._sender is None or self._closed_error is not None:
            raise (self._closed_error or _not_open()).with_traceback(None)
        if self._sender.stopped is not None:
            raise self._sender.stopped.with_traceback(None)
        return self._sender

    @property
    def buffer(self) -> ProducerBuffer:
        """Where deltas go. Raises as `sender`."""
        return self.sender.buffer

    @property
    def shards(self) -> int:
        """How many shards the namespace has."""
        return len(self._session.keys)

    async def close(self, timeout: float | None) -> None:  # noqa: ASYNC109 - as the faces
        """Send what is buffered, then disconnect. Calling it again does nothing.

        Raises:
            FlushTimeoutError, FencedError, DataLostError: as `flush`.
        """
        timeout = checked_timeout(timeout)
        sender = self._sender
        if sender is None or self._closed_error is not None or self._session.guard.is_forked:
            return
        if not self._session.home.has_ended:
            self._session.home.check()
        try:
            if sender.buffer.pending or not self._session.home.has_ended:
                await self.flush(timeout)
        finally:
            self._closed_error = ClosedError("this producer is closed; make a new one")
            sender.buffer.shut()
            # Wake the callers that wait for room: they raise.
            sender.progress.set()
            await sender.stop()
            if not self._is_named and not self._session.home.has_ended:
                await sender.leave()
            await self._session.close()

    @property
    def is_interrupted(self) -> bool:
        """Whether the caller interrupted a call on this thread, so that it must not wait."""
        return self._sender is not None and self._sender.buffer.is_interrupted

    def check_not_interrupted(self) -> None:
        """Return if the caller may wait.

        Raises:
            ReentrantError: it interrupted a call on this thread.
        """
        if self._sender is not None:
            self._sender.buffer.check_not_interrupted()

    async def close_logged(self, timeout: float) -> None:  # noqa: ASYNC109 - as the faces
        """Close it where an error would hide another one: log the error instead."""
        try:
            await self.close(timeout)
        except BrokerError as error:
            log.error("producer_closed_with_loss node=%s error=%s", self.node, error)  # noqa: TRY400

    # -- writing ----------------------------------------------------------------------------------

    def _set_exactly(self, key: str, value: Value) -> Retry | None:
        return self.put(OP_SET, key, value)

    def _set_cell(self, key: str, cell: bytes) -> Retry | None:
        return self.put_packed(key, cell)

    def put_packed(self, key: str, cell: bytes) -> Retry | None:
        """Buffer one set of a valid key to a packed value, as `put`."""
        return self._put_cell(OP_SET, key, cell, admit_key(key) + len(cell) + HEAD_BYTES)

    def put(self, op: int, key: str, value: Any) -> Retry | None:
        """Buffer one delta; if there is no room, return a function that tries again."""
        size = admit_key(key)
        cell, cell_size = _CELLS[op](value)
        return self._put_cell(op, key, cell, size + cell_size)

    def _put_cell(self, op: int, key: str, cell: Any, size: int) -> Retry | None:
        sender = self.sender
        stamp, whole = None, size
        if self._timestamps:
            stamp, whole = round(time.time() * 1000), size + STAMP_BYTES
        shard = shard_of(key, len(self._session.keys))
        if sender.room.full and op != OP_DELETE:
            sender.room.check(shard)
        try:
            result = sender.buffer.add(shard, op, key, cell, whole, stamp, clock.now())
        except ReentrantError:
            self._put_off(partial(self._put_again, op, key, cell, size))
            return None
        if result is _NO_ROOM:
            return partial(self._put_again, op, key, cell, size)
        if result is _WAKE:
            sender.wake(shard)
        return None

    def _put_off(self, write: Retry) -> None:
        """Have a write done after the call that its caller, a signal handler, interrupted."""
        self.buffer.put_off(partial(self._put_late, write))

    def _put_late(self, write: Retry) -> None:
        try:
            write()
        except BrokerError as error:
            # Its caller is gone.
            log.error("write_of_handler_failed node=%s error=%s", self.node, error)  # noqa: TRY400

    def _put_again(self, op: int, key: str, cell: Any, size: int) -> bool:
        return self._put_cell(op, key, cell, size) is None

    def put_many(self, mapping: Mapping[str, Value]) -> Iterator[Retry]:
        """Set many keys, each shard's at once; yield a retry for each group without room.

        The whole mapping is checked before any of it is buffered.
        """
        groups = self._groups(mapping)
        for shard, *_ in groups:
            self.sender.room.check(shard)
        for group in groups:
            if not self._add_group(*group):
                yield partial(self._add_group, *group)

    def _groups(self, mapping: Mapping[str, Value]) -> list[tuple[int, list[str], list[Any], int]]:
        """Return the sets of each shard: keys, values and an upper bound of their bytes."""
        if not isinstance(mapping, Mapping):
            raise EncodeError(f"set_many got {shown(mapping)}; give a mapping of keys to values")
        extra = STAMP_BYTES if self._timestamps else 0
        shards = len(self._session.keys)
        groups: dict[int, tuple[int, list[str], list[Any], int]] = {}
        # A column at a time is several times as fast as key by key.
        if type(mapping) is dict:
            mapping = mapping.copy()  # in one step: another thread may change it
        columns = plain_columns(mapping) if type(mapping) is dict and shards == 1 else None
        if columns is not None:
            keys, cells, size = columns
            groups[0] = (0, keys, cells, size + extra * len(keys))
            mapping = {}
        for key, given in mapping.items():
            size = admit_key(key) + extra
            cell, cell_size = cell_of(given)
            shard = shard_of(key, shards)
            _, keys, values, total = groups.setdefault(shard, (shard, [], [], 0))
            keys.append(key)
            values.append(cell)
            groups[shard] = (shard, keys, values, total + size + cell_size)
        for _, keys, _, size in groups.values():
            check_group(len(keys), size)
        return list(groups.values())

    def _add_group(self, shard: int, keys: list[str], values: list[Any], size: int) -> bool:
        stamp = round(time.time() * 1000) if self._timestamps else None
        add_many = self.buffer.add_many
        try:
            result = add_many(shard, keys, values, size, stamp, clock.now())
        except ReentrantError:
            self._put_off(partial(self._add_group, shard, keys, values, size))
            return True
        return self._is_in(shard, result)

    def put_table_runs(self, runs: list[tuple[int, TableRun]]) -> Iterator[Retry]:
        """Buffer runs of a table, each with its shard; yield a retry for each without room."""
        for shard, run in runs:
            if run.op != OP_DELETE:
                self.sender.room.check(shard)
        for shard, run in runs:
            if not self._add_table_run(shard, run):
                yield partial(self._add_table_run, shard, run)

    def _add_table_run(self, shard: int, run: TableRun) -> bool:
        try:
            result = self.buffer.add_table_run(shard, run, clock.now())
        except ReentrantError:
            self._put_off(partial(self._add_table_run, shard, run))
            return True
        return self._is_in(shard, result)

    def _is_in(self, shard: int, result: AddResult) -> bool:
        """Wake the shard's sender if needed; false if there was no room."""
        if result is _WAKE:
            self.wake(shard)
        return result is not _NO_ROOM

    async def wait_for_room(self, retry: Retry) -> None:
        """Apply the policy for a full buffer, until `retry` finds room.

        Raises:
            BufferFullError: policy "raise", or no room within `full_timeout`.
        """
        sender = self.sender
        # Lanes that hold nothing but ids of table keys wait for deltas, unless room is wanted.
        sender.wake_all()
        limit = f"producer buffer is full ({sender.buffer.max_bytes} bytes)"
        if self._when_full == "raise":
            raise BufferFullError(
                f"{limit}; slow down, raise buffer_bytes, or use when_full='block' or 'conflate'"
            )
        if self._when_full == "conflate" and sender.buffer.conflate() and retry():
            return
        try:
            async with asyncio.timeout(self._full_timeout):
                while True:
                    sender.progress.clear()
                    if retry():
                        return
                    await sender.progress.wait()
        except TimeoutError:
            raise BufferFullError(
                f"{limit} and still is after {self._full_timeout:g} s: "
                + (sender.trouble or "Redis does not take more; see `statebroker status`")
            ) from None

    # -- waiting ----------------------------------------------------------------------------------

    async def flush(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as the faces
        redis_replicas: int = 0,
        *,
        fsynced: bool = False,
    ) -> Token:
        """Wait until Redis accepted everything written so far; the faces' `flush` documents it."""
        timeout = checked_timeout(timeout)
        checked_flag("fsynced", fsynced)
        if type(redis_replicas) is not int or not 0 <= redis_replicas <= MAX_REPLICAS:
            raise ConfigError(
                [f"redis_replicas={shown(redis_replicas)}; allowed: 0 to {MAX_REPLICAS}"]
            )
        sender = self.sender
        self._session.home.check()
        tickets = sender.buffer.close_all()
        sender.wake_all()
        accepted = partial(self._accepted, sender, tickets)
        if redis_replicas or fsynced:
            await self._confirmer.confirm(
                accepted, redis_replicas, fsynced=fsynced, timeout=timeout
            )
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
                    if sender.buffer.is_accepted(tickets):
                        return
                    await sender.progress.wait()
        except TimeoutError:
            raise FlushTimeoutError(
                f"Redis has not accepted {sender.buffer.pending} deltas within {timeout:g} s; they "
                "stay buffered and are sent as soon as it does"
                + (f" ({sender.trouble})" if sender.trouble else "")
            ) from None

    def _report_losses(self, sender: Sender) -> None:
        lost = sum(lane.sent.lost for lane in sender.buffer.lanes)
        unreported, self._reported_lost = lost - self._reported_lost, lost
        if unreported:
            raise DataLostError(unreported)

    def stats(self) -> ProducerStats:
        """Return the counters since it was opened.

        Raises:
            ClosedError: it was never open.
            ForkedError: this is a forked child.
        """
        self._session.guard.check()
        if self._sender is None:
            raise _not_open()
        return self._sender.stats()


def chosen_replicas(redis_replicas: int, replicas: int | None) -> int:
    """Return the argument of `flush`; its old name gives a warning."""
    if replicas is None:
        return redis_replicas
    warn(
        "flush(replicas=) is now flush(redis_replicas=); the old name goes with version 1.0",
        DeprecationWarning,
        stacklevel=3,
    )
    return replicas


def _not_open() -> ClosedError:
    return ClosedError("this producer is not open; call open() or use `async with`")
