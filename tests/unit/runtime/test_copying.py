"""Mappings whose keys go away while they are copied."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from broker.core.tables.kinds import table_key
from broker.engine.replica_reads import ReplicaReads
from broker.engine.table_view import TableView
from broker.runtime.copying import CopyableMapping

MOMENT = {"a": 1.0, "b": 2.0}


class Emptied(CopyableMapping[str, float]):
    """A mapping that loses all keys as soon as it was asked for them."""

    def _at_one_moment(self) -> dict[str, float]:
        return dict(MOMENT)

    def __getitem__(self, key: str) -> float:
        return self._kept(key, sys._getframe(1))

    def __len__(self) -> int:
        return 0


class EmptiedReplica(ReplicaReads):
    """A replica of which another thread deletes all keys as soon as they are asked for."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(cell=self._cell, followed=[]))  # type: ignore[arg-type]

    def _cell(self, key: str) -> Any:
        raise KeyError(key)

    def _at_once(self, read: Callable[[], Any]) -> Any:
        return read()

    def _loaded(self, read: Callable[[], Any]) -> Any:
        return read()

    def _at_one_moment(self) -> dict[str, Any]:
        return dict(MOMENT)


class EmptiedTable(TableView):
    """Likewise a table."""

    def __init__(self) -> None:
        super().__init__(table_key("fleet", str, float), list, lambda read: read())

    def _at_one_moment(self) -> dict[Any, Any]:
        return dict(MOMENT)


def updated(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Copy by `update`."""
    copy: dict[str, Any] = {}
    copy.update(mapping)
    return copy


COPIES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "dict": dict,
    "**": lambda mapping: {**mapping},
    "update": updated,
    "comprehension": lambda mapping: {key: mapping[key] for key in mapping},
    "keywords": lambda mapping: dict(**mapping),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", [Emptied, EmptiedReplica, EmptiedTable])
def test_a_copy_shows_one_moment_though_its_keys_are_deleted_meanwhile(
    kind: Callable[[], Mapping[str, Any]], how: str
) -> None:
    """Each way to copy a mapping gives the values of the moment of the keys, and never raises."""
    assert COPIES[how](kind()) == MOMENT


@pytest.mark.parametrize("kind", [Emptied, EmptiedReplica, EmptiedTable])
def test_a_deleted_key_is_absent_outside_of_a_copy(kind: Callable[[], Mapping[str, Any]]) -> None:
    """A copy before, of the same mapping and on the same thread, brings no key back."""
    mapping = kind()
    assert dict(mapping) == MOMENT
    with pytest.raises(KeyError):
        mapping["a"]
    assert dict(mapping) == MOMENT
    assert mapping.get("a") is None
    assert "b" not in mapping
