"""The fast path of the buffer: same deltas, same order, under any race."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.buffer import AddResult, ProducerBuffer
from broker.core.fast_path import (
    LONG,
    MAX_KNOWN,
    MAX_PLAIN,
    ROW_BYTES,
    SHORT,
    PythonIntake,
    PythonSetter,
    plain_size,
    plain_size_by_python,
)
from broker.core.sent_chunks import Packed
from broker.protocol.cells import cell_of, value_of
from broker.protocol.codec import decode_chunk
from broker.protocol.constants import INT_MAX, INT_MIN, MAX_DEPTH
from broker.protocol.names import shard_of
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.protocol.values import MAX_PACKED_BYTES, admit_key
from broker.speedups import native
from tests.effort import examples
from tests.extension import ALONE, compiled
from tests.unit.core.test_buffer import buffer, put
from tests.unit.strategies import CELLS, KEYS

Call = tuple[int, str, Any]
TEXTS = ("x" * SHORT, "x" * 65, "x" * 200, "é")
PARTS = ([1], {"a": 1.5}, b"x", {"a": "y" * 90})

CALLS = st.lists(
    st.one_of(
        st.tuples(
            st.just(OP_SET),
            st.sampled_from(["a", "b", "k" * SHORT, "k" * 65, "ü"]),
            st.sampled_from(
                [0, 1.5, None, True, *TEXTS, "é", [1], {"a": 1.5}, b"x", {"a": "y" * 90}]
            ),
        ),
        st.tuples(st.just(OP_INCREMENT), st.just("a"), st.just(1)),
        st.tuples(st.just(OP_DELETE), st.just("a"), st.none()),
        st.tuples(st.just(0), st.sampled_from(["send", "count", "close"]), st.none()),
    ),
    max_size=80,
)


class _Ways:
    """The fast path into a buffer; `set` returns true for what cannot take it."""

    def __init__(self, one: ProducerBuffer, notify: Callable[[int], object]) -> None:
        self._plain_keys, self._notify = one.plain_keys, notify

    def _set_exactly(self, _key: str, _value: Any) -> bool:
        return True

    def _set_cell(self, _key: str, _cell: bytes) -> bool:
        return True


class PythonFast(_Ways, PythonSetter):  # type: ignore[misc]
    """In Python."""


WAYS: dict[str, Any] = {"python": PythonFast}
if native is not None:
    WAYS[ALONE] = type("NativeFast", (_Ways, native.Setter), {})
Fast: Any = PythonFast


@pytest.fixture(scope="module", params=["python", ALONE], autouse=True)
def way(request: pytest.FixtureRequest) -> str:
    """Run each test in Python, and with the extension."""
    global Fast  # noqa: PLW0603 - Hypothesis runs many examples with one fixture
    if request.param == ALONE:
        compiled()
    Fast = WAYS[request.param]
    return str(request.param)


def quick(one: ProducerBuffer, key: Any, value: Any) -> AddResult | None:
    """Set a key on the fast path; whether to wake its lane, None if the slow path is needed."""
    woken: list[int] = []
    if Fast(one, woken.append).set(key, value):
        return None
    return AddResult.WAKE if woken == [shard_of(key, len(one.lanes))] else AddResult.BUFFERED


def write(one: ProducerBuffer, op: int, key: str, value: Any) -> AddResult:
    """Buffer a delta as a producer does."""
    return (quick(one, key, value) if op == OP_SET else None) or put(one, op, key, value)


def deltas(packed: Packed | None) -> Iterator[Call]:
    """Yield a chunk's deltas in their order."""
    for run in decode_chunk(packed.data).runs if packed else ():
        for n, key in enumerate(run.keys):
            yield run.op, key, value_of(run.values[n]) if run.values is not None else None


def take(one: ProducerBuffer, *, linger: float = 0.0) -> list[Call]:
    """Send the next chunk, if there is one."""
    packed, _ = one.next_chunk(0, 0.0, linger, 0)
    one.accepted(0, 0.0)
    return list(deltas(packed))


