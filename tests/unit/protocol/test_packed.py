"""Packed values: by either library the same bytes, the same values, and the same refusals."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import msgpack
import ormsgpack
import pytest
from hypothesis import given

from broker.errors import DecodeError, EncodeError
from broker.protocol import cells
from broker.protocol import packed as module
from broker.protocol.cells import cell_of
from broker.protocol.codec import pack_value
from broker.protocol.constants import INT_MAX, INT_MIN, MAX_DEPTH, MAX_VALUE_BYTES
from broker.protocol.packed import (
    pack_by_msgpack,
    packed_by_python,
    unpack_by_msgpack,
    unpack_by_ormsgpack,
    unpacked,
    unpacked_by_python,
)
from broker.protocol.values import MAX_PACKED_BYTES, admit
from broker.speedups import native
from tests.extension import ALONE, compiled
from tests.unit.exactness import exact
from tests.unit.protocol.test_values import ADMITTED, Shouting, nested
from tests.unit.strategies import VALUES

PACKS: dict[str, Callable[[Any], bytes]] = {
    "msgpack": pack_by_msgpack,
    "ormsgpack": ormsgpack.packb,
}
UNPACKS: dict[str, Callable[[bytes], Any]] = {
    "msgpack": unpack_by_msgpack,
    "ormsgpack": unpack_by_ormsgpack,
}
if native is not None:
    UNPACKS[ALONE] = native.unpacker(unpack_by_ormsgpack)


@pytest.fixture(params=[*PACKS, ALONE])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let values be packed by Python with one of the libraries, or by the extension alone."""
    if request.param == ALONE:
        monkeypatch.setattr(cells, "packed", compiled().packed)
    else:
        monkeypatch.setattr(module, "_pack", PACKS[request.param])
        monkeypatch.setattr(cells, "packed", packed_by_python)


def packed(value: Any) -> bytes | None:
    """Pack a value in the way that the test is about."""
    return cells.packed(value)


def test_the_fastest_way_is_used() -> None:
    """It comes with the package."""
    assert module._pack is ormsgpack.packb
    assert unpacked_by_python is unpack_by_ormsgpack
    assert (unpacked is unpacked_by_python) == (native is None)
    assert cells.packed is (packed_by_python if native is None else native.packed)


# -- at the call ----------------------------------------------------------------------------------


def outcome(path: Callable[[Any], tuple[Any, int]], value: Any) -> bytes | str:
    """Return the bytes that a path sends for a value, or why it refuses it."""
    try:
        cell = path(value)[0]
    except EncodeError as error:
        return str(error)
    return cell if path is cell_of and type(cell) is bytes else pack_value(cell)


# What a library would pack without a word.
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        {b"k": 1},
        {None: 1},
        {"a": 1, 2: 3},
        {"a": {1: 2}},
        [[{1.5: 1}]],
        [Shouting("k")],
        [(1, 2)],
        {"a": OrderedDict(b=1)},
        [memoryview(b"ab")],
        {"a": memoryview(b"ab").cast("H")},
        [msgpack.ExtType(3, b"x")],
        [ormsgpack.Ext(3, b"x")],
        {"a": msgpack.Timestamp(1, 1)},
        [INT_MAX + 1],
        [INT_MIN - 1],
        ["\ud800"],
        {"\ud800": 1},
        nested(MAX_DEPTH + 1),
        {"a": nested(MAX_DEPTH)},
        bytes(MAX_VALUE_BYTES + 1),
        ["x" * MAX_VALUE_BYTES, 1, 2],
    ],
)
def test_what_the_library_would_take_is_looked_at(value: Any) -> None:
    """The quick way leaves it to the exact one, which admits or refuses it by our rules."""
    assert packed(value) is None
    assert outcome(cell_of, value) == outcome(admit, value)


@pytest.mark.usefixtures("library")
def test_a_map_key_of_a_subclass_is_the_text_that_it_holds() -> None:
    """Whatever it says of itself."""
    assert outcome(cell_of, {Shouting("k"): 1}) == outcome(admit, {Shouting("k"): 1})


@pytest.mark.usefixtures("library")
def test_what_is_quick_is_quick() -> None:
    """The shapes that services write need no exact look."""
    assert packed({"lat": 52.37, "lon": 4.89}) == pack_value({"lat": 52.37, "lon": 4.89})
    record = {"id": "AA1", "late": 12, "ok": True, "at": None, "position": [52.3, 4.9]}
    assert packed(record) == pack_value(record)
    assert packed(nested(MAX_DEPTH)) == pack_value(nested(MAX_DEPTH))
    assert packed(b"\x00\xff") == b"\xc4\x02\x00\xff"


