"""What deltas need in a chunk, and what does not fit into one. No I/O."""

from __future__ import annotations

from typing import Final

from broker.errors import EncodeError
from broker.protocol.cells import size_of_cell
from broker.protocol.constants import MAX_CHUNK_BYTES, MAX_NAME_LENGTH, MAX_TABLE_DELTAS
from broker.protocol.messages import Run, TableRun
from broker.protocol.operations import OPERATIONS
from broker.protocol.table_codec import table_run_size
from broker.protocol.values import STAMP_BYTES, admit_key

# A chunk's own fields beside its runs, at most: array, version, node, three numbers, array of runs,
# check sum.
CHUNK_HEAD_BYTES: Final = 1 + 1 + (2 + MAX_NAME_LENGTH) + 3 * 9 + 5 + 5
# A run's own fields beside its columns.
RUN_BYTES: Final = 20


def size_of(run: Run) -> int:
    """Return an upper bound of a run's packed size in bytes, as its deltas were counted."""
    size = RUN_BYTES + sum(map(admit_key, run.keys))
    column = OPERATIONS[run.op].column
    size += sum(size_of_cell(column, cell) for cell in run.values or ())
    return size + STAMP_BYTES * len(run.timestamps or ())


def check_group(count: int, size: int) -> None:
    """Refuse a group that is too large to become visible at once.

    Raises:
        EncodeError: it does not fit into one chunk.
    """
    if size + RUN_BYTES + CHUNK_HEAD_BYTES > MAX_CHUNK_BYTES:
        raise EncodeError(
            f"set_many of {count} keys needs up to {size} bytes in one shard, over the limit "
            f"of {MAX_CHUNK_BYTES} that can become visible at once; split it into calls"
        )


def check_table_run(run: TableRun, what: str) -> None:
    """Refuse a run that is too large to become visible at once.

    Args:
        run: the run.
        what: "keys" or "records", for the error text.

    Raises:
        EncodeError: it does not fit into one chunk.
    """
    if run.deltas > MAX_TABLE_DELTAS:
        raise EncodeError(
            f"{run.deltas} {what} of table {run.table.name!r} in one shard are over the limit "
            f"of {MAX_TABLE_DELTAS} that can become visible at once; split them into calls"
        )
    size = table_run_size(run) + CHUNK_HEAD_BYTES
    if size > MAX_CHUNK_BYTES:
        raise EncodeError(
            f"{run.deltas} {what} of table {run.table.name!r} need up to {size} bytes in one "
            f"shard, over the limit of {MAX_CHUNK_BYTES} that can become visible at once; "
            "split them into calls"
        )
