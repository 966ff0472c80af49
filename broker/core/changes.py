"""What changed, as readers of changes receive it: by a batch, by a repair, or by a load. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from broker.model import Change
from broker.protocol.cells import are_same

if TYPE_CHECKING:
    from broker.core.content import Content
    from broker.core.fold import Observer
    from broker.protocol.messages import Position
    from broker.protocol.operations import Operation

# The n-th field of the tuple is the n-th of `Change`; without a step of Python for each delta.
_change: Callable[[Iterable[Any]], Change] = partial(tuple.__new__, Change)


def observer(changes: list[Change], position: Position, shard: int) -> Observer:
    """Return an observer for `fold` that adds the deltas that took effect to `changes`."""

    def observe(
        operation: Operation, keys: Iterable[str], values: Iterable[Any], stamps: Iterable[int]
    ) -> None:
        same = repeat(operation), repeat(position), repeat(shard)
        columns = zip(keys, values, *same, stamps, repeat(False))  # noqa: FBT003 - a column
        changes.extend(map(_change, columns))

    return observe


def repairs(
    repaired: Iterable[tuple[Operation, str, Any]], position: Position, shard: int
) -> list[Change]:
    """Return repaired keys as changes marked `resync`."""
    return [
        Change(key, value, operation, position, shard, resync=True)
        for operation, key, value in repaired
    ]


def differences(before: Content, after: Content, shard: int) -> list[Change]:
    """Return what makes one content the other, as changes marked `resync`."""
    position = after.position
    gone = [
        Change(key, None, "delete", position, shard, resync=True)
        for key in before.values
        if key not in after.values
    ]
    return gone + [
        Change(key, value, "set", position, shard, resync=True)
        for key, value in after.values.items()
        if key not in before.values or not are_same(before.values[key], value)
    ]
