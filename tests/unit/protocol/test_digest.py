"""Digests of states: equal if the contents are, whatever the way there."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import DecodeError
from broker.protocol.codec import pack_value
from broker.protocol.digest import DIGEST_BYTES, RANGES, Digest, range_of
from tests.effort import examples

STATES = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 3) | st.text(max_size=3))


def of(state: dict[str, object]) -> Digest:
    """Return a state's digest."""
    digest = Digest()
    for key, value in state.items():
        digest.add(key, pack_value(value))  # type: ignore[arg-type]
    return digest


@given(before=STATES, after=STATES)
@settings(max_examples=examples(200))
def test_a_digest_carried_on_is_that_of_the_outcome(
    before: dict[str, object], after: dict[str, object]
) -> None:
    """Taking old entries out and counting new ones in gives what a fresh sum gives."""
    digest = of(before)
    for key, value in before.items():
        digest.add(key, pack_value(value), -1)  # type: ignore[arg-type]
    for key, value in reversed(after.items()):
        digest.add(key, pack_value(value))  # type: ignore[arg-type]
    assert digest == of(after)


@given(before=STATES, state=STATES)
@settings(max_examples=examples(200))
def test_a_column_of_entries_counts_as_its_entries_do(
    before: dict[str, object], state: dict[str, object]
) -> None:
    """Whatever the digest was, and however long the values are."""
    digest, one_by_one = of(before), of(before)
    values = [pack_value(value) for value in state.values()]  # type: ignore[arg-type]
    digest.add_all([key.encode() for key in state], values)
    for key, packed in zip(state, values, strict=True):
        one_by_one.add(key, packed)
    assert bytes(digest) == bytes(one_by_one)


@given(before=STATES, after=STATES)
@settings(max_examples=examples(200))
def test_a_column_is_taken_out_as_its_entries_are(
    before: dict[str, object], after: dict[str, object]
) -> None:
    """Whatever else the digest counts."""
    digest = of(before)
    for state, times in ((before, -1), (after, 1)):
        values = [pack_value(value) for value in state.values()]  # type: ignore[arg-type]
        digest.add_all([key.encode() for key in state], values, times)
    assert bytes(digest) == bytes(of(after))


@given(one=STATES, other=STATES)
@settings(max_examples=examples(200))
def test_ranges_differ_where_contents_do(one: dict[str, object], other: dict[str, object]) -> None:
    """Exactly the ranges of the keys whose values differ."""
    differing = {
        range_of(key) for key in one.keys() | other.keys() if one.get(key) != other.get(key)
    }
    assert of(one).differing(of(other)) == differing
    assert (of(one) == of(other)) == (not differing)


def test_the_same_number_in_another_form_is_another_value() -> None:
    """1, 1.0 and True are equal to Python only."""
    assert len({bytes(of({"k": value})) for value in (1, 1.0, True, "1", b"1")}) == 5


def test_values_that_changed_places_are_found() -> None:
    """Two keys that swapped their values differ, also within one range."""
    names = {range_of(f"k{n}"): f"k{n}" for n in range(1000)}
    twin = next(f"k{n}" for n in range(2000, 9000) if names[range_of(f"k{n}")] != f"k{n}")
    first = names[range_of(twin)]
    assert of({first: 1, twin: 2}).differing(of({first: 2, twin: 1})) == {range_of(twin)}


def test_values_that_changed_places_are_found_where_their_sums_cancel_out() -> None:
    """CRC-32 is linear: a plain sum of it often stays the same. Each is weighed by its key."""

    def check(key: bytes, content: bytes) -> int:
        return crc32(key + content)

    keys = [key for n in range(9999) if range_of(key := b"k%04d" % n) == range_of("k0000")]
    first, last = keys[0], b"9999"
    second, other = next(
        (key, one)
        for key in keys[1:]
        for one in (b"%04d" % n for n in range(9999))
        if check(first, one) + check(key, last) == check(first, last) + check(key, one)
    )
    right, swapped = Digest(), Digest()
    right.add_all([first, second], [other, last])
    swapped.add_all([first, second], [last, other])
    assert right.differing(swapped) == {range_of(first)}


def test_bytes_and_back() -> None:
    """2,048 bytes; of an empty state zeros."""
    digest = of({"a": 1, "b": 2})
    assert Digest.of_bytes(bytes(digest)) == digest
    assert bytes(Digest()) == bytes(DIGEST_BYTES) == bytes(8 * RANGES)
    for size in (0, DIGEST_BYTES - 1, DIGEST_BYTES + 1):
        with pytest.raises(DecodeError, match=f"{size} bytes, not 2048"):
            Digest.of_bytes(bytes(size))
