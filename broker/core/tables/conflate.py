"""Leaving deltas out of a chunk that a newer delta in it overwrites."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from broker.protocol.constants import RECORD_BYTES
from broker.protocol.messages import IdRange, TableKey, TableRun
from broker.protocol.operations import OP_RECORDS, op_of_part
from broker.protocol.table_codec import table_run_size


def conflated(runs: list[TableRun]) -> list[TableRun]:
    """Return runs without the deltas that a newer set or delete of their key overwrites."""
    kept: list[TableRun] = []
    overwritten: dict[TableKey, npt.NDArray[np.uint64]] = {}
    for run in reversed(runs):
        keys = _keys(run)
        later = overwritten.get(run.table)
        # np.unique finds the first of each key, so from the end it finds the last.
        distinct, last = np.unique(keys[::-1], return_index=True)
        if op_of_part(run.op).overwrites:
            chosen = np.zeros(keys.size, dtype=np.bool_)
            chosen[keys.size - 1 - last] = True
            overwritten[run.table] = distinct if later is None else np.union1d(later, distinct)
        else:
            chosen = np.ones(keys.size, dtype=np.bool_)
        if later is not None:
            chosen &= ~np.isin(keys, later)
        if chosen.all():
            kept.append(run)
        elif chosen.any():
            picked = _select(run, chosen)
            # A range of ids may need less than most of its ids.
            kept.append(picked if table_run_size(picked) <= table_run_size(run) else run)
    return kept[::-1]


def _keys(run: TableRun) -> npt.NDArray[np.uint64]:
    if isinstance(run.keys, IdRange):
        return np.arange(run.keys.first, run.keys.first + run.keys.size, dtype=np.uint64)
    if run.op == OP_RECORDS:
        return np.frombuffer(run.keys, dtype="<u8").reshape(-1, RECORD_BYTES // 8)[:, 0]
    return np.frombuffer(run.keys, dtype="<u4" if run.table.is_named else "<u8").astype(np.uint64)


def _select(run: TableRun, chosen: npt.NDArray[np.bool_]) -> TableRun:
    if isinstance(run.keys, IdRange):
        keys = (np.flatnonzero(chosen) + run.keys.first).astype("<u4").tobytes()
    else:
        keys = _rows(run.keys, chosen)
    return TableRun(
        *(run.op, run.table, keys),
        None if run.values is None else _rows(run.values, chosen),
        None if run.timestamps is None else _rows(run.timestamps, chosen),
    )


def _rows(column: bytes, chosen: npt.NDArray[np.bool_]) -> bytes:
    rows: npt.NDArray[Any] = np.frombuffer(column, np.uint8).reshape(chosen.size, -1)
    return rows[chosen].tobytes()