@given(
    calls=CALLS,
    max_count=st.integers(1, 20),
    chunk_bytes=st.sampled_from([600, 1500, 1 << 16]),
    max_bytes=st.sampled_from([700, 1500, 10_000]),
)
@settings(max_examples=examples(300))
def test_what_was_called_is_sent_in_order_and_within_the_limits(
    calls: list[Call], max_count: int, chunk_bytes: int, max_bytes: int
) -> None:
    """Order and limits hold when fast calls mix with other calls, sending and counting."""
    one = buffer(max_count=max_count, chunk_bytes=chunk_bytes, max_bytes=max_bytes)
    expected: list[Call] = []
    sent: list[Call] = []
    for op, key, value in calls:
        if op:
            if write(one, op, key, value) is not AddResult.NO_ROOM:
                expected.append((op, key, value))
        elif key == "send":
            sent += take(one)
        elif key == "close":
            one.close_all()
        else:
            counts = one.counts()
            assert counts.buffered == len(expected) == counts.pending + counts.accepted
            assert counts.buffer_bytes <= max_bytes or counts.pending == 1
    while one.pending:
        news = take(one)
        assert news
        sent += news
    assert sent == expected
    assert one.bytes == 0


@pytest.mark.parametrize(
    ("key", "value", "plain"),
    [
        ("k", 1.5, True),
        ("k", float("nan"), True),
        ("k", True, True),
        ("k", None, True),
        ("k", INT_MIN, True),
        ("k", INT_MAX, True),
        ("k", INT_MIN - 1, False),
        ("k", INT_MAX + 1, False),
        ("k", "x" * SHORT, True),
        ("k", "x" * (SHORT + 1), False),
        ("k", "", True),
        ("k", "ü", False),
        ("k", "\ud800", False),
        ("k", b"x", True),
        ("k", [1], True),
        ("k", {"lat": 1.5, "lon": [2]}, True),
        ("k", b"x" * (SHORT - 2), True),
        ("k", b"x" * (SHORT - 1), False),
        ("k", {"k": "x" * SHORT}, False),
        ("k", {1: 1}, False),
        ("k", (1,), False),
        ("k", {1}, False),
        ("k", [type("Number", (float,), {})(1)], False),
        ("k" * SHORT, 1, True),
        ("k" * (SHORT + 1), 1, False),
        ("", 1, False),
        ("ü", 1, False),
        ("\ud800", 1, False),
        (1, 1, False),
        (b"k", 1, False),
        (type("Key", (str,), {})("k"), 1, False),
        ("k", type("Number", (float,), {})(1), False),
    ],
)
def test_only_what_needs_no_look_is_plain(key: Any, value: Any, *, plain: bool) -> None:
    """Keys or values that may be refused, changed or large take the slow path."""
    one = buffer()
    put(one, OP_SET, "first", 0)
    assert quick(one, key, value) is (AddResult.BUFFERED if plain else None)
    if plain:
        cell, size = cell_of(value)
        most = SHORT + ROW_BYTES + SHORT
        assert admit_key(key) + size <= plain_size([key], [cell])[0] <= most


@pytest.mark.parametrize("shards", [1, 3])
def test_keys_go_to_their_shards_whether_they_are_known_or_not(shards: int) -> None:
    """Keys reach their shards, also when there are more than the cache holds."""
    one = buffer(shards=shards, max_bytes=1 << 30, max_count=1 << 20)
    for shard in range(shards):
        key = next(key for key in map(str, count()) if shard_of(key, shards) == shard)
        put(one, OP_SET, key, "first", shard=shard)
    keys = [f"key{n}" for n in range(40)]
    one.plain_keys.update(dict.fromkeys(map(str, range(MAX_KNOWN - 20)), one.lanes[0].intake))
    put_one = Fast(one, lambda _: None).set
    for value in (1, 2):
        for key in keys:
            assert put_one(key, value) is None
    assert len(one.plain_keys) == MAX_KNOWN
    one.close_all()
    for lane in one.lanes:
        packed, _ = one.next_chunk(lane.shard, 0.0, 0.0, 0)
        own = [key for key in keys if shard_of(key, shards) == lane.shard]
        expected = [(OP_SET, key, value) for value in (1, 2) for key in own]
        assert list(deltas(packed))[1:] == expected