@pytest.mark.usefixtures("library")
def test_a_map_that_another_thread_changes_is_packed_as_it_was_at_one_moment() -> None:
    """A write does not fail for what another thread does to the value meanwhile."""
    value: dict[str, Any] = {"n": {}}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for n in range(20):
                value["n"][str(n)] = n
            value["n"].clear()

    thread = threading.Thread(target=change)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20_000):
            cell, _ = cell_of(value)
            assert isinstance(cell, bytes)
            found = unpacked(cell)
            assert [*found["n"]] == [str(n) for n in range(len(found["n"]))]  # type: ignore[index, call-overload]
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()


@pytest.mark.parametrize("name", PACKS)
@given(value=VALUES)
def test_both_libraries_write_the_same_bytes(name: str, value: Any) -> None:
    """Those of the exact path, or they leave the value to it."""
    whole = [value]
    if module._is_plain(whole, 1):
        assert PACKS[name](whole) == pack_value(whole)


@given(value=VALUES)
def test_the_extension_packs_what_python_packs(value: Any) -> None:
    """The same bytes, or it leaves the value to the exact path, too."""
    for whole in ([value], {"": value}):
        assert compiled().packed(whole) == packed_by_python(whole)


@pytest.mark.parametrize("count", [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536, 70_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda count: ["x" * count],
        lambda count: ["é" * (count // 2)],
        lambda count: b"x" * count,
        lambda count: [None] * count,
        lambda count: {f"{n:x}": n for n in range(count)},
    ],
)
def test_every_head_of_every_length_is_the_same(count: int, make: Callable[[int], Any]) -> None:
    """At each border of the format."""
    value = make(count)
    assert compiled().packed(value) == packed_by_python(value) == pack_value(value)


@pytest.mark.parametrize("excess", [-40, -1, 0, 1, 40])
@pytest.mark.parametrize("make", [lambda n: b"x" * n, lambda n: ["x" * n], lambda n: [[b"x" * n]]])
def test_the_limit_is_the_same(excess: int, make: Callable[[int], Any]) -> None:
    """To the byte."""
    value = make(MAX_PACKED_BYTES - 5 + excess)
    assert compiled().packed(value) == packed_by_python(value)


@given(
    fields=st.lists(VALUES, max_size=4),
    limit=st.integers(0, 200),
)
def test_fields_of_a_chunk_are_packed_as_msgpack_does(fields: list[Any], limit: int) -> None:
    """Or not at all: beyond the limit, or where a value is not plain."""
    found = compiled().pack_fields(fields, limit)
    expected = packed_by_python(fields)
    is_within = expected is not None and len(expected) <= limit
    assert found == (expected if is_within else None)


class Meddling:
    """Packs another value when it is collected, in the middle of whatever runs."""

    seen: list[bytes | None] = []  # noqa: RUF012 - of the test

    def __init__(self) -> None:
        self.loop = self

    def __del__(self) -> None:
        self.seen.append(packed({"in": "between"}))


@pytest.mark.usefixtures("library")
def test_a_finalizer_may_set_in_the_middle() -> None:
    """Each call has a packer of its own, though both are on one thread."""
    Meddling.seen.clear()
    value = {f"k{n}": [n, [n]] for n in range(300)}
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            Meddling()
            assert packed(value) == pack_value(value)
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    assert Meddling.seen
    assert set(Meddling.seen) == {pack_value({"in": "between"})}


# -- at the read ----------------------------------------------------------------------------------


def reading(unpack: Callable[[bytes], Any], data: bytes) -> Any:
    """Return what a library makes of bytes: the exact value, or that it refuses them."""
    try:
        return exact(unpack(data))
    except DecodeError:
        return DecodeError


@pytest.mark.parametrize("unpack", UNPACKS.values(), ids=UNPACKS)
@pytest.mark.parametrize("name", ADMITTED)
def test_every_value_is_read_as_it_was(name: str, unpack: Callable[[bytes], Any]) -> None:
    """Type for type."""
    _, expected = ADMITTED[name]
    assert exact(unpack(pack_value(expected))) == exact(expected)


@pytest.mark.parametrize("unpack", UNPACKS.values(), ids=UNPACKS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
        b"\x81\xc4\x01a\x01",
        b"\x91\x81\xc4\x01a\x01",
        b"\x81\x01\x01",
        b"\x81\xc0\x01",
        b"\x81\x90\x01",
        b"\xd4\x05x",
        b"\xd6\xff\x00",
        b"\xd4\xff\x00",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xc7\x0c\xff" + (1_000_000_000).to_bytes(4) + bytes(8),
        b"\x91" * 33 + b"\xc0",
        b"\x91" * 32 + b"\x90",
        b"\x81\xa0" * 33 + b"\xc0",
        b"\x91" * 2000 + b"\xc0",
        b"\x91" * 100_000 + b"\xc0",
        b"\x92\x91\x01" + b"\x91" * 32 + b"\xc0",
    ],
    ids=lambda data: data.hex()[:40] if isinstance(data, bytes) else "",
)
def test_what_is_no_value_of_ours_is_refused(data: bytes, unpack: Callable[[bytes], Any]) -> None:
    """Whatever the library would make of it."""
    with pytest.raises(DecodeError):
        unpack(data)


@pytest.mark.parametrize("depth", [1, 31, MAX_DEPTH])
@pytest.mark.parametrize("unpack", UNPACKS.values(), ids=UNPACKS)
def test_levels_up_to_the_limit_are_read(depth: int, unpack: Callable[[bytes], Any]) -> None:
    """Also beside so many containers that they could nest deeper, and do not."""
    value = [nested(depth - 1) if depth > 1 else 0, *([0] for _ in range(100 * (depth > 1)))]
    assert exact(unpack(pack_value(value))) == exact(value)


@pytest.mark.parametrize("unpack", UNPACKS.values(), ids=UNPACKS)
def test_what_is_behind_the_value_is_ignored(unpack: Callable[[bytes], Any]) -> None:
    """As everywhere in the protocol; one library cannot see it."""
    assert unpack(b"\x91\x01\xc1\xff") == [1]


@pytest.mark.parametrize("unpack", UNPACKS.values(), ids=UNPACKS)
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\xd4\x05x", "unknown extension type 5"),
        (b"\x91\xd4\xff\x00", "invalid timestamp"),
    ],
)
def test_the_fault_of_an_extension_is_named(
    data: bytes, fault: str, unpack: Callable[[bytes], Any]
) -> None:
    """One library hides what its hook raised."""
    with pytest.raises(DecodeError, match=fault):
        unpack(data)


