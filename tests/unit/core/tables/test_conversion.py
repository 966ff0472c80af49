"""Numbers of callers reach a table as they are, or not at all: every type in every container."""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections import UserList, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from broker.core.tables.conversion import numbers
from broker.core.tables.input import number_keys, record_runs, text_keys
from broker.core.tables.shard import ShardTables
from broker.engine.table_view import TableOp, TableView
from broker.errors import EncodeError
from broker.protocol.messages import TableKey

WANTED = {name: np.dtype(name) for name in ("<f8", "<i8", "<u8")}
NUMBERED = TableKey("n", "u64-f64")
LAYOUT = np.dtype([("key", "<u8"), ("value", "<f8"), ("timestamp", "<i8")])
THIRD = np.longdouble(1) / 3  # has more digits than a float64, where long doubles are longer

WHOLE = [0, 1, -1, 255, 1 << 53, (1 << 53) + 1, -(1 << 53) - 1, (1 << 62) + 1, (1 << 63) - 1]
WHOLE += [1 << 63, (1 << 63) + 2048, (1 << 64) - 1, 1 << 64, (1 << 64) + 1, -(1 << 63), 10**400]
REAL = [0.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), 9007199254740992.0]
OF_NUMPY = [
    np.int8(-5),
    np.uint64(2**64 - 1),
    np.int64(2**53 + 1),
    np.float16(0.1),
    np.float32(0.1),
]
OF_NUMPY += [np.longdouble("1e400"), THIRD, np.longdouble(0.5), np.float64(0.1), np.array(7)]
OF_NUMPY += [np.array(0.25), np.uint32(7), np.longdouble("nan"), np.array((1 << 53) + 1)]
NO_NUMBERS = [True, np.bool_(False), None, "1", b"1", 1j, Decimal("0.1"), Fraction(1, 2), object()]
NO_NUMBERS += [datetime(2026, 1, 1, tzinfo=UTC), timedelta(1), np.datetime64("2026-01-01")]
NO_NUMBERS += [
    np.timedelta64(5),
    np.complex64(1),
    np.str_("1"),
    np.ma.masked,
    [1],
    {},
    bytearray(8),
]

# What a caller may put a number and its neighbour into. None: it cannot hold them.
CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "UserList": UserList,
    "array": np.array,
    "array of objects": lambda given: np.array(given, dtype=object),
    "big-endian": lambda given: np.array(given).astype(np.array(given).dtype.newbyteorder(">")),
    "every other": lambda given: np.array([one for one in given for _ in "ab"])[::2],
    "backwards": lambda given: np.array(given[::-1])[::-1],
    "column of Fortran": lambda given: np.array([given, given], order="F")[1],
    "read-only": lambda given: _frozen(np.array(given)),
    "not masked": lambda given: np.ma.array(np.array(given)),
    "long double": lambda given: np.array(given, dtype=np.longdouble),
    "array of doubles": lambda given: array("d", given),
    "array of i64": lambda given: array("q", given),
    "memoryview": lambda given: memoryview(np.array(given).astype(np.result_type(*given, "i2"))),
}


def _frozen(column: Any) -> Any:
    column.flags.writeable = False
    return column


def exact(one: Any) -> Fraction | str | None:
    """Return which number this is, to the last digit; None if it is none."""
    if isinstance(one, np.ma.core.MaskedConstant):
        return None
    if isinstance(one, np.ndarray) and one.ndim == 0:
        one = one[()]
    if isinstance(one, (bool, np.bool_, np.timedelta64)):
        return None
    if isinstance(one, (int, np.integer)):
        return Fraction(int(one))
    if isinstance(one, (float, np.floating)):
        if np.isnan(one) or np.isinf(one):
            return str(float(one))
        return Fraction(*one.as_integer_ratio())
    return None


def fits(one: Any, wanted: np.dtype[Any]) -> bool:
    """Whether a number of the wanted type is the same one; no float is a whole number."""
    number = exact(one)
    if number is None or wanted.kind == "f":
        if number is None or isinstance(number, str):
            return number is not None
        try:
            return Fraction(float(number)) == number
        except OverflowError:
            return False
    if isinstance(one, (float, np.floating)) or isinstance(number, str) or _is_real(one):
        return False
    low, high = (0, 1 << 64) if wanted.kind == "u" else (-(1 << 63), 1 << 63)
    return low <= number < high