@pytest.mark.parametrize("key", [[1], {}, {1}, None, 1, b"k"])
def test_what_is_no_key_goes_the_exact_way(key: Any) -> None:
    """The slow path reports the reason, also for an unhashable key."""
    one = buffer()
    put(one, OP_SET, "first", 0)
    assert quick(one, key, 1) is None
    assert one.counts().buffered == 1


def test_what_only_looks_plain_goes_the_exact_way() -> None:
    """A proxy that claims to be a str or an int cannot be packed."""

    class Proxy:
        def __init__(self, of: object) -> None:
            self.of = of

        @property
        def __class__(self) -> type:  # as wrapt and werkzeug have it
            return type(self.of)

        def __eq__(self, other: object) -> bool:
            return self.of == other

        def __hash__(self) -> int:
            return hash(self.of)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.of, name)

        def __len__(self) -> int:
            return len(self.of)  # type: ignore[arg-type]

        def __le__(self, other: Any) -> bool:
            return self.of <= other  # type: ignore[operator]

        def __ge__(self, other: Any) -> bool:
            return self.of >= other  # type: ignore[operator]

    one = buffer()
    put(one, OP_SET, "first", 0)
    assert quick(one, "k", 1) is AddResult.BUFFERED
    for key, value in [(Proxy("k"), 1), (Proxy("new"), 1), ("k", Proxy(1)), ("k", Proxy("a"))]:
        assert quick(one, key, value) is None
    assert one.counts().buffered == 2


def test_a_million_sets_hardly_ever_take_the_lock() -> None:
    """Only the first delta of a chunk, and one in 256, takes the lock."""
    one = buffer(max_bytes=1 << 24)
    exact = sum(
        quick(one, "key", n) is None and put(one, OP_SET, "key", n) is not AddResult.NO_ROOM
        for n in range(10_000)
    )
    assert exact <= 10_000 // MAX_PLAIN + 10_000 // 1000 + 20
    assert one.counts().buffered == 10_000


