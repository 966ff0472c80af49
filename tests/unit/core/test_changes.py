"""Changes as readers receive them."""

from __future__ import annotations

from broker.core.changes import ChangeColumns, differences, observer, repairs
from broker.core.content import Content
from broker.model import Change
from broker.protocol.messages import Position
from tests.unit.change_rows import rows

PLACE = Position(b"epoch--1", 2, b"batch--2")


def test_observed_columns_become_changes_with_their_own_timestamps() -> None:
    """Each has the operation, the place of the batch and the shard; none is marked `resync`."""
    changes: list[ChangeColumns] = []
    observer(changes, PLACE, 3)("increment", ["a", "b"], [5, 6], [100, 101])
    assert rows(changes) == [
        Change("a", 5, "increment", PLACE, 3, 100, resync=False),
        Change("b", 6, "increment", PLACE, 3, 101, resync=False),
    ]


def test_repairs_are_marked_as_such() -> None:
    """A reader can tell that no delta made them."""
    assert rows(repairs([("set", "a", 1), ("delete", "b", None)], PLACE, 3)) == [
        Change("a", 1, "set", PLACE, 3, resync=True),
        Change("b", None, "delete", PLACE, 3, resync=True),
    ]


def test_a_load_is_reported_by_the_keys_that_differ() -> None:
    """Deleted keys first; values are compared as bytes, so a new type is a change."""
    before = Content(Position(), {"gone": 1, "same": [1], "type": True, "value": 1})
    after = Content(PLACE, {"same": [1], "type": 1, "value": 2, "new": None})
    changes = rows(differences(before, after, 3))
    assert [(one.operation, one.key) for one in changes] == [
        ("delete", "gone"),
        ("set", "type"),
        ("set", "value"),
        ("set", "new"),
    ]
    assert all(one.resync and one.position == PLACE and one.shard == 3 for one in changes)
