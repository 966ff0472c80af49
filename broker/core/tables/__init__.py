"""Tables: keys to float64 or int64, in columns from the producer's array to the replica's. No I/O.

A shard holds any number of them beside its keys and values. A key of a table has a slot, its place
in the table's arrays. Slots are numbered in the order in which keys first occur in the history, so
they are the same in every replica and in the full state. A producer sends each text key once;
after that its chunks carry ids.

Everything here but this module needs numpy, which is an extra.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from broker.errors import NumpyMissingError

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables

HAS_NUMPY = find_spec("numpy") is not None


def new_tables(*, tracks: bool = False) -> ShardTables | None:
    """Return an empty shard's tables; None without numpy."""
    return made_tables(tracks=tracks) if HAS_NUMPY else None


def made_tables(*, tracks: bool = False) -> ShardTables:
    """Return an empty shard's tables.

    Raises:
        NumpyMissingError: numpy is not installed.
    """
    need_numpy()
    from broker.core.tables.shard import ShardTables  # noqa: PLC0415 - needs numpy

    return ShardTables(tracks=tracks)


def need_numpy() -> None:
    """Raise with the command to install numpy if it is missing.

    Raises:
        NumpyMissingError: with the command.
    """
    if not HAS_NUMPY:
        raise NumpyMissingError
