"""Files of records, readable even if their writer was killed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import msgpack

from broker.testing.records import Record, ShardPosition

READ_BYTES = 1 << 20
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Record)}


class Journal:
    """An append-only file of records, which survive a SIGKILL of the writer.

    Args:
        path: created if missing; an existing file is appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, record: Record) -> None:
        """Append one record, in one write."""
        values = [getattr(record, name.name) for name in dataclasses.fields(record)]
        os.write(self._file, msgpack.packb([type(record).__name__, *values]))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def read_journal(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order; an incomplete last record is skipped."""
    yield from Tail(path).new()


class Tail:
    """Reads a journal that is still being written: each call returns the new records.

    Args:
        path: of a journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=0)

    def new(self) -> Iterator[Record]:
        """Yield the new records in order; an incomplete record is returned by a later call.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._path.open("rb") as file:
            file.seek(self._at)
            while data := file.read(READ_BYTES):
                self._at += len(data)
                self._unpacker.feed(data)
                for name, *values in self._unpacker:
                    kind = _KINDS[name]
                    names = [field.name for field in dataclasses.fields(kind)]
                    record: Record = kind(*map(_read, names, values))
                    yield record


def _read(name: str, value: Any) -> Any:
    if name == "place":
        return ShardPosition(*value)
    return tuple(ShardPosition(*place) for place in value) if name == "places" else value