@pytest.mark.parametrize("length", [65, 100, 900, LONG - 40])
@pytest.mark.parametrize("make", [lambda n: "x" * n, lambda n: {"text": "x" * n}])
def test_longer_values_take_the_fast_way_too(length: int, make: Callable[[int], Any]) -> None:
    """After a few, the room follows the length of what is written, and shrinks again."""
    one = buffer(max_bytes=1 << 24, chunk_bytes=1 << 18)

    def exact(value: Any, times: int) -> int:
        return sum(
            quick(one, "key", value) is None and put(one, OP_SET, "key", value) is not None
            for _ in range(times)
        )

    # At least so many fit between two looks at the lock.
    together = min(MAX_PLAIN, (1 << 18) // (2 * LONG + 100))
    assert exact(make(length), 2000) <= 2000 / together + 60
    assert exact(make(2 * LONG), 3) == 3
    exact(1.5, 1000)
    assert one.lanes[0].intake.longest == SHORT
    assert exact(1.5, 2000) <= 2000 / MAX_PLAIN + 20


@pytest.mark.parametrize("max_bytes", [1000, 5000, 30_000])
def test_what_goes_the_fast_way_stays_within_the_buffer(max_bytes: int) -> None:
    """The buffer's limit holds without a check, since room is reserved before."""
    one = buffer(max_bytes=max_bytes)
    written = 0
    while write(one, OP_SET, f"key{written}", written) is not AddResult.NO_ROOM:
        written += 1
        assert written < max_bytes
    assert one.counts().buffered == written > max_bytes // 40
    assert max_bytes - 300 < one.bytes <= max_bytes


@pytest.mark.parametrize("value", [1, {"a": 1}])
def test_who_comes_when_the_sender_has_just_looked_wakes_it(way: str, value: Any) -> None:
    """A set that races with the sender's last check wakes it; nothing waits for ever."""
    one = buffer()
    put(one, OP_SET, "first", 0)
    sent: list[Call] = []

    class Raced(list[Any]):
        """A buffer whose chunks are sent between the check of the limit and the addition."""

        def __iadd__(self, more: Any) -> Any:
            sent.extend(take(one))
            return super().__iadd__(more)

    if way == ALONE:
        pytest.skip("the extension adds and looks in one step, so nothing comes in between")
    lane = one.lanes[0]
    lane.intake.items = Raced()
    assert quick(one, "raced", value) is AddResult.WAKE
    assert sent == [(OP_SET, "first", 0)]
    assert take(one) == [(OP_SET, "raced", value)]


def test_when_shut_nothing_goes_the_fast_way() -> None:
    """Writing to a closed or forked producer takes the slow path, which raises."""
    for shut in (ProducerBuffer.shut, ProducerBuffer.shut_in_child):
        one = buffer()
        put(one, OP_SET, "first", 0)
        assert quick(one, "k", 1) is AddResult.BUFFERED
        shut(one)
        assert quick(one, "k", 2) is None
        put(one, OP_SET, "k", 3)
        assert quick(one, "k", 4) is None
        assert one.counts().buffered == 3


class Race:
    """Concurrent writers of one buffer, and a sender that sleeps while it is empty."""

    THREADS = 4
    EACH = 5000

    def __init__(self) -> None:
        self.buffer = buffer(max_bytes=1 << 30, max_count=50)
        self.received: list[Call] = []
        self.is_done = False
        self.woken = threading.Event()
        self.sender = threading.Thread(target=self.send)
        self.writers = [threading.Thread(target=self.write, args=(n,)) for n in range(self.THREADS)]

    def write(self, name: int) -> None:
        """Set an own key again and again, and delete it at times."""
        for n in range(self.EACH):
            if write(self.buffer, OP_SET, f"k{name}", n) is AddResult.WAKE:
                self.woken.set()
            if n % 1000 == 0:
                put(self.buffer, OP_DELETE, f"k{name}")
                self.woken.set()

    def send(self) -> None:
        """Send all chunks."""
        while not self.is_done or self.buffer.pending:
            self.woken.clear()
            found = take(self.buffer)
            self.received.extend(found)
            if not found:
                assert self.woken.wait(10), "a delta waits, and nobody woke the sender"

    def run(self) -> None:
        """Run all threads, and count meanwhile."""
        self.sender.start()
        for writer in self.writers:
            writer.start()
        while any(writer.is_alive() for writer in self.writers):
            counts = self.buffer.counts()
            assert counts.buffered == counts.pending + counts.accepted
        self.is_done = True
        self.woken.set()
        self.sender.join(30)
        assert not self.sender.is_alive()


def test_threads_race_and_nothing_is_lost_or_parted() -> None:
    """Each writer's order is kept, each delta arrives once, no wake-up is lost."""
    race = Race()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        race.run()
    finally:
        sys.setswitchinterval(before)
    expected: list[tuple[int, int | None]] = []
    for n in range(race.EACH):
        expected += [(OP_SET, n), (OP_DELETE, None)] if n % 1000 == 0 else [(OP_SET, n)]
    for name in range(race.THREADS):
        assert [(op, value) for op, key, value in race.received if key == f"k{name}"] == expected


def test_long_values_of_racing_threads_do_not_exceed_a_chunk() -> None:
    """A thread that looked before another one added may add one more than there was room for."""
    one = buffer(chunk_bytes=8192)
    put(one, OP_SET, "first", 0)
    items = one.lanes[0].intake.items
    for number in range(12):
        items += (f"k{number}", "x" * 2000)
    one.close_all()
    sizes = []
    while one.pending:
        packed, _ = one.next_chunk(0, 0.0, 0.0, 0)
        assert packed is not None
        sizes.append((packed.deltas, len(packed.data)))
        one.accepted(0, 0.0)
    assert sum(deltas for deltas, _ in sizes) == 13
    assert [deltas for deltas, _ in sizes] == [1, 12]
    assert one.bytes == 0


def test_a_long_list_is_packed_once() -> None:
    """What is too long for the fast path goes on as the bytes that it was packed to."""
    one = buffer(chunk_bytes=1 << 20, max_bytes=1 << 22)
    put(one, OP_SET, "first", 0)
    given: list[bytes] = []

    class Long(Fast):  # type: ignore[misc]
        def _set_exactly(self, _key: str, _value: Any) -> bool:
            pytest.fail("it is packed again")

        def _set_cell(self, _key: str, cell: bytes) -> bool:
            given.append(cell)
            return True

    assert Long(one, lambda _shard: None).set("k", [0.5] * 1000)
    assert given == [cell_of([0.5] * 1000)[0]]


def test_the_extension_has_the_limits_of_python() -> None:
    """What is a constant there is one here."""
    found = compiled()
    assert found.ROW_BYTES == ROW_BYTES
    assert found.SHORT_BYTES == SHORT == PythonIntake(0).longest == found.Intake(0).longest
    assert found.MAX_DEPTH == MAX_DEPTH
    assert found.MAX_PACKED_BYTES == MAX_PACKED_BYTES


@given(st.lists(st.tuples(KEYS, CELLS), min_size=1, max_size=20))
def test_sizes_are_the_same(pairs: list[tuple[str, Any]]) -> None:
    """Of columns of anything."""
    keys, cells = [key for key, _ in pairs], [cell for _, cell in pairs]
    assert compiled().plain_size(keys, cells) == plain_size_by_python(keys, cells)


def test_set_takes_names_and_refuses_what_is_missing() -> None:
    """As any method."""
    one = buffer()
    put(one, OP_SET, "first", 0)
    fast = Fast(one, lambda _: None)
    fast.set(key="a", value=1)
    fast.set("b", value=2)
    for arguments, named in [((), {}), (("a",), {}), (("a", 1, 2), {}), (("a", 1), {"other": 2})]:
        with pytest.raises(TypeError, match="set"):
            fast.set(*arguments, **named)
    one.close_all()
    packed, _ = one.next_chunk(0, 0.0, 0.0, 0)
    assert [*deltas(packed)] == [(OP_SET, "first", 0), (OP_SET, "a", 1), (OP_SET, "b", 2)]


def test_what_the_exact_path_raises_is_raised() -> None:
    """The error is the caller's, and nothing is buffered."""

    class Refusing(Fast):  # type: ignore[misc]
        def _set_exactly(self, key: Any, value: Any) -> bool:
            raise ValueError(f"not plain: {key!r}", value)

        _set_cell = _set_exactly

    one = buffer(chunk_bytes=1 << 20, max_bytes=1 << 22)
    put(one, OP_SET, "first", 0)
    fast = Refusing(one, lambda _: None)
    for key, value in [("k", object()), ([], 1), ("k", (1,)), ("k", {1: 1}), ("k", ["x" * 5000])]:
        with pytest.raises(ValueError, match="not plain"):
            fast.set(key, value)
    assert one.counts().buffered == 1


def test_a_producer_that_is_gone_leaves_nothing() -> None:
    """Its fast path holds its buffer, and may be held by it: the collector finds both."""
    one = buffer()
    fast = Fast(one, lambda _: None)
    fast._notify = fast.set
    one.plain_keys["self"] = fast
    gone = weakref.ref(one.plain_keys)
    del one, fast
    gc.collect()
    assert gone() is None
