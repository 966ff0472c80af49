"""What a load is compared by: sums of few fields, or nothing."""

from __future__ import annotations

import pytest

from broker.core import load_sums
from broker.core.load_sums import LoadSums
from broker.protocol.codec import pack_value
from broker.protocol.digest import Digest
from broker.protocol.fields import pack_field


def test_the_fields_of_all_pages_are_summed_without_their_offsets() -> None:
    """The result is the digest that a scheduler would have; unreadable fields count as they are."""
    sums = LoadSums()
    sums.add([b"a", b"b"], [pack_field("a", 1, 1), pack_field("b", 7, "x")])
    sums.add([], [])
    sums.add([b"\xff"], [b"short"])
    digest = Digest()
    digest.add("a", b"\0" + pack_value(1))
    digest.add("b", b"\0" + pack_value("x"))
    digest.add(b"\xff", b"")
    assert sums.digest() == digest


def test_a_field_that_is_given_twice_is_not_counted_twice() -> None:
    """Which of the two counts is not known: such a load is compared later."""
    sums = LoadSums()
    sums.add([b"a"], [pack_field("a", 1, 1)])
    sums.add([b"b", b"a"], [pack_field("b", 1, 1), pack_field("a", 1, 1)])
    sums.add([b"c"], [pack_field("c", 1, 1)])
    assert sums.digest() is None


def test_many_fields_are_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining must not take much longer for it."""
    monkeypatch.setattr(load_sums, "MAX_SUMMED_KEYS", 2)
    sums = LoadSums()
    sums.add([b"a", b"b"], [pack_field("a", 1, 1), pack_field("b", 1, 1)])
    assert sums.digest() is not None
    sums.add([b"c"], [pack_field("c", 1, 1)])
    assert sums.digest() is None
