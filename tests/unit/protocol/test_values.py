"""What a key and a value may be, and what the caller hears about those that may not."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import EncodeError
from broker.protocol.codec import pack_value, unpack
from broker.protocol.constants import INT_MAX, INT_MIN, MAX_DEPTH, MAX_KEY_BYTES, MAX_VALUE_BYTES
from broker.protocol.values import SCALAR_BYTES, admit, admit_amount, admit_key, within_depth
from tests.unit.exactness import exact
from tests.unit.strategies import KEYS, VALUES

Pair = namedtuple("Pair", "x y")  # noqa: PYI024 - the untyped one is what is tested


class Colour(str, Enum):  # noqa: UP042 - the old one is what is tested
    """A str that is an Enum, as before StrEnum; its str() is "Colour.RED"."""

    RED = "red"


class Size(StrEnum):
    SMALL = "small"


class Level(IntEnum):
    HIGH = 3


class Shouting(str):
    """A str whose str() is another one."""

    __slots__ = ()

    def __str__(self) -> str:
        return "LOUD" * 50


class Moment(datetime):
    """A subclass of datetime, as those of pandas, pendulum and freezegun are."""


class Nowhere(tzinfo):
    """A time zone that does not know its own offset, which makes a datetime naive."""

    def utcoffset(self, _when: datetime | None) -> timedelta | None:
        """Say nothing."""
        return None

    dst = utcoffset

    def tzname(self, _when: datetime | None) -> str:
        """Say a name."""
        return "nowhere"


class Index:
    """An integer by protocol, as those of numpy are."""

    def __index__(self) -> int:
        return 7


def nested(depth: int, leaf: object = 1) -> Any:
    """Return lists and maps in turns, this many of them."""
    value: Any = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


EAST = timezone(timedelta(hours=2))
ALMOST = [1, 2.5, None]

ADMITTED: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "false": (False, False),
    "true": (True, True),
    "zero": (0, 0),
    "smallest integer": (INT_MIN, INT_MIN),
    "largest integer": (INT_MAX, INT_MAX),
    "float": (-0.0, -0.0),
    "infinity": (float("-inf"), float("-inf")),
    "not a number": (float("nan"), float("nan")),
    "empty str": ("", ""),
    "ascii": ("abc", "abc"),
    "other letters": ("Zürich 東京 🚌", "Zürich 東京 🚌"),
    "bytes": (b"\x00\xff", b"\x00\xff"),
    "bytearray": (bytearray(b"ab"), b"ab"),
    "memoryview": (memoryview(b"abcd")[::2], b"ac"),
    "list": ([1, [2]], [1, [2]]),
    "tuple": ((1, (2,)), [1, [2]]),
    "namedtuple": (Pair(1, 2), [1, 2]),
    "dict": ({"b": 1, "a": {}}, {"b": 1, "a": {}}),
    "mapping": (MappingProxyType({"k": (1,)}), {"k": [1]}),
    "ordered dict": (OrderedDict(k=1), {"k": 1}),
    "utc": (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
    "other zone": (datetime(2026, 1, 1, 2, tzinfo=EAST), datetime(2026, 1, 1, tzinfo=UTC)),
    "earliest": (datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)),
    "latest": (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
    "before 1970": (
        datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
    ),
    "datetime subclass": (Moment(2026, 1, 1, 2, tzinfo=EAST), datetime(2026, 1, 1, tzinfo=UTC)),
    "datetime subclass in utc": (Moment(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
    "int enum": (Level.HIGH, 3),
    "str enum": (Size.SMALL, "small"),
    "enum of str": (Colour.RED, "red"),
    "enum of str as map key": ({Colour.RED: 1}, {"red": 1}),
    "str subclass": (Shouting("quiet"), "quiet"),
    "integer by protocol": (Index(), 7),
    "deepest": (nested(MAX_DEPTH), nested(MAX_DEPTH)),
}


@pytest.mark.parametrize("name", ADMITTED)
def test_every_admitted_type_arrives_as_its_plain_equal(name: str) -> None:
    """A delta has the exact types that a reader gets, and at most the computed size."""
    given_value, expected = ADMITTED[name]
    value, size = admit(given_value)
    assert exact(value) == exact(expected)
    packed = pack_value(value)
    assert len(packed) <= size
    assert exact(unpack(packed)) == exact(expected)
    # The same inside a container, which takes another path.
    if name != "deepest":
        inside, size = admit([given_value])
        assert exact(inside) == exact([expected])
        assert len(pack_value(inside)) <= size


REFUSED: dict[str, tuple[Any, str]] = {
    "too small": (INT_MIN - 1, r"integer -9223372036854775809 is outside .* str or float"),
    "too large": (INT_MAX + 1, r"integer 18446744073709551616 is outside .* str or float"),
    "huge": (10**5000, "outside .* str or float"),
    "too large inside": ([{"k": INT_MAX + 1}], r"integer 18446744073709551616 is outside"),
    "naive": (datetime(2026, 1, 1), r"2026-01-01 00:00:00 has no time zone; use"),  # noqa: DTZ001
    "naive in effect": (datetime(2026, 1, 1, tzinfo=Nowhere()), "has no time zone; use"),
    "before the first year in utc": (datetime.min.replace(tzinfo=EAST), "0001-01-01 00:00:00"),
    "after the last year in utc": (
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-2))),
        "9999-12-31 23:59:59",
    ),
    "date": (date(2026, 1, 1), r"datetime.date\(2026, 1, 1\) is a date; values are"),
    "set": ({1}, r"\{1\} is a set; values are None, bool, int, .* aware datetime"),
    "decimal": (Decimal("1.5"), r"Decimal\('1.5'\) is a Decimal"),
    "complex": (1j, "is a complex"),
    "function": (len, "is a builtin_function_or_method"),
    "set inside": ([1, {"k": {2}}], r"\{2\} is a set"),
    "surrogate": ("a\ud800", r"value 'a\\ud800' is not valid Unicode: surrogates not allowed"),
    "surrogate inside": (["\udfff"], "not valid Unicode"),
    "surrogate in map key": ({"\ud800": 1}, "map key .* is not valid Unicode"),
    "map key": ({1: 2}, "map key 1 is a int; map keys are str"),
    "map key inside": ([{None: 2}], "map key None is a NoneType"),
    "too deep": (nested(MAX_DEPTH + 1), "deeper than 32 levels; flatten it"),
    "str too long": ("x" * (MAX_VALUE_BYTES + 1), r"'xxx.* over the limit of 1048576; split"),
    "letters too long": ("ü" * (MAX_VALUE_BYTES // 2 + 1), "over the limit of 1048576; split"),
    "bytes too long": (bytes(MAX_VALUE_BYTES + 1), "over the limit of 1048576; split"),
    "list too long": (["x" * (MAX_VALUE_BYTES // 2)] * 3, "over the limit of 1048576; split"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal_names_the_value_the_limit_and_the_fix(name: str) -> None:
    """The caller learns what was wrong from the message alone, and the message stays short."""
    value, message = REFUSED[name]
    with pytest.raises(EncodeError, match=message) as caught:
        admit(value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["naive", "naive in effect"])
def test_the_text_about_a_time_without_zone_is_no_other(name: str) -> None:
    """It names one fault and one fix."""
    with pytest.raises(EncodeError) as caught:
        admit(REFUSED[name][0])
    assert str(caught.value).endswith("has no time zone; use datetime.now(timezone.utc)")


def test_a_list_within_itself_is_refused() -> None:
    """It ends at the depth limit instead of never."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodeError, match="deeper than 32"):
        admit(loop)


