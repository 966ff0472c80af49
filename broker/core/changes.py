"""What changed, as readers of changes receive it: by a batch, by a repair, or by a load. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any

from broker.model import Change
from broker.protocol.cells import are_same

if TYPE_CHECKING:
    from broker.core.content import Content
    from broker.core.fold import Observer
    from broker.protocol.messages import Cell, Position, Value
    from broker.protocol.operations import Operation


@dataclass(slots=True)  # frozen would cost a batch of one change a microsecond
class ChangeColumns:
    """Changes of one operation, in columns; nobody changes them.

    Handed over like this a change costs the replica next to nothing, however many readers it has;
    each of them makes changes of the columns when it reads them.

    Attributes:
        operation: of all of them.
        keys: of each.
        cells: the cell of each value after the change.
        stamps: `Change.timestamp_ms` of each.
        position: as in `Change`, like the rest.
    """

    operation: Operation
    keys: Sequence[str]
    cells: Sequence[Cell]
    stamps: Sequence[int]
    position: Position
    shard: int
    resync: bool = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self.keys)

    def picked(self, picks: Sequence[object]) -> ChangeColumns:
        """Return those for which the pick is true."""
        return replace(
            self,
            keys=[*compress(self.keys, picks)],
            cells=[*compress(self.cells, picks)],
            stamps=[*compress(self.stamps, picks)],
        )

    def sliced(self, first: int, last: int) -> ChangeColumns:
        """Return those from the first to before the last."""
        part = slice(first, last)
        return replace(self, keys=self.keys[part], cells=self.cells[part], stamps=self.stamps[part])

    def changes(self, values: Iterable[Value]) -> list[Change]:
        """Return them with these values, one for each."""
        if len(self.keys) == 1:
            # As columns, a single one would cost three times as much.
            (value,) = values
            place = self.operation, self.position, self.shard
            return [Change(self.keys[0], value, *place, self.stamps[0], self.resync)]
        places = repeat(self.position), repeat(self.shard)
        columns = zip(
            *(self.keys, values, repeat(self.operation), *places, self.stamps),
            repeat(self.resync),
        )
        # The n-th column is the n-th field; without a step of Python for each change.
        new: Any = tuple.__new__
        return [*map(new, repeat(Change), columns)]


def observer(changes: list[ChangeColumns], position: Position, shard: int) -> Observer:
    """Return an observer for `fold` that adds the deltas that took effect to `changes`."""

    def observe(
        operation: Operation, keys: Sequence[str], values: Sequence[Any], stamps: Sequence[int]
    ) -> None:
        changes.append(ChangeColumns(operation, keys, values, stamps, position, shard))

    return observe


def repairs(
    repaired: Iterable[tuple[Operation, str, Any]], position: Position, shard: int
) -> list[ChangeColumns]:
    """Return repaired keys as changes marked `resync`."""
    cells: dict[Operation, dict[str, Cell]] = {}
    for operation, key, cell in repaired:
        cells.setdefault(operation, {})[key] = cell
    return [_found(operation, one, position, shard) for operation, one in cells.items()]


def differences(before: Content, after: Content, shard: int) -> list[ChangeColumns]:
    """Return what makes one content the other, as changes marked `resync`."""
    gone: dict[str, Cell] = dict.fromkeys(key for key in before.values if key not in after.values)
    new = {
        key: cell
        for key, cell in after.values.items()
        if key not in before.values or not are_same(before.values[key], cell)
    }
    found: tuple[tuple[Operation, dict[str, Cell]], ...] = (("delete", gone), ("set", new))
    return [_found(operation, cells, after.position, shard) for operation, cells in found if cells]


def _found(
    operation: Operation, cells: dict[str, Cell], position: Position, shard: int
) -> ChangeColumns:
    """Return changes that were found by comparison."""
    columns = [*cells], [*cells.values()], [0] * len(cells)
    return ChangeColumns(operation, *columns, position, shard, resync=True)
