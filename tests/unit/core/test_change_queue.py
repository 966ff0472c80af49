"""The queue between a replica and one reader of its changes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.core.change_queue import ChangeQueue, OverflowPolicy
from broker.errors import BrokerError, ChangesOverflowError, ConfigError, DecodeError
from broker.model import Change
from broker.protocol.messages import Position
from broker.protocol.operations import Operation


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
    changes.put(told[:2])
    changes.put(told[2:])
    assert changes.take() == told
    assert changes.take() == []


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [(None, ["bus/1", "car/1", ""]), ("", ["bus/1", "car/1", ""]), ("bus/", ["bus/1"]), ("x", [])],
)
def test_a_prefix_lets_only_its_keys_through(prefix: str | None, keys: list[str]) -> None:
    """Changes of other keys take no room and wake no reader."""
    woken: list[int] = []
    changes = ChangeQueue(prefix, 10, "raise", lambda: woken.append(1), _unread)
    changes.put([change("bus/1", 1), change("car/1", 1), change("", 1)])
    assert [one.key for one in changes.take()] == keys
    assert bool(woken) == bool(keys)


def test_a_reader_that_is_behind_gets_the_newest_of_each_key() -> None:
    """In the order of these newest ones; what was left out is counted."""
    changes = queue(limit=3)
    changes.put([change("a", 1), change("b", 1), change("a", 2, "increment")])
    changes.put([change("c", 1), change("b", None, "delete")])
    assert [(one.key, one.value) for one in changes.take()] == [("a", 2), ("c", 1), ("b", None)]
    assert changes.conflated == 2
    changes.put([change("a", 3)])
    assert [one.value for one in changes.take()] == [3]


@pytest.mark.parametrize("overflow", ["raise", "conflate"])
def test_what_does_not_fit_is_said_after_what_fits(overflow: OverflowPolicy) -> None:
    """The reader gets the first changes without a gap, then the error on every call."""
    woken: list[int] = []
    changes = ChangeQueue(None, 2, overflow, lambda: woken.append(1), _unread)
    changes.put([change(key, 1) for key in "abc"])
    changes.put([change("d", 1)])
    assert woken
    assert [one.key for one in changes.take()] == ["a", "b"]
    for _ in range(2):
        with pytest.raises(ChangesOverflowError, match="more than 2 changes behind"):
            changes.take()


def test_raise_never_leaves_anything_out() -> None:
    """Repeated keys are an overflow like any other."""
    changes = queue(limit=2, overflow="raise")
    changes.put([change("a", n) for n in range(3)])
    assert [one.value for one in changes.take()] == [0, 1]
    assert changes.conflated == 0
    with pytest.raises(ChangesOverflowError):
        changes.take()


def test_what_waits_can_be_read_after_the_end() -> None:
    """The reader is woken, reads what is left and ends; later changes are ignored."""
    woken: list[int] = []
    changes = ChangeQueue(None, 10, "raise", lambda: woken.append(1), _unread)
    changes.put([change("a", 1)])
    changes.close()
    changes.close()
    changes.put([change("b", 1)])
    assert len(woken) == 3
    assert [one.key for one in changes.take()] == ["a"]
    with pytest.raises(StopIteration):
        changes.take()


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
        for one in changes.take():
            copy[one.key] = one.value
            taken += 1

    try:
        for step in steps:
            if step is None:
                read()
            else:
                changes.put(step)
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
    changes.put(told)
    assert [(one.key, one.value) for one in changes.take()] == [("b", [1]), ("d", 1)]
    assert found == ["a", "c"]
    changes.put(told)
    one = changes.take_one()
    assert one is not None
    assert (one.key, one.value) == ("b", [1])
    assert changes.take_one() == change("d", 1)
    assert changes.take_one() is None
    assert found == ["a", "c", "a", "c"]
    changes.put([change("e", b"\xc1")])
    assert changes.take_one() is None
    assert changes.take() == []


def test_lists_in_changes_are_the_readers_own() -> None:
    """What one reader does to them is not seen by the next."""
    packed = change("a", b"\x91\x01")
    one, other = queue(), queue()
    one.put([packed])
    other.put([packed])
    first = one.take()[0].value
    first.append(2)  # type: ignore[union-attr]
    assert other.take()[0].value == [1]


@pytest.mark.parametrize("overflow", ["raise", "conflate"])
def test_the_end_is_told_though_nothing_before_it_can_be_read(overflow: OverflowPolicy) -> None:
    """A reader that waits for a bell would wait for ever: it rings once for the end."""
    changes = ChangeQueue(None, 10, overflow, lambda: None, lambda _key, _fault: None)
    changes.put([change("a", b"\xc1"), change("b", b"")])
    changes.close()
    with pytest.raises(StopIteration):
        changes.take()
    changes = ChangeQueue(None, 1, "raise", lambda: None, lambda _key, _fault: None)
    changes.put([change("a", b"\xc1"), change("b", b"")])
    with pytest.raises(ChangesOverflowError):
        changes.take()
