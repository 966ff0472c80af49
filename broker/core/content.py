"""What one shard of a replica holds at one position of its history. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker.core.fold import Observer, Tally, fold
from broker.core.tables import new_tables
from broker.protocol.cells import are_same
from broker.protocol.digest import range_of
from broker.protocol.fields import name_of, read_page
from broker.protocol.messages import Batch, Cell, Chunk, Position
from broker.protocol.operations import Operation

if TYPE_CHECKING:
    from broker.core.tables.shard import ShardTables
    from broker.protocol.digest import Digest


@dataclass(slots=True)
class Content:
    """The keys, values and tables of a shard: the visible ones, or those of a load.

    A load begins with the full state, page by page, and continues with the log. While a scheduler
    writes the full state, some fields of it are newer than its position.

    Attributes:
        position: of the last batch that is contained.
        values: by key.
        tables: None without numpy.
        covered: append number up to which the position contains all chunks.
        floors: key -> offset up to which `values` contains it, where that is beyond the position.
        newest: the largest offset of a loaded field.
        damaged: keys that the full state has, but whose field cannot be read: `values` lacks them.
        is_compared: whether it was compared with what schedulers wrote since it was loaded.
        altered: key ranges in which it was not that, and that hold no damaged key.
        doubted_tables: blocks of the tables' full state that were not that, for people.
    """

    position: Position = field(default_factory=Position)
    values: dict[str, Cell] = field(default_factory=dict)
    tables: ShardTables | None = field(default_factory=new_tables)
    covered: int = 0
    floors: dict[str, int] = field(default_factory=dict)
    newest: int = 0
    damaged: set[str] = field(default_factory=set)
    is_compared: bool = True
    altered: frozenset[int] = frozenset()
    doubted_tables: tuple[str, ...] = ()

    @property
    def is_loaded(self) -> bool:
        """Whether this is the state of some moment, not what it is before the first load."""
        return bool(self.position.epoch)

    # -- a load -----------------------------------------------------------------------------------

    def add_page(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> None:
        """Add one page of the full-state hash; what cannot be read is noted in `damaged`."""
        page = read_page(keys, fields)
        names, offsets = page.names, page.offsets
        if self.damaged:
            # A key may be returned twice; the later one counts.
            self.damaged.difference_update(names)
        for key in page.damaged:
            name = name_of(key)
            self.damaged.add(name)
            self.values.pop(name, None)
        if not names:
            return
        self.values.update(zip(names, page.cells, strict=True))
        newest = max(offsets)
        if newest > self.position.offset:
            # A snapshot is being written right now: these keys are ahead of the position.
            self.newest = max(self.newest, newest)
            self.floors.update(
                (name, offset)
                for name, offset in zip(names, offsets, strict=True)
                if offset > self.position.offset
            )

    def add_tables(self, fields: Mapping[str, bytes], known: Digest | None = None) -> None:
        """Add the tables hash; a table of which something cannot be read is not shown.

        Args:
            fields: all of them.
            known: the digest of what schedulers wrote; None: it is not known.
        """
        if self.tables is not None:
            self.tables = type(self.tables).loaded(fields, self.position.offset)
            self.newest = max(self.newest, self.tables.newest)
            self.doubted_tables = () if known is None else self.tables.altered(fields, known)

    # -- the history ------------------------------------------------------------------------------

    def apply(
        self,
        batch: Batch,
        chunks: Iterable[Chunk],
        observe: Observer | None = None,
        note_fault: Callable[[str], object] | None = None,
        note_refused: Callable[[str, str], object] | None = None,
    ) -> Tally:
        """Apply the next batch of the history.

        Args:
            batch: follows `position`.
            chunks: those of the batch that could be decoded.
            observe: called for the deltas that took effect, see `fold`.
            note_fault: called with each rule that a chunk's part for tables broke.
            note_refused: called with key and node of deltas that were refused, of some of them.

        Returns:
            The counts of the batch's deltas.
        """
        tally = fold(
            *(self.values, batch, chunks, self.floors, observe),
            damaged=self.damaged,
            tables=self.tables,
            note_fault=note_fault,
            note_refused=note_refused,
        )
        self.position = batch.position
        self.covered = batch.covered
        return tally

    # -- self-check -------------------------------------------------------------------------------

    @property
    def is_doubted(self) -> bool:
        """Whether something of what was loaded is in doubt, or could not be read in tables."""
        lacks_tables = self.tables is not None and bool(self.tables.damaged)
        return bool(self.altered or self.doubted_tables) or lacks_tables

    def compared(self, altered: Collection[int] | None) -> None:
        """Note the key ranges that are not what schedulers wrote; None: it is not known yet."""
        self.is_compared = altered is not None
        # What cannot be read is named by its key.
        self.altered = frozenset(altered or ()) - set(map(range_of, self.damaged))

    def repair(
        self, right: Mapping[str, Any], among: Iterable[str]
    ) -> list[tuple[Operation, str, Any]]:
        """Correct keys to the history at `position`; return what was done: operation, key, value.

        Args:
            right: key -> value; keys of `among` that it lacks do not exist.
            among: the keys to compare, besides those of `right`.
        """
        repaired: list[tuple[Operation, str, Any]] = []
        self.damaged.difference_update(among, right)
        for key in {*among, *right}:
            is_held = key in self.values
            if key in right:
                if not is_held or not are_same(self.values[key], right[key]):
                    self.values[key] = right[key]
                    repaired.append(("set", key, right[key]))
            elif is_held:
                del self.values[key]
                repaired.append(("delete", key, None))
        return repaired