@pytest.mark.parametrize(
    "make", [lambda n: "x" * n, lambda n: "ü" * (n // 2) + "x" * (n % 2), bytes]
)
@pytest.mark.parametrize("size", [0, 1, MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES])
def test_values_up_to_the_limit_are_admitted(size: int, make: Callable[[int], Any]) -> None:
    """1 MiB exactly is in; one byte more is out, as the refusals above show."""
    value, reported = admit(make(size))
    assert size <= len(pack_value(value)) <= reported


def test_the_limit_counts_bytes_and_not_the_worst_case() -> None:
    """A value that packs to a tenth of the limit is not refused."""
    value, _ = admit([0] * 100_000)
    assert len(pack_value(value)) < MAX_VALUE_BYTES // 10


def test_later_changes_by_the_caller_do_not_reach_what_is_sent() -> None:
    """Whatever can change is copied, at every depth."""
    inner: dict[str, Any] = {"k": [1]}
    data = bytearray(b"ab")
    value, _ = admit([inner, data])
    inner["k"].append(2)
    inner["new"] = 3
    data[0] = 0
    assert value == [{"k": [1]}, b"ab"]


def test_the_size_told_is_never_too_small() -> None:
    """See below; buffers and chunks are bounded by it."""

    @given(VALUES)
    def check(given_value: Any) -> None:
        value, size = admit(given_value)
        assert exact(value) == exact(given_value)
        assert len(pack_value(value)) <= size

    check()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        ("float64(1.5)", 1.5),
        ("float32(1.5)", 1.5),
        ("float16(1.5)", 1.5),
        ("int8(-3)", -3),
        ("int64(-(2**63))", INT_MIN),
        ("uint64(2**64 - 1)", INT_MAX),
        ("array(5)", 5),
        ("str_('a')", "a"),
        ("bytes_(b'a')", b"a"),
    ],
)
def test_scalars_of_numpy_become_plain_ones(make: str, expected: object) -> None:
    """Elements of an array can be sent as they are, alone and in a list."""
    numpy = pytest.importorskip("numpy")
    kind, _, argument = make.partition("(")
    scalar = getattr(numpy, kind)(eval("(" + argument))  # noqa: S307 - literals from above
    value, size = admit(scalar)
    assert exact(value) == exact(expected)
    assert len(pack_value(value)) <= size
    assert exact(admit([scalar])[0]) == exact([expected])


