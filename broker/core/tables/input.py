"""The arguments of a table's calls, checked and split into runs by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from broker.core.tables.conversion import cut, numbers, refuse_missing
from broker.core.tables.index import shards_of_numbers
from broker.errors import EncodeError
from broker.protocol.messages import IdRange, TableKey, TableRun
from broker.protocol.operations import OP_RECORDS, Column, op_of_part
from broker.protocol.refusal import shown

# One shard's part of something.
Part: TypeAlias = "tuple[int, TableRun]"
Intern: TypeAlias = "Callable[[TableKey, Iterable[str]], dict[str, int] | None]"

_MIN_RANGE = 8  # below, a range of ids is longer than the ids
_RECORD_FIELDS = ("key", "value", "timestamp")


@dataclass(frozen=True, slots=True)
class KeyPart:
    """One shard's part of a column of keys.

    Attributes:
        shard: number of the shard.
        chosen: their places in the column; None: all of it.
        keys: as a run has them.
        count: how many.
    """

    shard: int
    chosen: npt.NDArray[np.int64] | None
    keys: bytes | IdRange
    count: int


class Keys:
    """Keys of one table, looked up once, to be written repeatedly.

    Valid for the producer that made it, until that is closed. `len()` is the number of keys.

    Attributes:
        owner: the buffer of that producer; the ids have a meaning only there.
    """

    __slots__ = ("_count", "owner", "parts", "table")

    def __init__(self, table: TableKey, count: int, parts: tuple[KeyPart, ...]) -> None:
        self.table = table
        self.parts = parts
        self.owner: object = None
        self._count = count

    def __len__(self) -> int:
        return self._count


def text_keys(table: TableKey, keys: Any, shards: int, intern: Intern) -> Keys | None:
    """Return text keys with their ids, new ones included; None if there is no room.

    Raises:
        EncodeError: not text, or a key that cannot be sent.
    """
    given = keys.tolist() if isinstance(keys, np.ndarray) else keys
    if isinstance(given, str):
        raise EncodeError(f"keys {shown(given)} is one text; give a list of keys")
    if isinstance(given, (set, frozenset)):
        raise EncodeError(f"keys are a {type(given).__name__}, which has no order; give a list")
    try:
        column: Sequence[str] = given if isinstance(given, list) else list(given)
        places = intern(table, column)
    except TypeError as error:
        raise EncodeError(f"keys are not a list or column of str: {error}") from None
    if places is None:
        return None
    codes = np.fromiter(map(places.__getitem__, column), dtype=np.int64, count=len(column))
    if shards == 1:
        return Keys(table, len(column), (_text_part(0, None, codes),) if len(column) else ())
    return Keys(
        table,
        len(column),
        tuple(
            _text_part(shard, chosen, codes[chosen] // shards)
            for shard, chosen in _by_shard(codes % shards)
        ),
    )


def _text_part(
    shard: int, chosen: npt.NDArray[np.int64] | None, ids: npt.NDArray[np.int64]
) -> KeyPart:
    first, count = int(ids[0]), ids.size
    if count >= _MIN_RANGE and (np.diff(ids) == 1).all():
        return KeyPart(shard, chosen, IdRange(first, count), count)
    return KeyPart(shard, chosen, ids.astype("<u4").tobytes(), count)


def number_keys(table: TableKey, keys: Any, shards: int) -> Keys:
    """Return u64 keys by shard.

    Raises:
        EncodeError: not a column of whole numbers from 0 to 2^64 - 1.
    """
    column = numbers("keys", keys, np.dtype("<u8"))
    if column.ndim == 0:
        raise EncodeError(f"keys are one number, {column}; give a list of keys")
    if not column.size:
        return Keys(table, 0, ())
    if shards == 1:
        return Keys(table, column.size, (KeyPart(0, None, column.tobytes(), column.size),))
    return Keys(
        table,
        column.size,
        tuple(
            KeyPart(shard, chosen, column[chosen].tobytes(), chosen.size)
            for shard, chosen in _by_shard(shards_of_numbers(column, shards))
        ),
    )


def column_runs(op: int, keys: Keys, values: Any, timestamps: Any) -> list[Part]:
    """Return runs for keys and as many values and timestamps, one number for all, or None.

    Raises:
        EncodeError: another type, shape or length than the keys and the table ask for.
    """
    kind = np.dtype("<f8" if keys.table.is_float else "<i8")
    given = None
    if op_of_part(op).column is not Column.NOTHING:
        given = _as_long(keys, "values", numbers("values", values, kind))
    stamps = None
    if timestamps is not None:
        stamps = _as_long(keys, "timestamps", numbers("timestamps", timestamps, np.dtype("<i8")))
    return [
        (
            part.shard,
            TableRun(op, keys.table, part.keys, _chosen(part, given), _chosen(part, stamps)),
        )
        for part in keys.parts
    ]


def record_runs(table: TableKey, records: Any, shards: int) -> list[Part]:
    """Return runs for records of 24 bytes: key u64, value float64 or int64, timestamp int64.

    Raises:
        EncodeError: another layout, or not whole records.
    """
    if table.is_named:
        raise EncodeError("records have u64 keys; use table(..., keys=int)")
    data = _record_bytes(records, _layout(table))
    if not data:
        return []
    if shards == 1:
        return [(0, TableRun(OP_RECORDS, table, data))]
    column = np.frombuffer(data, dtype=_layout(table))
    return [
        (shard, TableRun(OP_RECORDS, table, column[chosen].tobytes()))
        for shard, chosen in _by_shard(shards_of_numbers(column["key"].copy(), shards))
    ]


def _layout(table: TableKey) -> np.dtype[Any]:
    value = "<f8" if table.is_float else "<i8"
    return np.dtype(list(zip(_RECORD_FIELDS, ("<u8", value, "<i8"), strict=True)))


def _record_bytes(records: Any, layout: np.dtype[Any]) -> bytes:
    """Return the bytes of records, of which the type says that they have the layout or are raw."""
    refuse_missing("records", records)
    if isinstance(records, (np.ndarray, np.generic)):
        column = np.asarray(records)
    else:
        try:
            column = np.asarray(memoryview(records))
        except (TypeError, ValueError):
            raise EncodeError(
                f"records are a {type(records).__name__}; give a structured array, or a buffer of "
                f"records of {layout.itemsize} bytes"
            ) from None
    if not column.size:
        return b""
    if column.ndim > 1:
        raise EncodeError(f"records have {column.ndim} dimensions; give one column")
    is_raw = column.dtype.kind in "iuS" and column.dtype.itemsize == 1
    if column.dtype != layout and not is_raw:
        raise EncodeError(
            f"records have the layout {cut(column.dtype)}; the table takes {layout}, or the bytes "
            "of such records"
        )
    data = column.tobytes()
    if len(data) % layout.itemsize:
        raise EncodeError(f"{len(data)} bytes are not whole records of {layout.itemsize} bytes")
    return data


def _by_shard(shards: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    return [(int(one), np.flatnonzero(shards == one)) for one in np.unique(shards)]


def _chosen(part: KeyPart, column: npt.NDArray[Any] | None) -> bytes | None:
    if column is None:
        return None
    return (column if part.chosen is None else column[part.chosen]).tobytes()


def _as_long(keys: Keys, what: str, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if column.ndim == 0:
        return np.full(len(keys), column)
    if column.shape != (len(keys),):
        raise EncodeError(f"{what} have the shape {column.shape}; there are {len(keys)} keys")
    return column
