"""A replica's view of a table: arrays without a copy, single keys, and whole copies."""

from __future__ import annotations

import sys
from collections.abc import Callable, ItemsView, Iterable, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from broker.core.tables.conversion import numbers
from broker.core.tables.index import NameIndex, shards_of_numbers
from broker.core.tables.shard import ShardTables
from broker.core.tables.table import Table
from broker.errors import ConfigError, EncodeError
from broker.protocol.messages import TableKey
from broker.protocol.names import shard_of
from broker.protocol.refusal import shown
from broker.runtime.copying import CopyableMapping

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TableCopy:
    """A table at one moment: its keys that hold a value, in columns.

    Attributes:
        keys: list of str, or array of u64.
        values: float64 or int64.
        timestamps: int64, 0 where none was given.
    """

    keys: list[str] | npt.NDArray[np.uint64]
    values: npt.NDArray[Any]
    timestamps: npt.NDArray[np.int64]


class TableOp:
    """One shard's part of a table, as arrays by slot: the replica's own, read-only, not copied.

    They change at any time: read values that belong together within `TableView.read`. When a table
    grows, it gets new arrays, so read these attributes again instead of keeping the arrays.
    """

    def __init__(self, table: Table, check_fork: Callable[[], object] = lambda: None) -> None:
        self._current = table
        self._check_fork = check_fork

    @property
    def _table(self) -> Table:
        # In a forked child nothing changes the arrays any more.
        self._check_fork()
        return self._current

    @property
    def keys(self) -> list[str] | npt.NDArray[np.uint64]:
        """The key of each slot; slots are never given to another key. Text keys are a copy."""
        keys = self._table.index.keys
        return keys.copy() if isinstance(keys, list) else _read_only(keys)

    @property
    def values(self) -> npt.NDArray[Any]:
        """The value of each slot; 0 where there is none."""
        return _read_only(self._table.values[: len(self._table.index)])

    @property
    def timestamps(self) -> npt.NDArray[np.int64] | None:
        """The timestamp of each slot; None as long as none was ever given."""
        stamps = self._table.timestamps
        return None if stamps is None else _read_only(stamps[: len(self._table.index)])

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which slots hold a value; those of deleted keys do not."""
        return _read_only(self._table.present[: len(self._table.index)])

    @property
    def revision(self) -> int:
        """Grows with every batch that changed this part."""
        return self._table.revision

    def slots(self, keys: Any) -> npt.NDArray[np.int64]:
        """Return the slot of each key, -1 where it has none; valid until the next load.

        Raises:
            EncodeError: these are not keys, or a table of u64 keys was asked for other keys than
                whole numbers.
        """
        index = self._table.index
        if isinstance(index, NameIndex):
            if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
                raise EncodeError(f"keys is {shown(keys)}; give a list or array of str")
            return index.find_all(keys)
        return index.find_all(np.atleast_1d(numbers("keys", keys, np.dtype("<u8"))))

    def __len__(self) -> int:
        """How many keys hold a value."""
        return len(self._table)


class TableView(CopyableMapping[Any, Any]):
    """A replica's live copy of one table, as a mapping and as arrays.

    Single keys are read without waiting. Reads of many (`copy`, iteration, `to_pandas`) show one
    moment. Made by `Replica.table`; empty until the table is written.
    """

    def __init__(
        self,
        table: TableKey,
        shards: Callable[[], list[ShardTables]],
        read: Callable[[Callable[[], Any]], Any],
        check_fork: Callable[[], object] = lambda: None,
    ) -> None:
        self._check_fork = check_fork
        self._key = table
        self._shards = shards
        self._read = read

    @property
    def name(self) -> str:
        """The table's name."""
        return self._key.name

    @property
    def kind(self) -> str:
        """The types of keys and values: "str-f64", "str-i64", "u64-f64" or "u64-i64"."""
        return self._key.kind

    @property
    def parts(self) -> tuple[TableOp, ...]:
        """The arrays, one part for each shard that has keys of the table."""
        return tuple(TableOp(table, self._check_fork) for table in self._tables())

    def _tables(self) -> list[Table]:
        found = [shard.get(self._key) for shard in self._shards()]
        return [table for table in found if table is not None]

    def read(self, look: Callable[[TableView], T]) -> T:
        """Call `look` between two batches, so that it sees one moment, and return its result.

        It may read everything of the same replica, for example two tables at one moment. Keep it
        short, and copy what you keep: no batch is applied while it runs. What waits for the replica
        raises `ReentrantError` in it.

        Args:
            look: called with this view.
        """
        if not callable(look):
            raise ConfigError([f"look={shown(look)}; allowed: a function of one argument"])
        return self._read(lambda: look(self))  # type: ignore[no-any-return]

    def copy(self) -> TableCopy:
        """Return keys, values and timestamps of one moment."""
        return self._read(self._copied)  # type: ignore[no-any-return]

    def _copied(self) -> TableCopy:
        keys: list[Any] = []
        values: list[npt.NDArray[Any]] = []
        stamps: list[npt.NDArray[np.int64]] = []
        for table in self._tables():
            slots = np.flatnonzero(table.present[: len(table.index)])
            if isinstance(table.index, NameIndex):
                names = table.index.keys
                # Most of the time the index holds exactly the keys that are asked for.
                whole = slots.size == len(names)
                keys += names if whole else [names[slot] for slot in slots.tolist()]
            else:
                keys.append(table.index.keys[slots])
            values.append(table.values[slots])
            stamps.append(
                np.zeros(slots.size, dtype=np.int64)
                if table.timestamps is None
                else table.timestamps[slots]
            )
        kind = np.float64 if self._key.is_float else np.int64
        return TableCopy(
            keys if self._key.is_named else _joined(keys, np.uint64),
            _joined(values, kind),
            _joined(stamps, np.int64),
        )

    def _slot(self, key: Any) -> tuple[Table, int] | None:
        shards = self._shards()
        # A span of time is an integer to numpy.
        if isinstance(key, (bool, np.timedelta64)) or not isinstance(key, (str, int, np.integer)):
            return None
        if not shards:
            return None
        if isinstance(key, str) != self._key.is_named:
            return None
        if isinstance(key, str):
            shard = shard_of(key, len(shards))
        elif not 0 <= key < 1 << 64:
            return None
        else:
            shard = int(shards_of_numbers(np.array([key], dtype=np.uint64), len(shards))[0])
        table = shards[shard].get(self._key)
        slot = None if table is None else table.index.find(key)
        # A batch that is being applied may have given the slot before the arrays grew.
        if table is None or slot is None or slot >= table.present.size or not table.present[slot]:
            return None
        return table, slot

    def __getitem__(self, key: str | int) -> float | int:
        """Return a key's value.

        Raises:
            KeyError: absent.
            NotLoadedError: the replica never loaded the state yet.
            DecodeError: a part of the table could not be read in the full state; see the health.
            ForkedError: the replica belongs to the process that forked this one.
        """
        found = self._slot(key)
        if found is not None:
            table, slot = found
            value = table.values[slot].item()
            # It may have been deleted in between, which leaves 0.
            if table.present[slot]:
                return value  # type: ignore[no-any-return]
        return self._kept(key, sys._getframe(1))  # type: ignore[no-any-return] # noqa: SLF001

    def timestamp(self, key: str | int) -> int:
        """Return a key's timestamp, 0 where none was given. Raises as reading the value does."""
        found = self._slot(key)
        if found is None:
            raise KeyError(key)
        stamps = found[0].timestamps
        return 0 if stamps is None else int(stamps[found[1]])

    def _at_one_moment(self) -> dict[Any, Any]:
        copy = self.copy()
        keys = copy.keys if isinstance(copy.keys, list) else copy.keys.tolist()
        return dict(zip(keys, copy.values.tolist(), strict=True))

    def items(self) -> ItemsView[Any, Any]:
        """Return keys and values of one moment, as a copy."""
        return self._at_one_moment().items()

    def values(self) -> ValuesView[Any]:
        """Return the values of one moment, as a copy."""
        return self._at_one_moment().values()

    def __len__(self) -> int:
        """How many keys hold a value."""
        return sum(map(len, self._tables()))

    def to_pandas(self) -> pd.DataFrame:
        """Return one moment as a DataFrame: index key, columns value and timestamp.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd  # noqa: PLC0415 - only if asked for

        copy = self.copy()
        return pd.DataFrame(
            {"value": copy.values, "timestamp": copy.timestamps},
            index=pd.Index(copy.keys, name="key"),
        )

    def to_arrow(self) -> pa.Table:
        """Return one moment as an Arrow table: columns key, value and timestamp.

        Raises:
            ImportError: pyarrow is not installed.
        """
        import pyarrow as pa  # noqa: PLC0415 - only if asked for

        copy = self.copy()
        # The type of no keys could not be told from them.
        keys = pa.array(copy.keys, type=pa.string() if self._key.is_named else pa.uint64())
        return pa.table({"key": keys, "value": copy.values, "timestamp": copy.timestamps})


def _read_only(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = column.view()
    view.flags.writeable = False
    return view


def _joined(columns: list[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate(columns) if columns else np.zeros(0, dtype=kind)
