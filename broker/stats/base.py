"""What all statistics have in common."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator
from dataclasses import fields
from enum import Enum
from typing import Any
from warnings import warn

from broker.model import Health


class Statistics:
    """The base of all statistics: `as_dict()`, and until 1.0 the deprecated dict access."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that `json.dumps` takes, nested statistics as dicts too."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        """Return one field. Deprecated: read the attribute, or `as_dict()`."""
        return self._deprecated()[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a field. Deprecated: use `as_dict()`."""
        return name in self._deprecated()

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the fields. Deprecated: use `as_dict()`."""
        return iter(self._deprecated())

    def get(self, name: str, default: Any = None) -> Any:
        """Return one field, or the default. Deprecated: read the attribute, or `as_dict()`."""
        return self._deprecated().get(name, default)

    def items(self) -> ItemsView[str, Any]:
        """Return names and values of the fields. Deprecated: use `as_dict()`."""
        return self._deprecated().items()

    def _deprecated(self) -> dict[str, Any]:
        what = type(self).__name__
        warn(
            f"{what} is no dict any more; read its attributes, or {what}.as_dict(); dict access "
            "goes with version 1.0",
            DeprecationWarning,
            stacklevel=3,
        )
        return self.as_dict()


def _plain(value: Any) -> Any:
    """Return a field's value as `as_dict()` shows it."""
    if isinstance(value, Statistics):
        return value.as_dict()
    if isinstance(value, Health):
        return {"ok": value.ok, "reasons": value.reasons}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Enum) else value
