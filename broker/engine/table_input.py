"""The engine of both table writers: it turns calls into runs, and buffers them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from broker.core.buffer import ProducerBuffer
from broker.core.chunk_size import check_table_run
from broker.core.tables.input import Keys, Part, column_runs, number_keys, record_runs, text_keys
from broker.engine.producer import ProducerEngine, Retry
from broker.errors import EncodeError
from broker.protocol.messages import TableKey


class TableInput:
    """Writes one table from any thread; never waits, and yields a retry for what had no room.

    Args:
        engine: of the producer.
        table: which table.
    """

    def __init__(self, engine: ProducerEngine, table: TableKey) -> None:
        self._engine = engine
        self._table = table

    def look_up(self, keys: Any, found: list[Keys]) -> Iterator[Retry]:
        """Put the keys, looked up, behind `found`; yield it if there is no room for new ones."""
        if not self.find(keys, found):
            yield lambda: self.find(keys, found)

    def find(self, keys: Any, found: list[Keys]) -> bool:
        """Put the keys, looked up, behind `found`; false if there is no room for new ones."""
        buffer = self._engine.buffer
        buffer.admit_table(self._table)
        if isinstance(keys, Keys):
            one: Keys | None = self._own(keys, buffer)
        elif self._table.is_named:
            one = text_keys(self._table, keys, self._engine.shards, buffer.intern)
        else:
            one = number_keys(self._table, keys, self._engine.shards)
        if one is not None:
            one.owner = buffer
            found.append(one)
        return one is not None

    def _own(self, keys: Keys, buffer: ProducerBuffer) -> Keys:
        if keys.table != self._table:
            raise EncodeError(
                f"keys of table {keys.table.name!r} ({keys.table.kind}) used for table "
                f"{self._table.name!r} ({self._table.kind}); look them up with its own keys()"
            )
        if keys.owner is not buffer:
            raise EncodeError(
                f"keys of table {keys.table.name!r} were looked up by another producer, whose ids "
                "are not valid here; look them up with this producer's keys()"
            )
        return keys

    def write(self, op: int, keys: Any, values: Any, timestamps: Any) -> Iterator[Retry]:
        """Buffer one call, checked as a whole before; yield a retry for each run without room.

        Args:
            op: the operation.
            keys: looked up or not.
            values: as `TableWriter.set_many` takes them; None for deletes.
            timestamps: likewise.
        """
        found: list[Keys] = []
        yield from self.look_up(keys, found)
        yield from self._engine.put_table_runs(self.runs(op, found[0], values, timestamps))

    def write_records(self, records: Any) -> Iterator[Retry]:
        """Likewise for records."""
        self._engine.buffer.admit_table(self._table)
        parts = record_runs(self._table, records, self._engine.shards)
        yield from self._engine.put_table_runs(self._checked(parts, "records"))

    def runs(self, op: int, keys: Keys, values: Any, timestamps: Any) -> list[Part]:
        """Return the runs of one call, each with its shard."""
        return self._checked(column_runs(op, keys, values, timestamps), "keys")

    def _checked(self, parts: list[Part], what: str) -> list[Part]:
        for _, run in parts:
            check_table_run(run, what)
        return parts