def test_a_bool_of_numpy_is_not_sent_as_a_number() -> None:
    """It becomes a bool, or is refused; 1 would be another value to every reader."""
    numpy = pytest.importorskip("numpy")
    try:
        value, _ = admit(numpy.bool_(True))
    except EncodeError:
        return
    assert value is True


def test_every_scalar_of_numpy_is_the_same_number_or_refused() -> None:
    """Of each type the extremes: a long double is no float64, an imaginary part is not dropped."""
    numpy = pytest.importorskip("numpy")
    for code in numpy.typecodes["All"].replace("O", ""):  # without objects, which are no scalars
        kind = numpy.dtype(code)
        given = [numpy.ones(1, code)[0], numpy.zeros(1, code)[0]]
        if kind.kind in "iu":
            given += [kind.type(numpy.iinfo(kind).min), kind.type(numpy.iinfo(kind).max)]
        if kind.kind == "f":
            info = numpy.finfo(kind)
            given += [info.max, info.tiny, info.eps, kind.type(1) / kind.type(3), kind.type("nan")]
        for scalar in given:
            try:
                value, _ = admit(scalar)
            except EncodeError:
                assert kind.kind not in "iu" or kind.itemsize > 8
                continue
            if kind.kind == "f" and scalar != scalar:  # noqa: PLR0124 - NaN
                assert value != value  # noqa: PLR0124
            elif kind.kind in "iu":
                assert value == int(scalar)
            elif kind.kind == "f":
                assert Fraction(*value.as_integer_ratio()) == Fraction(*scalar.as_integer_ratio())
            else:
                assert (kind.kind, type(value)) in {("S", bytes), ("U", str)}


def test_a_number_that_float64_does_not_hold_is_refused() -> None:
    """A long double beyond its range would become infinite, another would lose digits."""
    numpy = pytest.importorskip("numpy")
    if numpy.finfo(numpy.longdouble).max == numpy.finfo(numpy.float64).max:
        return
    for text in ("1e400", "-1e400", "0.1"):
        with pytest.raises(EncodeError, match="longdouble, of which float64 would make"):
            admit([numpy.longdouble(text)])
    assert exact(admit(numpy.longdouble("inf"))[0]) == exact(float("inf"))
    assert exact(admit(numpy.longdouble("0.5"))[0]) == exact(0.5)