def _is_real(one: Any) -> bool:
    return isinstance(one, np.ndarray) and one.dtype.kind == "f"


def held(container: Any) -> list[Any]:
    """Return the numbers that a container holds: numpy may have changed them when it was made."""
    if isinstance(container, memoryview):
        container = np.asarray(container)
    return [*container]


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("wanted", WANTED)
def test_a_number_stays_what_it_is_or_is_refused(name: str, wanted: str) -> None:
    """Whatever its type, its neighbour and what holds them; nothing is refused without need."""
    made = 0
    numbers_of_all = [*WHOLE, *REAL, *OF_NUMPY, *NO_NUMBERS]
    for one, other in product(numbers_of_all, [1, 0.5, np.uint8(3), np.int64(-3), True, None]):
        try:
            with np.errstate(all="ignore"):
                container = CONTAINERS[name]([one, other])
            given = held(container)
        except (ValueError, TypeError, OverflowError, Warning):
            continue
        made += 1
        # An array has one type, also for whole numbers: as floats they are none.
        kept = all(fits(number, WANTED[wanted]) for number in given) and len(given) > 0
        kept = kept and not (isinstance(container, np.ndarray) and container.dtype == object)
        if not kept:
            with pytest.raises(EncodeError) as caught:
                numbers("values", container, WANTED[wanted])
            assert len(str(caught.value)) < 400
            continue
        column = numbers("values", container, WANTED[wanted])
        assert column.dtype == WANTED[wanted]
        assert [exact(number) for number in column] == [exact(number) for number in given]
    assert made > 20


@pytest.mark.parametrize("wanted", WANTED)
def test_one_number_for_all_is_held_to_the_same(wanted: str) -> None:
    """A scalar is a column without dimensions."""
    for one in [*WHOLE, *REAL, *OF_NUMPY]:
        if fits(one, WANTED[wanted]):
            column = numbers("values", one, WANTED[wanted])
            assert column.shape == ()
            assert exact(column[()]) == exact(one)
        else:
            with pytest.raises(EncodeError):
                numbers("values", one, WANTED[wanted])
    for one in NO_NUMBERS[:-3]:
        with pytest.raises(EncodeError):
            numbers("values", one, WANTED[wanted])


class OfPandas:
    """An extension array of pandas, as far as it matters: NA in one of its places."""

    dtype = "Int64"

    def __init__(self, missing: Sequence[bool]) -> None:
        self.missing = missing

    def isna(self) -> Any:
        """Say which are missing."""
        return np.array(self.missing)

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.where(self.missing, np.nan, 1.0) if any(self.missing) else np.array([1, 2])


class OfArrow(OfPandas):
    """An array of Arrow: it counts them."""

    dtype = None

    @property
    def null_count(self) -> int:
        """Say how many are missing."""
        return sum(self.missing)


class OfPolars(OfPandas):
    """A series of Polars: it counts them when it is called."""

    def null_count(self) -> int:
        """Say how many are missing."""
        return sum(self.missing)


