"""Items and values of a replica at one moment, unpacked one after the other. No I/O."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from operator import itemgetter
from typing import Any, Final

from broker.errors import DecodeError
from broker.protocol.cells import readable_items
from broker.protocol.messages import Cell

_value_of: Final = itemgetter(1)


class MomentItems(ItemsView[str, Any]):
    """Keys and values of one moment; a value is unpacked when it is reached, anew each time.

    So a loop over all of them holds one at a time. Those that cannot be read are left out and
    noted; `len` counts them, too.

    Args:
        cells: by key, of that moment.
        note: called with key and fault of each that was left out.
    """

    def __init__(
        self, cells: Mapping[str, Cell], note: Callable[[str, DecodeError], object]
    ) -> None:
        super().__init__(cells)
        self._cells = cells
        self._note = note

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Iterate over pairs of key and value."""
        return readable_items(self._cells, self._note)

    def __contains__(self, item: object) -> bool:
        """Whether this pair is one of them."""
        match item:
            case (str(key), _) if key in self._cells:
                return item in [*readable_items({key: self._cells[key]}, self._note)]
        return False

    def __repr__(self) -> str:
        """Show all pairs."""
        return f"{type(self).__name__}({[*self]!r})"


class MomentValues(ValuesView[Any]):
    """The values of one moment, likewise.

    Args:
        items: of that moment.
    """

    def __init__(self, items: MomentItems) -> None:
        super().__init__(items)  # type: ignore[arg-type] # for its length
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the values, in the order of the keys."""
        return map(_value_of, self._items)

    def __contains__(self, value: object) -> bool:
        """Whether one of them is equal."""
        return value in [*self]

    def __repr__(self) -> str:
        """Show all values."""
        return f"{type(self).__name__}({[*self]!r})"
