"""Reads a namespace's data in Redis without following it: for people, checks and tools."""

from __future__ import annotations

import asyncio
from typing import Any

from broker.backend import page_sizes, queries
from broker.backend.connections import translated
from broker.backend.credentials import Credentials
from broker.backend.inspection import ShardReading, read_shard, shard_away
from broker.backend.session import Session
from broker.config import chosen_namespace
from broker.core.fold import decode_chunks, fold
from broker.core.replay import LogReplay
from broker.core.tables import HAS_NUMPY, new_tables
from broker.engine.log_reader import LogMovedError, log_pages
from broker.engine.self_check import retry_until_stable
from broker.engine.unreadable import UnreadableValues
from broker.engine.verifier import Verifier
from broker.errors import (
    BackendError,
    BrokerError,
    ClosedError,
    ConfigError,
    ConnectError,
    DecodeError,
    UnreadableValueError,
)
from broker.protocol.cells import readable, value_of
from broker.protocol.constants import PROTOCOL_VERSION
from broker.protocol.fields import name_of, read_page, unpack_fields
from broker.protocol.messages import Cell, Head, Position, TableKey
from broker.protocol.names import ShardKeys, shard_of, slot_of_key
from broker.protocol.refusal import shown
from broker.protocol.values import admit_key
from broker.stats.namespace import NamespaceStatus, NodeStats, ServerInfo, ShardStats, WorkerStatus


