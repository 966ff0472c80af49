"""The fast path into a producer's buffer: plain sets gather without a lock, and move on in bulk.

`Producer.set` is called a million times a second, from any thread. A plain delta (a short ASCII
key with a number, bool, None or ASCII text, or with what is packed here) is put behind the others
in one step of the interpreter, and nothing else happens. The buffer takes what gathered, under its
lock, whenever order or counts matter.

Invariants:
1. Room for as many as `limit` allows, each as long as `longest` allows, was taken from the buffer
   before: they always fit. A thread that looked at an earlier `longest` may add one longer delta.
2. `limit` is 0 unless the lane's open columns hold a delta. So the first delta of a chunk takes the
   exact path, which notes when it came and wakes the sender; a caller that finds 0 takes that path.
3. The buffer sets `limit` to 0, then takes the items; a caller adds an item, then looks at `limit`.
   One of the two sees the other, so no item is forgotten. In C both are one step.

`Intake`, `Setter` and `plain_size` here are the twins of those in C, see `broker.speedups`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from broker.protocol.cells import PACKED_TYPES
from broker.protocol.constants import INT_MAX, INT_MIN
from broker.protocol.messages import Value
from broker.protocol.names import shard_of
from broker.protocol.packed import packed
from broker.protocol.values import HEAD_BYTES, SCALAR_BYTES
from broker.speedups import native

T = TypeVar("T")

SHORT: Final = 64  # bytes of a key, and the least that a value may have
LONG: Final = 4096  # bytes of a value, at most
ROW_BYTES: Final = HEAD_BYTES + SCALAR_BYTES  # of a delta, beside its key, text or packed value
MAX_KNOWN: Final = 1 << 16  # keys of which it is remembered that they are plain, and of which lane
MAX_PLAIN: Final = 256  # deltas between two looks at the lock

PLAIN_TYPES: Final = frozenset((float, bool, type(None)))  # of any value
SIZED_TYPES: Final = frozenset((str, bytes))


class PythonIntake:
    """Plain sets of one lane that are not in its columns yet.

    Args:
        shard: of the lane.

    Attributes:
        items: key, value, key, value ...
        limit: so many items may be there; 0: none may be added.
        longest: so many bytes a text or packed value may have.
    """

    __slots__ = ("items", "limit", "longest", "shard")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.items: list[Any] = []
        self.limit = 0
        self.longest = SHORT


class PythonSetter:
    """The `set` of a producer: the whole fast path in one method, for any thread."""

    _plain_keys: PlainKeys
    _notify: Callable[[int], object]

    def _set_exactly(self, key: str, value: Value) -> Any:
        """Set a key to a value with all checks."""
        raise NotImplementedError

    def _set_cell(self, key: str, cell: bytes) -> Any:
        """Set a plain key to a packed value that is too long for the fast path."""
        raise NotImplementedError

    # All in one place: a call to another function would cost a fifth of this one.
    def set(self, key: str, value: Value) -> Any:
        """Set a key to a value.

        Raises:
            EncodeError: the key or value cannot be sent; nothing was buffered.
            BufferFullError: no room (in time).
            FencedError, ClosedError, ForkedError: this producer cannot write any more.
        """
        try:
            intake = self._plain_keys[key]
        except TypeError:  # what cannot be looked up is no key
            return self._set_exactly(key, value)
        kind = type(value)
        # A key may be equal to a known one and yet be none, as a proxy is.
        if intake is None or type(key) is not str:
            return self._set_exactly(key, value)
        if (
            kind is float
            or kind in PLAIN_TYPES
            or (kind is int and INT_MIN <= value <= INT_MAX)  # type: ignore[operator]
            or (kind is str and len(value) <= intake.longest and value.isascii())  # type: ignore[union-attr, arg-type]
        ):
            items = intake.items
            if len(items) < intake.limit:
                items += (key, value)
                if not intake.limit:
                    self._notify(intake.shard)
                return None
        elif kind in PACKED_TYPES and len(intake.items) < intake.limit:
            return self._set_packed(intake, key, value)
        return self._set_exactly(key, value)

    def _set_packed(self, intake: PythonIntake, key: str, value: Any) -> Any:
        """Pack a value, and put it behind the others if it is short."""
        cell = packed(value)
        if cell is None:
            return self._set_exactly(key, value)
        if len(cell) > intake.longest:
            return self._set_cell(key, cell)
        intake.items += (key, cell)
        if not intake.limit:
            self._notify(intake.shard)
        return None


def plain_size_by_python(keys: list[str], cells: list[Any]) -> tuple[int, int]:
    """Return upper bounds in bytes: of plain deltas, and of their longest text or packed value."""
    size = sum(map(len, keys)) + ROW_BYTES * len(keys)
    kinds = set(map(type, cells))
    if kinds.isdisjoint(SIZED_TYPES):
        return size, 0
    if kinds <= SIZED_TYPES:  # as in most columns
        lengths = list(map(len, cells))
    else:
        lengths = [len(cell) for cell in cells if cell.__class__ in SIZED_TYPES]
    return size + sum(lengths), max(lengths)


if TYPE_CHECKING or native is None:
    _Intake: TypeAlias = PythonIntake
    _Setter: TypeAlias = PythonSetter
    plain_size = plain_size_by_python
else:
    _Intake, _Setter, plain_size = native.Intake, native.Setter, native.plain_size


class Intake(_Intake):
    """Plain sets of one lane that are not in its columns yet; see `PythonIntake`."""

    __slots__ = ()

    def columns(self) -> tuple[list[str], list[Any]]:
        """Return all as columns; the caller holds the buffer's lock."""
        items = self.items
        # Others may add behind these meanwhile.
        count = len(items)
        return items[0:count:2], items[1:count:2]

    def drop(self, deltas: int) -> None:
        """Remove the first ones, which are elsewhere by now.

        A call that is left before this has them twice, which changes nothing: they are sets.
        """
        del self.items[: 2 * deltas]


class PlainKeys(dict[str, Intake | None]):
    """Plain key -> where its sets gather, remembered for `MAX_KNOWN` keys; None for other keys.

    Args:
        intakes: of each shard; without any no key is plain.
    """

    def __init__(self, intakes: Sequence[Intake] = ()) -> None:
        super().__init__()
        self._intakes = intakes

    def __missing__(self, key: Any) -> Intake | None:
        """Look at a key that is not remembered."""
        intakes = self._intakes
        if not intakes or type(key) is not str or not key.isascii() or not 0 < len(key) <= SHORT:
            return None
        intake = intakes[shard_of(key, len(intakes))]
        if len(self) < MAX_KNOWN:
            self[key] = intake
        return intake


class FastSet(_Setter, Generic[T]):
    """A producer's `set`. A subclass says what happens to everything that is not plain."""

    def __init__(self) -> None:
        self._plain_keys = PlainKeys()
        self._notify = _nothing_gathers

    def _open_fast_path(self, plain_keys: PlainKeys, notify: Callable[[int], object]) -> None:
        """Let plain sets gather from now on.

        Args:
            plain_keys: of the buffer.
            notify: called with the shard whose sender has to look again (hardly ever).
        """
        self._plain_keys, self._notify = plain_keys, notify

    if TYPE_CHECKING:

        def _set_exactly(self, key: str, value: Value) -> T: ...
        def _set_cell(self, key: str, cell: bytes) -> T: ...
        def set(self, key: str, value: Value) -> T | None:
            """Set a key to a value."""


def _nothing_gathers(_shard: int) -> object:
    """Stand for `notify` before the fast path is open."""
