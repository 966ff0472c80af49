"""Items and values of one moment of a replica."""

from __future__ import annotations

import tracemalloc
from collections.abc import ItemsView, ValuesView
from typing import Any

import pytest

from broker.engine.moment import MomentItems, MomentValues
from broker.errors import DecodeError
from broker.protocol.cells import cell_of

CELLS = {"a": 1, "list": b"\x91\x01", "bad": b"\xc1", "text": "x"}
VALUES = {"a": 1, "list": [1], "text": "x"}


def fail(key: str, fault: DecodeError) -> None:
    """Refuse what cannot be read."""
    pytest.fail(f"{key}: {fault}")


def test_they_are_views_as_those_of_a_dict() -> None:
    """Of what can be read; the rest is noted each time."""
    noted: list[str] = []
    items = MomentItems(CELLS, lambda key, _fault: noted.append(key))
    values = MomentValues(items)
    assert isinstance(items, ItemsView)
    assert isinstance(values, ValuesView)
    assert [*items] == [*VALUES.items()]
    assert [*values] == [*VALUES.values()]
    assert dict(items) == VALUES
    assert noted == ["bad"] * 3
    assert ("list", [1]) in items
    assert ("list", b"\x91\x01") not in items
    assert ("bad", b"\xc1") not in items
    for no_item in ("a", ("b", 1), ("a", 1, 2), (1, "a"), ["a", 1], None):
        assert no_item not in items
    assert [1] in values
    assert b"\x91\x01" not in values
    assert len(items) == len(values) == len(CELLS)
    assert repr(items) == "MomentItems([('a', 1), ('list', [1]), ('text', 'x')])"
    assert repr(values) == "MomentValues([1, [1], 'x'])"


def test_each_iteration_has_values_of_its_own() -> None:
    """What one does with them, the next does not see."""
    items = MomentItems({"list": CELLS["list"]}, fail)
    for _key, value in items:
        value.append("spoilt")
    for value in MomentValues(items):
        assert value == [1]
        value.append("spoilt")
    assert [*items] == [("list", [1])]


def test_a_loop_holds_one_value_at_a_time() -> None:
    """All of them would take more memory than the replica itself."""
    value = {"lat": 52.5, "lon": 13.4}
    cell = cell_of(value)[0]
    cells: dict[str, Any] = {f"key/{number}": cell for number in range(1000)}
    items = MomentItems(cells, fail)
    tracemalloc.start()
    try:
        assert all(found == value for _, found in items)
        assert all(found == value for found in MomentValues(items))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000
