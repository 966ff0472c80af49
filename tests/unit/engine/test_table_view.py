"""Tables as those of other libraries, which may not be installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from broker.core.tables.kinds import table_key
from broker.engine.table_view import TableView


@pytest.mark.parametrize(("keys", "type_of_keys"), [(str, "string"), (int, "uint64")])
def test_an_empty_arrow_table_has_the_type_of_its_keys(
    keys: Any, type_of_keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key there is nothing to tell the type from."""
    arrow = SimpleNamespace(
        array=lambda values, type: (list(values), type),  # noqa: A006 - as pyarrow names it
        string=lambda: "string",
        uint64=lambda: "uint64",
        table=dict,
    )
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    view = TableView(table_key("fleet", keys, float), list, lambda read: read())
    assert view.to_arrow()["key"] == ([], type_of_keys)
