"""Mappings that can be copied while another thread deletes keys from them.

`dict(mapping)`, `update` and `**` ask for the keys and then read each of them; so does a loop over
the keys. A key that is deleted in between would make the copy fail. So the values of the moment of
the keys are kept for such a copy, and given for a key that is gone:

* What one instruction of the caller does, asking for the keys and reading them, is a copy.
* The key that a loop was given last can be read in the loop.

No other read gets such a value, and none after `KEPT_S`. Present keys cost nothing more.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)

KEPT_S: Final = 2.0
LOOP_KEPT_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that an instruction of a caller may be making."""

    mapping: int
    code: CodeType
    frame: int
    instruction: int
    values: Mapping[Any, Any]
    since: float


class _Keys(Iterator[K]):
    """The keys of one moment; knows which one was given last, and its value."""

    def __init__(self, mapping: object, values: Mapping[K, Any]) -> None:
        self.mapping = mapping
        self.values = values
        self.given: Any = self  # no key
        self.at = 0.0
        self._keys = iter(values)

    def __next__(self) -> K:
        self.given = key = next(self._keys)
        self.at = time.monotonic()
        return key


class _Notes(threading.local):
    """What each thread copies."""

    copy: _Copy | None = None
    keys: weakref.ref[_Keys[Any]] | None = None


_notes = _Notes()


class CopyableMapping(Mapping[K, V_co]):
    """A mapping that other threads change, and that can be copied all the same.

    A subclass has `__getitem__`, which returns `self._kept(key, sys._getframe(1))` for an absent
    key, `__len__`, and `_at_one_moment`.
    """

    @abstractmethod
    def _at_one_moment(self) -> Mapping[K, V_co]:
        """Return a copy of keys and values at one moment."""

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys of one moment; later changes do not disturb it."""
        keys = _Keys(self, self._at_one_moment())
        _notes.keys = weakref.ref(keys)
        return keys

    def keys(self) -> KeysView[K]:
        """Return the keys of one moment, as a copy."""
        values = self._at_one_moment()
        caller = sys._getframe(1)  # noqa: SLF001 - the only way to know who copies
        _notes.copy = _Copy(
            *(id(self), caller.f_code, id(caller), caller.f_lasti, values, time.monotonic())
        )
        return values.keys()

    def _kept(self, key: Any, caller: FrameType) -> V_co:
        """Return the value of a key that was deleted while the caller copies this mapping.

        Raises:
            KeyError: the caller does not copy it.
        """
        now = time.monotonic()
        keys = _notes.keys and _notes.keys()
        if keys and keys.mapping is self and keys.given is key and now - keys.at < LOOP_KEPT_S:
            return keys.values[key]  # type: ignore[no-any-return]
        copy = _notes.copy
        if (
            copy is not None
            and copy.mapping == id(self)
            and copy.code is caller.f_code
            and copy.frame == id(caller)
            and copy.instruction == caller.f_lasti
            and now - copy.since < KEPT_S
        ):
            return copy.values[key]  # type: ignore[no-any-return]
        _notes.copy = None
        raise KeyError(key) from None
