"""Writing a table from ordinary, threaded code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.core.tables.input import Keys
from broker.engine.producer import ProducerEngine, Retry
from broker.engine.table_input import TableInput
from broker.protocol.messages import TableKey
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.sync.loop_thread import LoopThread


class TableWriter:
    """Writes one table: keys to float64 or int64, with optional timestamps.

    Every call buffers and returns; the promises are the producer's, and it may be used from many
    threads. What one call writes becomes visible at once in each shard. Made by `Producer.table`.
    """

    def __init__(
        self, producer: object, engine: ProducerEngine, thread: LoopThread, table: TableKey
    ) -> None:
        # A producer that is used through this only must not be closed as forgotten.
        self._producer = producer
        self._engine = engine
        self._thread = thread
        self._input = TableInput(engine, table)

    def keys(self, keys: Any) -> Keys:
        """Look keys up once, to write them repeatedly.

        Args:
            keys: a list or array of str or u64, as the table has them; the order is kept, and a key
                may occur again.

        Raises:
            EncodeError: a key is not valid.
            BufferFullError: no room (in time) to define new keys.
        """
        found: list[Keys] = []
        self._end(self._input.look_up(keys, found))
        return found[0]

    def set_many(self, keys: Any, values: Any, timestamps: Any = None) -> None:
        """Set keys to numbers.

        Args:
            keys: from `keys()`, or a list or array of str or u64.
            values: an array (or list) as long, or one number for all.
            timestamps: int64, likewise; None: none, they read as 0.

        Raises:
            EncodeError: wrong type, shape or range; over 4 MiB in one shard. Nothing was buffered.
            BufferFullError: no room (in time).
            FencedError, ClosedError, ForkedError: this producer cannot write any more.
        """
        self._end(self._input.write(OP_SET, keys, values, timestamps))

    def increment_many(self, keys: Any, amounts: Any, timestamps: Any = None) -> None:
        """Add to keys, an absent one counts as 0. Arguments and errors as `set_many`.

        An int64 that would leave its range stays as it is; every replica counts that as refused.
        """
        self._end(self._input.write(OP_INCREMENT, keys, amounts, timestamps))

    def delete_many(self, keys: Any) -> None:
        """Remove keys; removing an absent one is no error. Raises as `set_many`."""
        self._end(self._input.write(OP_DELETE, keys, None, None))

    def set_records(self, records: Any) -> None:
        """Set keys from 24-byte records: key u64, value float64 or int64, timestamp int64.

        Args:
            records: a structured array with these fields, or a buffer of such records, all
                little-endian. They are passed on as they are.

        Raises:
            EncodeError: another layout; else as `set_many`.
        """
        self._end(self._input.write_records(records))

    def set(self, key: str | int, value: float, timestamp: int | None = None) -> None:
        """Set one key; `set_many` is faster for many. Raises as `set_many`."""
        self._end(self._input.write(OP_SET, [key], value, timestamp))

    def increment(self, key: str | int, amount: float = 1, timestamp: int | None = None) -> None:
        """Add to one key. Raises as `set_many`."""
        self._end(self._input.write(OP_INCREMENT, [key], amount, timestamp))

    def delete(self, key: str | int) -> None:
        """Remove one key. Raises as `set_many`."""
        self._end(self._input.write(OP_DELETE, [key], None, None))

    def _end(self, retries: Iterable[Retry]) -> None:
        for retry in retries:
            self._thread.call(self._engine.wait_for_room(retry))
