"""Writing a table: what both faces of the producer share, and the asyncio face."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from broker.core.buffer import ProducerBuffer
from broker.core.tables.input import Keys, Part, column_runs, number_keys, record_runs, text_keys
from broker.errors import EncodeError
from broker.protocol.messages import TableKey, TableRun
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET


class Engine(Protocol):
    """What a table needs of its producer."""

    @property
    def shards(self) -> int:
        """How many shards the namespace has."""

    @property
    def buffer(self) -> ProducerBuffer:
        """Where deltas go, if this producer can still write."""

    def add_table_run(self, shard: int, run: TableRun) -> bool:
        """Buffer one run from any thread; false if there is no room."""

    async def make_room(self, retry: Callable[[], bool]) -> None:
        """Do what the policy says about a full buffer, until `retry` finds room."""


class TableInput:
    """Turns calls into runs; none of it waits."""

    def __init__(self, engine: Engine, table: TableKey) -> None:
        self.engine = engine
        self.table = table

    def find(self, keys: Any, found: list[Keys]) -> bool:
        """Put the keys, looked up, behind `found`; false if there is no room for new ones."""
        buffer = self.engine.buffer
        if isinstance(keys, Keys):
            one: Keys | None = self._own(keys, buffer)
        elif self.table.is_named:
            one = text_keys(self.table, keys, self.engine.shards, buffer.intern)
        else:
            one = number_keys(self.table, keys, self.engine.shards)
        if one is not None:
            one.owner = buffer
            found.append(one)
        return one is not None

    def _own(self, keys: Keys, buffer: ProducerBuffer) -> Keys:
        if keys.table != self.table:
            raise EncodeError(
                f"keys of table {keys.table.name!r} ({keys.table.kind}) used for table "
                f"{self.table.name!r} ({self.table.kind}); look them up with its own keys()"
            )
        if keys.owner is not buffer:
            raise EncodeError(
                f"keys of table {keys.table.name!r} were looked up by another producer, whose ids "
                "mean nothing here; look them up with this producer's keys()"
            )
        return keys

    def runs(self, op: int, keys: Keys, values: Any, timestamps: Any) -> list[Part]:
        """Return the runs of one call, checked as a whole before any of it is buffered."""
        return self._checked(column_runs(op, keys, values, timestamps), "keys")

    def records(self, records: Any) -> list[Part]:
        """Likewise for records."""
        return self._checked(record_runs(self.table, records, self.engine.shards), "records")

    def _checked(self, parts: list[Part], what: str) -> list[Part]:
        for _, run in parts:
            self.engine.buffer.check_table_run(run, what)
        return parts


class TableWriter:
    """Writes one table: keys to float64 or int64, with a timestamp where wanted.

    Every call buffers and returns; the promises are the producer's. What one call writes becomes
    visible at once in each shard. Made by `Producer.table`.
    """

    def __init__(self, engine: Engine, table: TableKey) -> None:
        self._engine = engine
        self._input = TableInput(engine, table)

    async def keys(self, keys: Any) -> Keys:
        """Look keys up once, to write them again and again.

        Args:
            keys: a list or array of str or u64, as the table has them; the order is kept, and a key
                may occur again.

        Raises:
            EncodeError: a key cannot be one.
            BufferFullError: no room (in time) for what has to be said of new keys.
        """
        found: list[Keys] = []
        if not self._input.find(keys, found):
            await self._engine.make_room(partial(self._input.find, keys, found))
        return found[0]

    async def set_many(self, keys: Any, values: Any, timestamps: Any = None) -> None:
        """Set keys to numbers.

        Args:
            keys: from `keys()`, or a list or array of str or u64.
            values: an array (or list) as long, or one number for all.
            timestamps: int64, likewise; None: none, they read as 0.

        Raises:
            EncodeError: wrong type, shape or range; over 4 MiB in one shard. Nothing was buffered.
            BufferFullError: no room (in time).
            FencedError, ClosedError: this producer cannot write any more.
        """
        await self._write(OP_SET, keys, values, timestamps)

    async def increment_many(self, keys: Any, amounts: Any, timestamps: Any = None) -> None:
        """Add to keys, an absent one counts as 0. Arguments and errors as `set_many`.

        An int64 that would leave its range stays as it is; every replica counts that as refused.
        """
        await self._write(OP_INCREMENT, keys, amounts, timestamps)

    async def delete_many(self, keys: Any) -> None:
        """Remove keys; removing an absent one is no error. Raises as `set_many`."""
        await self._write(OP_DELETE, keys, None, None)

    async def set_records(self, records: Any) -> None:
        """Set keys from 24-byte records: key u64, value float64 or int64, timestamp int64.

        Args:
            records: a structured array with these fields, or a buffer of such records, all
                little-endian. They are passed on as they are.

        Raises:
            EncodeError: another layout; else as `set_many`.
        """
        await self._add(self._input.records(records))

    async def set(self, key: str | int, value: float, timestamp: int | None = None) -> None:
        """Set one key; for many a second use `set_many`. Raises as `set_many`."""
        await self._write(OP_SET, [key], value, timestamp)

    async def increment(
        self, key: str | int, amount: float = 1, timestamp: int | None = None
    ) -> None:
        """Add to one key. Raises as `set_many`."""
        await self._write(OP_INCREMENT, [key], amount, timestamp)

    async def delete(self, key: str | int) -> None:
        """Remove one key. Raises as `set_many`."""
        await self._write(OP_DELETE, [key], None, None)

    async def _write(self, op: int, keys: Any, values: Any, timestamps: Any) -> None:
        found = await self.keys(keys)
        await self._add(self._input.runs(op, found, values, timestamps))

    async def _add(self, parts: list[Part]) -> None:
        for part in parts:
            if not self._engine.add_table_run(*part):
                await self._engine.make_room(partial(self._engine.add_table_run, *part))