@pytest.mark.parametrize("code", ["h", "i", "q", "Q", "f", "d", "?"])
def test_memory_of_numbers_is_no_bytes(code: str) -> None:
    """Its bytes depend on the machine, and readers would see no numbers."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(EncodeError, match="is a memoryview of numbers"):
        admit(memoryview(numpy.ones(2, code)))


class Precise(datetime):
    """A time with nanoseconds, as those of pandas."""

    nanosecond = 7


class NotATime(datetime):
    """What pandas has in the place of a missing time."""

    def utcoffset(self) -> timedelta | None:
        """Refuse."""
        raise ValueError("NaTType does not support utcoffset")


def test_times_of_pandas_keep_all_of_their_digits() -> None:
    """Nanoseconds would be lost, and a missing time is none."""
    with pytest.raises(EncodeError, match="has nanoseconds; round it"):
        admit(Precise(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(EncodeError, match="is no time"):
        admit([NotATime(2026, 1, 1, tzinfo=UTC)])


class Apart(str):
    """A text that is equal to nothing else."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def test_a_map_loses_no_key() -> None:
    """Two keys that are the same text for every reader are refused."""
    with pytest.raises(EncodeError, match="keys that are the same text"):
        admit({Apart("k"): 1, Apart("k"): 2})


# -- keys and amounts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["k", " ", "\0", "x" * MAX_KEY_BYTES, "ü" * (MAX_KEY_BYTES // 2), "🚌" * (MAX_KEY_BYTES // 4)],
    ids=["one", "space", "nul", "1024 ascii", "512 of two", "256 of four"],
)
def test_keys_of_1_to_1024_bytes_are_admitted(key: str) -> None:
    """The limit counts bytes of UTF-8, and the computed size is an upper bound."""
    assert len(pack_value(key)) <= admit_key(key)


@given(KEYS)
def test_the_computed_size_of_a_key_is_never_too_small(key: str) -> None:
    """Whatever the letters."""
    assert len(pack_value(key)) <= admit_key(key)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "key is empty; a key has 1 to 1024 bytes"),
        ("x" * 1025, "has 1025 bytes of UTF-8, over the limit of 1024; shorten it"),
        ("ü" * 512 + "x", "has 1025 bytes"),
        ("🚌" * 257, "has 1028 bytes"),
        ("a\ud800", r"key 'a\\ud800' is not valid Unicode"),
        (b"k", "key b'k' is a bytes; keys are str"),
        (1, "key 1 is a int; keys are str"),
        (None, "key None is a NoneType; keys are str"),
    ],
)
def test_every_other_key_is_refused_with_the_reason(key: Any, message: str) -> None:
    """At the call, before anything is buffered."""
    with pytest.raises(EncodeError, match=message):
        admit_key(key)


def test_the_text_about_a_long_key_is_short() -> None:
    """Whatever its type."""
    for key in (b"k" * 5000, [0] * 5000, "k" * 5000):
        with pytest.raises(EncodeError) as caught:
            admit_key(key)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("amount", [0, -1, INT_MIN, INT_MAX, 2.5, float("inf"), Level.HIGH])
def test_amounts_are_numbers(amount: float) -> None:
    """Integers of 64 bits and floats."""
    value, size = admit_amount(amount)
    assert type(value) in (int, float)
    assert value == amount
    assert size == SCALAR_BYTES


@pytest.mark.parametrize("amount", [True, None, "1", b"1", [1], INT_MAX + 1, INT_MIN - 1, 1j])
def test_other_amounts_are_refused(amount: object) -> None:
    """A bool too: True is not 1 to a reader of another language."""
    with pytest.raises(EncodeError, match=r"amount .* is not a number|outside|values are"):
        admit_amount(amount)


@given(st.integers(1, MAX_DEPTH + 8))
def test_the_depth_rule_of_readers_is_that_of_writers(depth: int) -> None:
    """What can be sent will be taken, and what would be skipped cannot be sent."""
    value = nested(depth)
    assert within_depth([1, value, [2]]) is (depth <= MAX_DEPTH)
    if depth <= MAX_DEPTH:
        admit(value)
    else:
        with pytest.raises(EncodeError, match="deeper"):
            admit(value)
