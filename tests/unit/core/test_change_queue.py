"""The queue between a replica and one reader of its changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.core import change_queue as module
from broker.core.change_queue import ChangeQueue, OverflowPolicy
from broker.core.changes import ChangeColumns
from broker.errors import BrokerError, ChangesOverflowError, ConfigError, DecodeError
from broker.model import Change
from broker.protocol.messages import Cell, Position
from broker.protocol.operations import Operation
from tests.unit.change_rows import all_of, columns


def change(key: str, value: object, operation: Operation = "set") -> Change:
    """Return a change of a key."""
    return Change(key, value, operation, Position())  # type: ignore[arg-type]


def _unread(key: str, fault: DecodeError) -> None:
    pytest.fail(f"{key}: {fault}")


def queue(
    prefix: str | None = None, limit: int = 10, overflow: OverflowPolicy = "conflate"
) -> ChangeQueue:
    """Return a queue without a waiting reader."""
    return ChangeQueue(prefix, limit, overflow, lambda: None, _unread)


def test_changes_come_out_once_in_their_order() -> None:
    """Each change comes out once, also of a repeated key, while the reader keeps up."""
    changes = queue()
    told = [change("a", 1), change("b", 1), change("a", 2)]
    changes.add(columns(told[:2]))
    changes.add(columns(told[2:]))
    assert all_of(changes) == told
    assert all_of(changes) == []


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [(None, ["bus/1", "car/1", ""]), ("", ["bus/1", "car/1", ""]), ("bus/", ["bus/1"]), ("x", [])],
)
def test_a_prefix_lets_only_its_keys_through(prefix: str | None, keys: list[str]) -> None:
    """Changes of other keys take no room and wake no reader."""
    woken: list[int] = []
    changes = ChangeQueue(prefix, 10, "raise", lambda: woken.append(1), _unread)
    changes.add(columns([change("bus/1", 1), change("car/1", 1), change("", 1)]))
    assert [one.key for one in all_of(changes)] == keys
    assert bool(woken) == bool(keys)


def test_a_reader_that_is_behind_gets_the_newest_of_each_key() -> None:
    """In the order of these newest ones; what was left out is counted."""
    changes = queue(limit=3)
    changes.add(columns([change("a", 1), change("b", 1), change("a", 2, "increment")]))
    changes.add(columns([change("c", 1), change("b", None, "delete")]))
    assert [(one.key, one.value) for one in all_of(changes)] == [("a", 2), ("c", 1), ("b", None)]
    assert changes.conflated == 2
    changes.add(columns([change("a", 3)]))
    assert [one.value for one in all_of(changes)] == [3]


@pytest.mark.parametrize("overflow", ["raise", "conflate"])
def test_what_does_not_fit_is_said_after_what_fits(overflow: OverflowPolicy) -> None:
    """The reader gets the first changes without a gap, then the error on every call."""
    woken: list[int] = []
    changes = ChangeQueue(None, 2, overflow, lambda: woken.append(1), _unread)
    changes.add(columns([change(key, 1) for key in "abc"]))
    changes.add(columns([change("d", 1)]))
    assert woken
    assert [one.key for one in all_of(changes)] == ["a", "b"]
    for _ in range(2):
        with pytest.raises(ChangesOverflowError, match="more than 2 changes behind"):
            all_of(changes)


def test_raise_never_leaves_anything_out() -> None:
    """Repeated keys are an overflow like any other."""
    changes = queue(limit=2, overflow="raise")
    changes.add(columns([change("a", n) for n in range(3)]))
    assert [one.value for one in all_of(changes)] == [0, 1]
    assert changes.conflated == 0
    with pytest.raises(ChangesOverflowError):
        all_of(changes)


def test_what_waits_can_be_read_after_the_end() -> None:
    """The reader is woken, reads what is left and ends; later changes are ignored."""
    woken: list[int] = []
    changes = ChangeQueue(None, 10, "raise", lambda: woken.append(1), _unread)
    changes.add(columns([change("a", 1)]))
    changes.close()
    changes.close()
    changes.add(columns([change("b", 1)]))
    assert len(woken) == 3
    assert [one.key for one in all_of(changes)] == ["a"]
    with pytest.raises(StopIteration):
        all_of(changes)


@pytest.mark.parametrize(
    ("limit", "overflow", "message"),
    [(0, "raise", "limit=0; allowed: 1"), (5, "drop", "overflow='drop'; allowed: conflate, raise")],
)
def test_wrong_settings_are_refused(limit: int, overflow: str, message: str) -> None:
    """A wrong setting raises at once, and the error names the allowed values."""
    with pytest.raises(ConfigError, match=message) as caught:
        queue(limit=limit, overflow=overflow)  # type: ignore[arg-type]
    assert isinstance(caught.value, BrokerError)


CHANGES = st.lists(
    st.builds(change, st.sampled_from("abcd"), st.integers(0, 9)), min_size=1, max_size=6
)


@given(st.lists(st.one_of(CHANGES, st.none()), max_size=12), st.integers(1, 6))
def test_a_slow_reader_ends_with_the_same_content(
    steps: list[list[Change] | None], limit: int
) -> None:
    """The changes add up to the newest state, or the reader gets an error."""
    changes = queue(limit=limit)
    truth: dict[str, object] = {}
    copy: dict[str, object] = {}
    taken = told = 0

    def read() -> None:
        nonlocal taken
        for one in all_of(changes):
            copy[one.key] = one.value
            taken += 1

    try:
        for step in steps:
            if step is None:
                read()
            else:
                changes.add(columns(step))
                told += len(step)
                truth.update((one.key, one.value) for one in step)
        read()
        read()
    except ChangesOverflowError:
        assert len(truth) > limit
        return
    assert copy == truth
    assert told == taken + changes.conflated


@pytest.mark.parametrize("prefix", [["a", "b"], ("a",), b"a", 1])
def test_a_prefix_is_one_text(prefix: object) -> None:
    """Anything else is refused at the call, before it can fail in the replica's own task."""
    with pytest.raises(ConfigError, match="allowed: one str"):
        queue(prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", ["10", 1.5, True, None])
def test_a_limit_is_a_whole_number(limit: object) -> None:
    """Anything else is refused at the call."""
    with pytest.raises(ConfigError, match="limit="):
        queue(limit=limit)  # type: ignore[arg-type]


def test_a_value_that_cannot_be_read_hides_no_other_change() -> None:
    """It is left out and named, whichever way the changes are taken."""
    found: list[str] = []
    changes = ChangeQueue(None, 10, "raise", lambda: None, lambda key, _fault: found.append(key))
    told = [change("a", b"\xc1"), change("b", b"\x91\x01"), change("c", b""), change("d", 1)]
    changes.add(columns(told))
    assert [(one.key, one.value) for one in all_of(changes)] == [("b", [1]), ("d", 1)]
    assert found == ["a", "c"]
    changes.add(columns(told))
    one = changes.items()
    assert one is not None
    assert [(one.key, one.value) for one in one] == [("b", [1])]
    assert list(changes.items() or ()) == [change("d", 1)]
    assert changes.items() is None
    assert found == ["a", "c", "a", "c"]
    changes.add(columns([change("e", b"\xc1")]))
    assert changes.items() is None
    assert all_of(changes) == []


def test_lists_in_changes_are_the_readers_own() -> None:
    """What one reader does to them is not seen by the next."""
    packed = change("a", b"\x91\x01")
    one, other = queue(), queue()
    one.add(columns([packed]))
    other.add(columns([packed]))
    first = all_of(one)[0].value
    first.append(2)  # type: ignore[union-attr]
    assert all_of(other)[0].value == [1]


@pytest.mark.parametrize("overflow", ["raise", "conflate"])
def test_the_end_is_told_though_nothing_before_it_can_be_read(overflow: OverflowPolicy) -> None:
    """A reader that waits for a bell would wait for ever: it rings once for the end."""
    changes = ChangeQueue(None, 10, overflow, lambda: None, lambda _key, _fault: None)
    changes.add(columns([change("a", b"\xc1"), change("b", b"")]))
    changes.close()
    with pytest.raises(StopIteration):
        all_of(changes)
    changes = ChangeQueue(None, 1, "raise", lambda: None, lambda _key, _fault: None)
    changes.add(columns([change("a", b"\xc1"), change("b", b"")]))
    with pytest.raises(ChangesOverflowError):
        all_of(changes)


# -- many in a row --------------------------------------------------------------------------------


def column(*keys: str, value: Cell = 1) -> ChangeColumns:
    """Return changes that one chunk made, in columns."""
    count = len(keys)
    return ChangeColumns("set", keys, [value] * count, range(count), Position(), 0)


def test_many_in_a_row_come_out_as_they_went_in() -> None:
    """However the queue divides them."""
    changes = queue(limit=1_000)
    keys = [f"k{n}" for n in range(900)]
    changes.add([column(*keys[:2]), column(*keys[2:])])
    found = all_of(changes)
    assert [one.key for one in found] == keys
    assert [one.timestamp_ms for one in found] == [0, 1, *range(898)]
    assert {type(one) for one in found} == {Change}


def test_a_prefix_picks_from_a_column() -> None:
    """Key, value and time stay together."""
    changes = queue("a")
    changes.add([column("a1", "b1", "a2"), column("b2")])
    assert [(one.key, one.timestamp_ms) for one in all_of(changes)] == [("a1", 0), ("a2", 2)]


def test_a_column_is_cut_at_the_limit() -> None:
    """The first ones are read, then the error comes."""
    changes = queue(limit=3, overflow="raise")
    changes.add([column("a", "b"), column("c", "d"), column("e")])
    assert [one.key for one in all_of(changes)] == ["a", "b", "c"]
    with pytest.raises(ChangesOverflowError):
        all_of(changes)


def test_what_was_opened_counts_as_read() -> None:
    """Its rest comes first, as it is; behind it the limit holds, and conflation begins."""
    changes = queue(limit=128)
    changes.add([column("a", "a")])
    opened = changes.items()
    assert opened is not None
    assert next(opened).key == "a"
    changes.add([column(*(["a"] * 100), *"bcd")])
    assert changes.conflated == 0
    changes.add([column(*(["a"] * 26))])
    assert changes.conflated == 125
    # The next changes count from there.
    changes.add([column(*(["e"] * 124))])
    assert changes.conflated == 125
    assert [one.key for one in all_of(changes)] == ["a", *"bcd", "a", *(["e"] * 124)]
    changes.add([column(*(["a"] * 128))])
    assert changes.conflated == 125


def test_little_more_than_the_limit_is_held() -> None:
    """What is opened at once is a small part of the limit: of a small one, one change."""
    changes = queue(limit=10, overflow="raise")
    changes.add([column(*"abcdefghij")])
    assert [one.key for one in changes.items() or ()] == ["a"]
    changes.add([column("k", "l")])
    assert [one.key for one in all_of(changes)] == [*"bcdefghijk"]
    with pytest.raises(ChangesOverflowError):
        all_of(changes)


def test_readers_that_share_a_queue_get_each_change_once() -> None:
    """Whoever comes gets the oldest one."""
    changes = queue(limit=256)
    changes.add([column(*"abcdef")])
    one, other = changes.items(), changes.items()
    assert one is not None
    assert other is not None
    assert [change.key for pair in zip(one, other, strict=True) for change in pair] == [*"abcd"]
    assert [change.key for change in all_of(changes)] == [*"ef"]
    assert [*one, *other] == []


def test_what_two_readers_open_at_once_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both make changes of it; those of one count, and so do the values it could not read."""
    noted: list[str] = []
    changes = ChangeQueue(None, 256, "raise", lambda: None, lambda key, _fault: noted.append(key))
    changes.add([column("a", value=b"\xc1"), column("b")])
    first: list[Change] = []
    read = module.values_of

    def interrupted(cells: Sequence[Cell]) -> Any:
        monkeypatch.undo()
        first.extend(all_of(changes))
        return read(cells)

    monkeypatch.setattr(module, "values_of", interrupted)
    assert all_of(changes) == []
    assert [one.key for one in first] == ["b"]
    assert noted == ["a"]


@pytest.mark.parametrize("overflow", ["raise", "conflate"])
def test_what_overflows_while_it_is_opened_is_read_once(
    monkeypatch: pytest.MonkeyPatch, overflow: OverflowPolicy
) -> None:
    """The replica takes it back before the reader has made changes of it."""
    changes = queue(limit=128, overflow=overflow)
    changes.add([column("a", "b")])
    read = module.values_of

    def interrupted(cells: Sequence[Cell]) -> Any:
        monkeypatch.undo()
        changes.add([column(*(["c"] * 127))])
        return read(cells)

    monkeypatch.setattr(module, "values_of", interrupted)
    expected = ["a", "b", "c"] if overflow == "conflate" else ["a", "b", *(["c"] * 126)]
    assert [one.key for one in all_of(changes)] == expected


def test_a_forked_child_finds_nothing() -> None:
    """Not even the rest of what the parent was reading."""
    changes = queue(limit=256)
    changes.add([column(*"abc"), column("d")])
    opened = changes.items()
    assert opened is not None
    assert next(opened).key == "a"
    changes.forget()
    assert [*opened] == []
    assert changes.items() is None
