"""Copies of values share nothing that could be changed."""

from __future__ import annotations

from typing import Any

from hypothesis import given

from broker.protocol.own_values import can_change, owned, owned_map
from tests.unit.exactness import exact
from tests.unit.strategies import VALUES


def parts(value: Any) -> list[Any]:
    """Return every list and map within a value, itself included."""
    inner = value.values() if type(value) is dict else value if type(value) is list else []
    found = [part for item in inner for part in parts(item)]
    return [value, *found] if type(value) in (dict, list) else found


@given(VALUES)
def test_a_copy_is_equal_and_shares_no_list_and_no_map(value: Any) -> None:
    """At any depth; what cannot be changed is not copied."""
    copy = owned(value)
    assert exact(copy) == exact(value)
    assert not {id(part) for part in parts(copy)} & {id(part) for part in parts(value)}
    assert can_change([value]) is bool(parts(value))
    if not parts(value):
        assert copy is value


def test_a_map_without_lists_and_maps_is_not_copied_again() -> None:
    """The copy of a state of scalars is made once."""
    plain = {"a": 1, "b": "text"}
    assert owned_map(plain) is plain
    inner = {"a": [1]}
    assert owned_map(inner) == inner
    assert owned_map(inner)["a"] is not inner["a"]
