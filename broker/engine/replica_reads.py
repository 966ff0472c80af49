"""The reads of both replica faces: a mapping that never touches the network."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, ItemsView, ValuesView
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from broker.core.tables import need_numpy
from broker.core.tables.kinds import table_key
from broker.engine.moment import MomentItems, MomentValues
from broker.engine.replica import ReplicaEngine
from broker.errors import DecodeError, NotLoadedError, UnreadableValueError
from broker.model import Health, Status
from broker.protocol.cells import readable
from broker.protocol.messages import Cell, Position, TableKey
from broker.protocol.names import shard_of
from broker.protocol.packed import unpacked
from broker.runtime.copying import CopyableMapping
from broker.stats.replica import ReplicaStats

if TYPE_CHECKING:
    from broker.engine.table_view import TableView

T = TypeVar("T")


class ReplicaReads(CopyableMapping[str, Any]):
    """The part of a replica that never waits for Redis.

    Args:
        engine: of the replica.
    """

    def __init__(self, engine: ReplicaEngine) -> None:
        self._engine = engine
        self._shards = engine.followed

    @abstractmethod
    def _at_once(self, read: Callable[[], T]) -> T:
        """Call a function that has to see one moment, not half of a batch."""

    @abstractmethod
    def _loaded(self, read: Callable[[], T]) -> T:
        """Call a function; if it raises `NotLoadedError`, wait for the first load if possible."""

    @property
    def namespace(self) -> str:
        """The state it follows."""
        return self._engine.namespace

    def __getitem__(self, key: str) -> Any:
        """Return a key's value; a list or map is the caller's own, so changes to it stay there.

        Raises:
            KeyError: absent.
            UnreadableValueError: its writer packed what is no value of ours.
            NotLoadedError: the state was never loaded yet; `wait_live` waits for that.
            ForkedError: the replica belongs to the process that forked this one.
        """
        shards = self._shards
        try:
            # The frequent case without a call: each would cost a tenth of the read.
            number = shard_of(key, len(shards)) if len(shards) > 1 else 0
            cell = shards[number].content.values[key]
        except (LookupError, TypeError, AttributeError):
            cell = self._cell_or_kept(key, sys._getframe(1))  # noqa: SLF001 - as `_kept` asks
        if type(cell) is not bytes:
            return cell
        try:
            return unpacked(cell)
        except DecodeError as error:
            node = self._engine.unreadable.note_one(key, error)
            raise UnreadableValueError(key, error, node) from None

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key, whatever its value.

        Raises:
            NotLoadedError, ForkedError: as reading it.
        """
        try:
            self._cell_or_kept(key, sys._getframe(1))  # noqa: SLF001 - as `_kept` asks
        except KeyError:
            return False
        return True

    def _cell_or_kept(self, key: Any, caller: FrameType) -> Cell:
        """Return the cell of a key that has one, or had one when the caller began to copy.

        Raises:
            KeyError, NotLoadedError, ForkedError: as reading it.
        """
        try:
            return self._engine.cell(key)
        except NotLoadedError:
            return self._loaded(lambda: self._engine.cell(key))
        except KeyError:
            return self._kept(key, caller)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        """How many keys there are. Raises as reading one, but for `KeyError`."""
        return self._loaded(self._engine.count)

    def _at_one_moment(self) -> dict[str, Any]:
        # Cells, as `_kept` returns them; `__getitem__` reads each.
        return self._read(self._engine.snapshot)[0]

    def items(self) -> ItemsView[str, Any]:
        """Return keys and values of one moment, as a copy.

        Each value is unpacked when an iteration reaches it, so lists and maps are its own. Keys
        whose value cannot be read are left out, counted and named in `stats()`.
        """
        return MomentItems(self._at_one_moment(), self._engine.unreadable.note)

    def values(self) -> ValuesView[Any]:
        """Return the values of one moment, as `items`."""
        return MomentValues(MomentItems(self._at_one_moment(), self._engine.unreadable.note))

    def snapshot(self) -> tuple[dict[str, Any], tuple[Position, ...]]:
        """Return a copy of the whole content at one moment, and each shard's position for it.

        Lists and maps in it are the caller's own. Keys whose value cannot be read are left out,
        counted and named in `stats()`.

        Raises:
            NotLoadedError, ForkedError: as reading a key.
        """
        content, positions = self._read(self._engine.snapshot)
        # Not within the moment: batches wait for that.
        return readable(content, self._engine.unreadable.note), positions

    def table(
        self, name: str, *, keys: type[str | int] = str, values: type[float | int] = float
    ) -> TableView:
        """Return a live view of a table: keys to numbers, as a mapping and as arrays.

        Args:
            name: of the table.
            keys: `str`, or `int`, as its producers say.
            values: `float` or `int`, likewise.

        Raises:
            NumpyMissingError: it is an extra.
            ConfigError: the name or a type is not valid.
        """
        return self._view(table_key(name, keys, values))

    def tables(self) -> tuple[TableView, ...]:
        """Return a view of each table that exists now, by name.

        Raises:
            NumpyMissingError: it is an extra.
        """
        need_numpy()
        return tuple(self._view(key) for key in self._read(self._engine.table_keys))

    def _view(self, key: TableKey) -> TableView:
        from broker.engine.table_view import TableView  # noqa: PLC0415 - needs numpy

        return TableView(key, self._engine.tables, self._read, self._engine.check_fork)

    def _read(self, read: Callable[[], T]) -> T:
        return self._loaded(lambda: self._at_once(read))

    @property
    def status(self) -> Status:
        """What the content is worth now; the worst shard decides.

        Exact at any moment and on any thread: never `live` while `lag` is above the staleness
        bound.
        """
        return self._engine.status

    @property
    def health(self) -> Health:
        """Whether the replica is live.

        If not, its reasons say the status, since when, why, and what to do; for people.
        """
        return self._engine.health

    @property
    def positions(self) -> tuple[Position, ...]:
        """Each shard's position, in the order of the shards; empty before the namespace exists."""
        return self._engine.positions

    @property
    def position(self) -> Position:
        """The position of shard 0, the only one unless the namespace has more shards."""
        positions = self._engine.positions
        return positions[0] if positions else Position()

    @property
    def lag(self) -> float:
        """Seconds since the moment as of which it is proved to hold everything that was accepted.

        inf before that. While live it is at most the staleness bound. Without writes it varies
        between 0 and the heartbeat interval. It counts from acceptance: the time for which a write
        waited to be published counts, and that for which packets waited on the way.
        """
        return self._engine.lag

    def stats(self) -> ReplicaStats:
        """Return its state, and counters since it was opened; docs/statistics.md explains each."""
        return self._at_once(self._engine.stats)