class Broken:
    """Raises whatever it likes."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("x" * 10_000)


@pytest.mark.parametrize("kind", [OfPandas, OfArrow, OfPolars])
def test_missing_values_are_no_numbers(kind: type[OfPandas]) -> None:
    """NaN would be a number that nobody wrote."""
    assert numbers("values", kind([False, False]), WANTED["<f8"]).tolist() == [1.0, 2.0]
    for wanted in WANTED.values():
        with pytest.raises(EncodeError, match="values have masked or missing values"):
            numbers("values", kind([False, True]), wanted)


def test_what_lies_under_a_mask_is_not_written() -> None:
    """Not by columns, not by records."""
    column = np.ma.array([1, 2], mask=[False, True])
    for wanted in WANTED.values():
        with pytest.raises(EncodeError, match="masked"):
            numbers("values", column, wanted)
    records = np.ma.array(np.zeros(2, LAYOUT), mask=[(False, True, False), (False, False, False)])
    with pytest.raises(EncodeError, match="records have masked"):
        record_runs(NUMBERED, records, 1)
    assert record_runs(NUMBERED, np.ma.array(np.zeros(2, LAYOUT)), 1)


def test_an_array_that_fails_is_refused_with_a_short_text() -> None:
    """Arrays of other libraries may raise anything."""
    with pytest.raises(EncodeError) as caught:
        numbers("values", Broken(), WANTED["<f8"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("raw", [b"x" * 16, bytearray(16), memoryview(bytes(16))])
def test_bytes_are_no_column(raw: Any) -> None:
    """A number of 8 bytes is not 8 numbers."""
    with pytest.raises(EncodeError, match=r"say what they hold with numpy\.frombuffer"):
        numbers("keys", raw, WANTED["<u8"])


@pytest.mark.parametrize("shards", [1, 3])
def test_keys_are_a_column_that_has_an_order(shards: int) -> None:
    """A set would give each value to any key; one number is no column."""
    with pytest.raises(EncodeError, match="which has no order"):
        text_keys(NUMBERED, {"a", "b"}, 1, lambda *_: {})
    with pytest.raises(EncodeError, match="keys are one number, 5"):
        number_keys(NUMBERED, 5, shards)


class Record(ctypes.LittleEndianStructure):
    """A record as C declares it."""

    _fields_ = (
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_double),
        ("timestamp", ctypes.c_int64),
    )


def test_records_are_bytes_or_say_that_they_are_records() -> None:
    """Any other array has bytes, too, but they mean something else."""
    data = struct.pack("<QdqQdq", 1, 0.5, 2, 3, 4.0, 5)
    whole = np.frombuffer(data, LAYOUT)
    taken = [data, bytearray(data), memoryview(data), memoryview(whole), np.frombuffer(data, "i1")]
    taken += [np.frombuffer(data, "S1"), (Record * 2).from_buffer_copy(data), whole.copy()]
    taken += [np.array([whole, whole]).T[:, 0], array("B", data), np.rec.array(whole)]
    for one in taken:
        assert record_runs(NUMBERED, one, 1)[0][1].keys == data
    assert record_runs(NUMBERED, whole[0], 1)[0][1].keys == data[:24]
    kinds = [*np.typecodes["AllInteger"], *np.typecodes["AllFloat"], "?", "M8[s]", "S24", "V24"]
    kinds += [">u8", LAYOUT.newbyteorder(">"), np.dtype([*LAYOUT.descr, ("more", "<u8")])]
    kinds += [{"names": [*"abc"], "formats": ["<u8"] * 3, "offsets": [16, 0, 8]}]
    refused = [np.zeros((48, 3), kind)[:, 0] for kind in kinds if np.dtype(kind).itemsize > 1]
    refused += [memoryview(one) for one in refused if one.dtype.kind in "iuf"]
    refused += [np.zeros((3, 8), "u1"), np.zeros((2, 2), LAYOUT), np.zeros(24, "?")]
    refused += [array("d", [1, 2, 3]), (ctypes.c_uint64 * 3)(), "x" * 24, [whole[0]], None]
    for one in refused:
        for shards in (1, 3):
            with pytest.raises(EncodeError, match=r"records (are|have)"):
                record_runs(NUMBERED, one, shards)


def test_a_reader_asks_for_whole_numbers() -> None:
    """`slots` does not look for another key than the one that was asked for."""
    tables = ShardTables()
    table = tables.table(NUMBERED)
    table.index.add(np.array([1, 2, 1 << 63], dtype=np.uint64))  # type: ignore[arg-type]
    part = TableOp(table)
    assert part.slots([1 << 63, 1, 7]).tolist() == [2, 0, -1]
    assert part.slots(2).tolist() == [1]
    for keys in ([1.5], [-1], np.array([-1]), [True], ["1"], np.array([1.0])):
        with pytest.raises(EncodeError, match="keys"):
            part.slots(keys)
    table.reserve(3)
    table.present[:3] = True
    view = TableView(NUMBERED, lambda: [tables], lambda look: look())
    for key in (np.timedelta64(1), np.bool_(True), 1.0, "1", None, np.float64(1)):
        assert key not in view
    assert np.uint8(1) in view
