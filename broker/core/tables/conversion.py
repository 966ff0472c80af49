"""Columns of numbers from callers: converted if every number stays what it is, else refused.

numpy converts without a look: it writes what lies under a mask, rounds whole numbers in floats,
makes True a 1 and a missing value NaN, and takes any bytes for numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.errors import EncodeError

EXACT_IN_FLOAT64 = 1 << 53  # whole numbers up to it are floats, too
MAX_SHOWN_CHARS = 120

_NAMES = {"f": "float64", "i": "int64", "u": "uint64"}


def numbers(what: str, given: Any, wanted: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a column of the wanted type, or one number as an array without dimensions.

    Args:
        what: "keys", "values" or "timestamps", for error texts.
        given: a number, a sequence of numbers, or anything that numpy reads as an array.
        wanted: float64, int64 or uint64, little-endian.

    Raises:
        EncodeError: not numbers, or a number that the wanted type cannot hold exactly.
    """
    try:
        column = _as_array(what, given, wanted)
    except EncodeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever numpy, or the array of another library, raises
        raise EncodeError(f"{what} are not a column of {_named(wanted)}: {cut(error)}") from None
    if column.ndim > 1:
        raise EncodeError(f"{what} have {column.ndim} dimensions; give one column")
    if column.dtype == wanted:
        return column
    if column.size == 0:
        return np.zeros(column.shape, dtype=wanted)
    if column.dtype.kind not in "iu" and not (column.dtype.kind == "f" and wanted.kind == "f"):
        raise EncodeError(f"{what} are {cut(column.dtype)}; the table takes {_named(wanted)}")
    if wanted.kind == "u" and column.dtype.kind == "i" and int(column.min()) < 0:
        raise EncodeError(f"{what} hold {column.min()}; the least is 0")
    if wanted.kind == "i" and column.dtype.kind == "u" and int(column.max()) >= 1 << 63:
        raise EncodeError(f"{what} hold {column.max()}; the most is {(1 << 63) - 1}")
    return _exact_floats(what, column) if wanted.kind == "f" else column.astype(wanted)


def refuse_missing(what: str, given: Any) -> None:
    """Refuse an array that says that some of its values are missing.

    numpy would give what lies in their places: any number, or NaN.

    Raises:
        EncodeError: a masked array of numpy, an extension array of pandas, an array of Arrow or
            Polars, with a masked or missing value.
    """
    if isinstance(given, np.ndarray):
        is_masked = type(given) is not np.ndarray and isinstance(given, np.ma.MaskedArray)
        lacks = is_masked and bool(np.ma.flatten_mask(np.ma.getmaskarray(given)).any())
    else:
        count = getattr(given, "null_count", 0)
        lacks = bool(count() if callable(count) else count)
        kind, is_missing = getattr(given, "dtype", None), getattr(given, "isna", None)
        # pandas: NaN in a column of numpy's is a number, NA in one of its own is none.
        if kind is not None and not isinstance(kind, np.dtype) and is_missing is not None:
            lacks = lacks or bool(np.any(is_missing()))
    if lacks:
        raise EncodeError(
            f"{what} have masked or missing values; leave their keys out, or fill them with a "
            "number (`filled`, `fillna`, `fill_null`)"
        )


def _as_array(what: str, given: Any, wanted: np.dtype[Any]) -> npt.NDArray[Any]:
    refuse_missing(what, given)
    if _is_raw(given):
        raise EncodeError(
            f"{what} are {len(given)} bytes; say what they hold with numpy.frombuffer(..., dtype=)"
        )
    if _is_whole(type(given)):
        return _of_sequence(what, (given,), wanted).reshape(())
    if isinstance(given, Sequence) and not isinstance(given, str) and not _has_format(given):
        return _of_sequence(what, given, wanted)
    return np.asarray(given)


def _is_raw(given: Any) -> bool:
    """Whether this is memory of which nothing says that it holds numbers."""
    return isinstance(given, (bytes, bytearray)) or (
        isinstance(given, memoryview) and given.format in ("B", "c")
    )


def _has_format(given: Sequence[Any]) -> bool:
    """Whether it is memory that says of what type its numbers are, as `array.array` is."""
    try:
        memoryview(given)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _of_sequence(what: str, given: Sequence[Any], wanted: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the array of a list or the like, of which numpy would choose the type by its own."""
    kinds = set(map(type, given))
    are_whole = {kind for kind in kinds if _is_whole(kind)}
    if not kinds <= are_whole | {float, np.float64, np.float32}:
        # Such as a bool among floats, or what is masked.
        for one in given:
            numbers(what, one, wanted)
        return np.asarray(given)
    whole: Sequence[int] = ()
    if kinds == {int}:
        whole = given
    elif are_whole:
        whole = [int(one) for one in given if type(one) in are_whole]
    if wanted.kind != "f":
        # numpy would convert a mix of small and large ones to floats.
        return np.array(whole, dtype=wanted) if kinds == are_whole else np.asarray(given)
    if whole and (max(whole) > EXACT_IN_FLOAT64 or min(whole) < -EXACT_IN_FLOAT64):
        _refuse_rounding(what, whole)
    return np.array(given, dtype=wanted)


def _is_whole(kind: type) -> bool:
    return issubclass(kind, (int, np.integer)) and not issubclass(kind, (bool, np.timedelta64))


def _refuse_rounding(what: str, whole: Sequence[int]) -> None:
    for number in whole:
        # Raises OverflowError beyond the largest float.
        if int(float(number)) != number:
            raise _rounded(what, number, float(number))


def _exact_floats(what: str, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the column as float64.

    Raises:
        EncodeError: a number has more digits, or is larger, than a float64 holds.
    """
    # What a long double beyond the range of float64 becomes is refused below.
    with np.errstate(over="ignore", under="ignore"):
        floats = column.astype("<f8")
    if column.dtype.kind == "f":
        if column.dtype.itemsize <= floats.dtype.itemsize:
            return floats
        wrong = (floats.astype(column.dtype) != column) & ~np.isnan(column)
    elif column.dtype.itemsize < floats.dtype.itemsize:
        return floats
    else:
        # A float beyond the range of the column's type must not be converted back to it.
        beyond = floats >= float(np.iinfo(column.dtype).max)
        wrong = beyond | (np.where(beyond, 0, floats).astype(column.dtype) != column)
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise _rounded(what, column[at], floats[at])
    return floats


def _rounded(what: str, number: Any, rounded: Any) -> EncodeError:
    return EncodeError(
        f"{what} hold {cut(number)}, of which float64 would make {float(rounded):.17g}; use a "
        "table of values=int, or convert to float64 yourself"
    )


def _named(wanted: np.dtype[Any]) -> str:
    return _NAMES[wanted.kind]


def cut(shown: Any) -> str:
    """Return a type, a number or an error as a short text."""
    text = " ".join(str(shown).split())
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