@given(st.binary(max_size=40))
def test_all_ways_read_the_same(data: bytes) -> None:
    """Any bytes: the same value, or all refuse them."""
    one, *others = (reading(unpack, data) for unpack in UNPACKS.values())
    assert others == [one] * len(others)


@given(VALUES, st.data())
def test_all_ways_see_the_same_damage(value: Any, data: st.DataObject) -> None:
    """A packed value with a byte changed is another value to all of them, or none."""
    whole = bytearray(pack_value([value]))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    one, *others = (reading(unpack, bytes(whole)) for unpack in UNPACKS.values())
    assert others == [one] * len(others)


@given(VALUES)
def test_plain_values_are_read_without_python(value: Any) -> None:
    """Only extensions need it."""

    def exactly(_data: bytes) -> Any:
        pytest.fail("the twin was asked")

    read = compiled().unpacker(exactly)
    whole = [value]
    if packed_by_python(whole) is not None:
        assert exact(read(pack_value(whole))) == exact(whole)


@pytest.mark.parametrize("key", ["k", "k" * 32, "k" * 33, "é", "é" * 16, "", "\x00"])
def test_keys_that_are_remembered_are_the_same_text(key: str) -> None:
    """Each time, also where another of the same place came in between."""
    read = UNPACKS.get(ALONE, unpacked)
    for other in (key, *(f"{n:x}" for n in range(2000)), key):
        assert read(pack_value({other: 1, key + "2": 2})) == {other: 1, key + "2": 2}


@pytest.mark.parametrize("head", ["dd", "df", "c6", "db", "dc", "de", "d9", "c4"])
def test_a_claimed_length_asks_for_no_memory(head: str) -> None:
    """What is not there is not read, however many there are said to be."""
    for unpack in UNPACKS.values():
        with pytest.raises(DecodeError):
            unpack(bytes.fromhex(head) + b"\xff\xff\xff\xff" + b"\xc0" * 20)


def test_what_is_read_is_held_by_nobody_else() -> None:
    """References are counted right, also where bytes are refused half-way."""
    read = UNPACKS.get(ALONE, unpacked)
    whole = pack_value({"list": [[1.5, b"x" * 100], {"map": "y" * 100}]})

    def rounds(times: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(times):
                for end in range(1, len(whole) + 1):
                    with suppress(DecodeError):
                        read(whole[:end])
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    rounds(1)
    assert rounds(20) < rounds(2) + 20_000
