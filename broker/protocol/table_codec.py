"""Encode and decode the part of a chunk for tables, by the rules of PROTOCOL.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from broker.errors import DecodeError
from broker.protocol.constants import RECORD_BYTES, TABLE_KINDS
from broker.protocol.messages import IdRange, TableDefine, TableKey, TableOp, TableRun
from broker.protocol.names import is_name
from broker.protocol.operations import OP_DEFINE, TABLE_PARTS, Column, Form, op_of_part
from broker.protocol.refusal import shown

ID_BYTES = 4
NUMBER_BYTES = 8
MAX_IDS = 1 << 32
HEAD_BYTES = 2 + 2 + 64 + 8 + 3 * 5  # maximum size of a run without its columns

_PART_FIELDS = 6


def table_run_size(run: TableRun) -> int:
    """Return an upper bound of the packed size in bytes of a run."""
    columns = (run.keys, run.values, run.timestamps)
    return HEAD_BYTES + sum(len(one) for one in columns if type(one) is bytes) + 2 * NUMBER_BYTES


def packed_part(part: TableOp) -> list[Any]:
    """Return a define or a run as the array that is packed."""
    if isinstance(part, TableDefine):
        return [OP_DEFINE, part.table.name, part.table.kind, part.keys, part.first, None]
    keys = list(part.keys) if isinstance(part.keys, IdRange) else part.keys
    return [part.op, part.table.name, part.table.kind, keys, part.values, part.timestamps]


def merged(runs: list[TableRun]) -> list[TableRun]:
    """Merge consecutive runs of the same table, operation and form; the order is kept.

    Tables are independent, so runs of other tables in between do not matter.
    """
    groups: dict[TableKey, list[list[TableRun]]] = {}
    for run in runs:
        series = groups.setdefault(run.table, [])
        if series and _fit(series[-1][-1], run):
            series[-1].append(run)
        else:
            series.append([run])
    return [_joined(group) for series in groups.values() for group in series]


def _fit(run: TableRun, more: TableRun) -> bool:
    if run.op != more.op or (run.timestamps is None) != (more.timestamps is None):
        return False
    if isinstance(run.keys, IdRange) and isinstance(more.keys, IdRange):
        return run.keys.first + run.keys.size == more.keys.first
    return type(run.keys) is type(more.keys)


def _joined(group: list[TableRun]) -> TableRun:
    first = group[0]
    if len(group) == 1:
        return first
    keys: bytes | IdRange
    if isinstance(first.keys, IdRange):
        keys = IdRange(first.keys.first, sum(run.deltas for run in group))
    else:
        keys = b"".join([run.keys for run in group if isinstance(run.keys, bytes)])
    return TableRun(
        first.op,
        first.table,
        keys,
        _all(run.values for run in group),
        _all(run.timestamps for run in group),
    )


def _all(columns: Iterable[bytes | None]) -> bytes | None:
    found = [column for column in columns if column is not None]
    return b"".join(found) if found else None


def checked_part(part: Any, check_keys: Callable[[Any], None]) -> TableOp:
    """Decode a define or a run; `check_keys` checks a column of text keys.

    Raises:
        DecodeError: a rule is broken; the whole part for tables must be skipped.
    """
    if type(part) is not list or len(part) < _PART_FIELDS:
        raise DecodeError("a part for tables is not an array of at least 6")
    op, name, kind, keys, values, timestamps = part[:_PART_FIELDS]
    if not (type(name) is str and is_name(name)) or kind not in TABLE_KINDS:
        raise DecodeError(f"no such kind of table: {shown(name)} {shown(kind)}")
    table = TableKey(name, kind)
    known = TABLE_PARTS.get(op) if type(op) is int else None
    if known is None:
        raise DecodeError(f"unknown operation {shown(op)} on a table")
    if known.form is Form.DEFINE:
        return _define(table, keys, values, check_keys)
    if known.form is Form.RECORDS:
        return _records(op, table, keys, values, timestamps)
    return _columns(op, table, keys, values, timestamps)


def _define(
    table: TableKey, keys: Any, first: Any, check_keys: Callable[[Any], None]
) -> TableDefine:
    if not table.is_named or type(first) is not int or first < 0:
        raise DecodeError("ids are defined from 0 on, for tables with text keys")
    check_keys(keys)
    if first + len(keys) > MAX_IDS:
        raise DecodeError(f"more than {MAX_IDS} ids")
    return TableDefine(table, first, keys)


def _records(op: int, table: TableKey, keys: Any, values: Any, timestamps: Any) -> TableRun:
    if table.is_named or values is not None or timestamps is not None:
        raise DecodeError("records are for tables with number keys, and hold everything")
    _count(keys, RECORD_BYTES)
    return TableRun(op, table, keys)


def _columns(op: int, table: TableKey, keys: Any, values: Any, timestamps: Any) -> TableRun:
    if type(keys) is list:
        keys = _range(table, keys)
        count = keys.size
    else:
        count = _count(keys, ID_BYTES if table.is_named else NUMBER_BYTES)
    known = op_of_part(op)
    if known.column is Column.NOTHING:
        if values is not None:
            raise DecodeError(f"{known.name} run of a table with values")
    elif type(values) is not bytes or len(values) != count * NUMBER_BYTES:
        raise DecodeError("a table's columns of keys and values differ in length")
    if timestamps is not None and (
        type(timestamps) is not bytes or len(timestamps) != count * NUMBER_BYTES
    ):
        raise DecodeError("a table's column of timestamps is not as long as its keys")
    return TableRun(op, table, keys, values, timestamps)


def _range(table: TableKey, pair: list[Any]) -> IdRange:
    if (
        not table.is_named
        or len(pair) != 2  # noqa: PLR2004 - first and count
        or any(type(one) is not int for one in pair)
        or pair[0] < 0
        or pair[1] < 1
        or sum(pair) > MAX_IDS
    ):
        raise DecodeError("a range of ids is not a first id and a count")
    return IdRange(*pair)


def _count(column: Any, size: int) -> int:
    if type(column) is not bytes or not column or len(column) % size:
        raise DecodeError(f"a table's column of keys is not a multiple of {size} bytes")
    return len(column) // size