class InspectorEngine:
    """A reader of one namespace's data in Redis, run by both faces on an event loop.

    Args:
        url: `redis://`, `rediss://`, `unix://` or `embedded://`. None: STATEBROKER_URL, else
            `embedded://`.
        namespace: the state's name. None: STATEBROKER_NAMESPACE, else `default`.
        credentials: see `broker.backend.session.checked_credentials`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.namespace = chosen_namespace(namespace)
        self._session = Session(url, self.namespace, None, credentials)
        self._unreadable = UnreadableValues(self.namespace, lambda _key: None)
        self._is_open = False

    async def open(self) -> None:
        """Connect.

        Raises:
            ConnectError, UnsupportedServerError, EmbeddedError: with the fix.
            NamespaceMismatchError: another protocol version.
            BrokerError: the namespace does not exist yet.
        """
        self._session.check()
        if self._is_open:
            return
        try:
            await self._session.connect()
            found = await self._session.try_join()
        except BaseException:
            await self._session.close()
            raise
        if not found:
            server = self._session.connections.name
            await self._session.close()
            raise BrokerError(
                f"namespace {self.namespace!r} does not exist on {server}; "
                "start `statebroker serve` first"
            )
        self._is_open = True

    async def close(self) -> None:
        """Disconnect. On another loop, only if the one that opened it has ended."""
        if not self._is_open or self._session.guard.is_forked:
            return
        if not self._session.home.has_ended:
            self._session.home.check()
        self._is_open = False
        await self._session.close()

    def _opened(self) -> Session:
        """Return the session, if it can be used here.

        Raises:
            ForkedError, WrongLoopError, ClosedError: it cannot.
        """
        self._session.check()
        if not self._is_open:
            raise ClosedError("this inspector is not open; call open() or use `async with`")
        return self._session

    # -- numbers ----------------------------------------------------------------------------------

    async def status(self) -> NamespaceStatus:
        """Return what Redis holds of the namespace: server, shards, nodes and workers."""
        server = self._opened().server
        shards: list[ShardStats] = []
        nodes: dict[str, NodeStats] = {}
        workers: dict[str, WorkerStatus] = {}
        readings = await asyncio.gather(*map(self._read_shard, range(len(self._session.keys))))
        away = [found for found in readings if isinstance(found, ConnectError)]
        if len(away) == len(readings):
            raise away[0]
        for number, found in enumerate(readings):
            if isinstance(found, ConnectError):
                slot = self._slot(self._session.keys[number])
                shards.append(shard_away(number, slot, str(found)))
                continue
            reading, held_by = found
            slot = self._slot(self._session.keys[number])
            shards.append(reading.shard(number, slot=slot, held_by=held_by))
            for node in reading.nodes():
                nodes[node.node] = _sum(nodes.get(node.node), node)
            for worker in reading.worker_statuses():
                known = workers.get(worker.worker)
                if known is None or worker.seen_ms < known.seen_ms:
                    workers[worker.worker] = worker
        return NamespaceStatus(
            namespace=self.namespace,
            protocol=PROTOCOL_VERSION,
            server=ServerInfo(
                name=server.get("server_name", "redis"),
                version=str(server.get("valkey_version", server.get("redis_version", ""))),
                deployment=self._session.connections.kind,
            ),
            shards=tuple(shards),
            nodes=tuple(sorted(nodes.values(), key=lambda node: node.node)),
            workers=tuple(sorted(workers.values(), key=lambda worker: worker.worker)),
        )

    async def _read_shard(self, number: int) -> tuple[ShardReading, str | None] | ConnectError:
        """Return a shard's numbers and the address of its server, or why that is away."""
        keys = self._session.keys[number]
        try:
            async with translated("reading the status"):
                found = await read_shard(self._session.client, keys)
                # After its numbers: their reply may have redirected to another server.
                owner = await self._session.connections.directory.owner(keys.meta)
        except ConnectError as error:
            return error
        return found, None if owner is None else str(owner)

    def _slot(self, keys: ShardKeys) -> int | None:
        is_sharded = self._session.connections.directory.is_sharded
        return slot_of_key(keys.meta.encode()) if is_sharded else None

    # -- content ----------------------------------------------------------------------------------

    async def get(self, key: str) -> tuple[bool, Any]:
        """Return (whether the key exists, its value) at the head; reads little more than it.

        Raises:
            UnreadableValueError: its writer packed what is no value of ours.
        """
        shards = self._opened().keys
        admit_key(key)
        keys = shards[shard_of(key, len(shards))]
        for _ in range(_TRIES):
            head = await self._head(keys)
            (field,) = await queries.state_fields(self._session.client, keys, [key])
            values: dict[str, Cell] = {}
            floors: dict[str, int] = {}
            if field is not None:
                try:
                    (floors[key],), (values[key],) = unpack_fields([key.encode()], [field])
                except DecodeError as error:
                    raise DecodeError(
                        f"key {shown(key)} in {keys.state} cannot be read ({error}); write it "
                        "again, then run `statebroker verify --accept`"
                    ) from None
            if await self._fold_log(keys, head.snapshot, None, values, floors) is not None:
                try:
                    return key in values, value_of(values.get(key))
                except DecodeError as error:
                    raise UnreadableValueError(key, error) from None
        raise _moving(keys)

    async def state(self) -> dict[str, Any]:
        """Return the full-state hash as it is: the state at the last snapshot.

        Values that cannot be read are left out and logged, here and in the other calls.
        """
        content: dict[str, Cell] = {}
        for keys in self._opened().keys:
            async for names, fields in queries.state_pages(self._session.client, keys):
                page = read_page(names, fields)
                content.update(zip(page.names, page.cells, strict=True))
        return readable(content, self._unreadable.note)

    async def folded(self) -> dict[str, Any]:
        """Return the state at the head: the full-state hash folded with the log."""
        content: dict[str, Any] = {}
        for number in range(len(self._opened().keys)):
            content.update((await self.folded_shard(number, None))[0])
        return content

    async def folded_shard(
        self, shard: int, position: Position | None
    ) -> tuple[dict[str, Any], Position]:
        """Return one shard's state at a position of its log, or at the head.

        Args:
            shard: number of the shard.
            position: where to stop; None is the head.

        Raises:
            BackendError: the position is not part of the history that Redis holds (any more).
        """
        shards = self._opened().keys
        if type(shard) is not int or not 0 <= shard < len(shards):
            raise ConfigError([f"shard={shown(shard)}; allowed: 0 to {len(shards) - 1}"])
        if not isinstance(position, Position | None):
            raise ConfigError([f"position={shown(position)}; allowed: a Position, or None"])
        keys = shards[shard]
        for _ in range(_TRIES):
            run = await queries.server_identity(self._session.client, keys)
            head = await self._head(keys)
            values: dict[str, Cell] = {}
            floors: dict[str, int] = {}
            async for names, fields in queries.state_pages(self._session.client, keys, run):
                page = read_page(names, fields)
                values.update(zip(page.names, page.cells, strict=True))
                floors.update(zip(page.names, page.offsets, strict=True))
            reached = await self._fold_log(keys, head.snapshot, position, values, floors)
            if reached is not None:
                return readable(values, self._unreadable.note), reached
        raise _moving(keys)

    async def altered(self) -> dict[tuple[int, int], list[str]]:
        """Return where the full-state hash differs from what schedulers wrote, as after an edit.

        The server computes digests by key range; only ranges that differ are read.

        Returns:
            (shard, key range) -> the keys that the hash has there now.

        Raises:
            BackendError: Redis failed, or full states follow each other too fast.
        """
        found = {}
        for number in range(len(self._opened().keys)):
            verifier = Verifier(self._session, number)
            for at, names in (await retry_until_stable(verifier.altered)).items():
                found[number, at] = names
        return found

    async def damaged_tables(self) -> tuple[str, ...]:
        """Return which tables of the full state are damaged, and how, for people.

        New replicas do not show those that cannot be read; everything else goes on. Rows that are
        not what schedulers wrote are named too.

        Raises:
            BackendError: Redis failed, or full states follow each other too fast.
        """
        found: list[str] = []
        for shard in range(len(self._opened().keys)):
            if HAS_NUMPY:
                verifier = Verifier(self._session, shard)
                found += await retry_until_stable(verifier.doubted_tables)
        return tuple(found)

    async def _damaged_tables(self, keys: ShardKeys) -> tuple[list[str], dict[TableKey, str]]:
        """Return the fields of damaged tables, and their faults; nothing without numpy."""
        tables = new_tables()
        if tables is None:
            return [], {}
        head = await self._head(keys)
        fields = await queries.table_fields(self._session.client, keys)
        loaded = tables.loaded(fields, head.snapshot.offset)
        return loaded.damaged_fields(fields), loaded.damaged

    async def accept(self) -> tuple[str, ...]:
        """Accept the full-state hash as it is: the next full state computes its digest again.

        What cannot be read is removed: keys as well as tables that lack a part.

        Returns:
            What was removed, for people.
        """
        removed: list[str] = []
        for shard, keys in enumerate(self._opened().keys):
            client = self._session.client
            async for names, fields in queries.state_pages(client, keys):
                page, found = read_page(names, fields), dict(zip(names, fields, strict=True))
                if page.damaged:
                    gone = {key: found[key] for key in page.damaged}
                    await queries.remove_state_fields(client, keys, gone)
                    removed += [f"key {name_of(key)!a} of shard {shard}" for key in gone]
            of_tables, damaged = await self._damaged_tables(keys)
            if damaged:
                await queries.remove_table_fields(client, keys, of_tables)
                removed += [_of_table(key, fault, shard) for key, fault in damaged.items()]
            await queries.forget_digest(client, keys)
        return tuple(removed)

    async def _head(self, keys: ShardKeys) -> Head:
        head = (await queries.log_page(self._session.client, keys, 0, 0)).head
        if head is None:
            raise BackendError(f"{keys.meta} does not exist yet; start `statebroker serve`")
        return head

    async def _fold_log(
        self,
        keys: ShardKeys,
        start: Position,
        stop: Position | None,
        values: dict[str, Cell],
        floors: dict[str, int],
    ) -> Position | None:
        """Fold the log onto `values`; None if the history moved on under the reader."""
        client, replay, head = self._session.client, LogReplay(start), None
        frames = self._session.frames
        pages = log_pages(
            *(client, keys, replay, lambda: stop),
            batches=page_sizes.LOG_OF_INSPECTOR,
            frames=frames,
        )
        try:
            async for page in pages:
                head = page.head
                if head is None or head.position.epoch != start.epoch:
                    return None
                for entry in replay.until(stop, page.entries):
                    batch = replay.take(entry)
                    fold(values, batch, decode_chunks(batch, frames)[0], floors)
        except (LogMovedError, DecodeError):
            return None
        finally:
            await pages.aclose()
        if head is None:
            head = await self._head(keys)
        # A page of a newer full state may have changed or deleted a field without a trace.
        is_ahead = head.fold_to > replay.position.offset
        return None if is_ahead else replay.position


def _of_table(key: TableKey, fault: str, shard: int) -> str:
    return f"table {key.name} ({key.kind}) of shard {shard}: {fault}"


def _sum(one: NodeStats | None, other: NodeStats) -> NodeStats:
    """Return a node's numbers over the shards seen so far and one more."""
    if one is None:
        return other
    return NodeStats(
        node=one.node,
        chunks=one.chunks + other.chunks,
        deltas=one.deltas + other.deltas,
        pending_deltas=one.pending_deltas + other.pending_deltas,
        idle_ms=(
            None
            if one.idle_ms is None or other.idle_ms is None
            else min(one.idle_ms, other.idle_ms)
        ),
    )


_TRIES = 5


def _moving(keys: ShardKeys) -> BackendError:
    return BackendError(
        f"{keys.state} and {keys.log} did not fit together in {_TRIES} tries: the history is being "
        "rewritten, or the position asked for is gone"
    )
