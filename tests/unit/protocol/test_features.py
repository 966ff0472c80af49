"""The feature words of a namespace: one text for each set of them, and no other text."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.protocol.constants import FEATURES
from broker.protocol.features import (
    KNOWN_FEATURES,
    MAX_TEXT_BYTES,
    NEW_FEATURES,
    text_of,
    unknown_in,
    words_in,
)
from broker.protocol.operations import OPERATIONS, RESERVED, unknown_operation

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=10)


@given(st.sets(WORDS, max_size=20))
def test_a_set_of_words_comes_back(words: set[str]) -> None:
    """In alphabetical order, whatever the order in which they were given."""
    text = text_of([*words, *words])
    assert words_in(text.encode()) == tuple(sorted(words))


@given(st.binary(max_size=30))
def test_only_the_one_text_of_a_set_is_read(text: bytes) -> None:
    """Whatever is read is written as it was; everything else is refused, never guessed."""
    words = words_in(text)
    assert words is None or text_of(words).encode() == text


@pytest.mark.parametrize(
    "text", [b" ", b"ttl ", b" ttl", b"a  b", b"b a", b"a a", b"A", b"a,b", b"a\nb", b"\xc3\xa4"]
)
def test_other_texts_are_unreadable(text: bytes) -> None:
    """Other characters, another order, a word twice, blanks too many."""
    assert words_in(text) is None


def test_the_text_has_a_limit() -> None:
    """So that an error text stays short."""
    assert words_in(b"a" * MAX_TEXT_BYTES) == ("a" * MAX_TEXT_BYTES,)
    assert words_in(b"a" * (MAX_TEXT_BYTES + 1)) is None


def test_all_words_of_the_version_are_reserved_or_known() -> None:
    """What is built is one of the five; who asks for nothing gets nothing that is not built."""
    assert words_in(text_of(FEATURES).encode()) == FEATURES
    assert set(NEW_FEATURES) <= KNOWN_FEATURES <= set(FEATURES)
    assert set(unknown_in(FEATURES)) == set(FEATURES) - KNOWN_FEATURES
    assert unknown_in(["zzz"]) == ("zzz",)


def test_a_reserved_operation_names_its_word() -> None:
    """An operator learns which word is missing; any other code is only unknown."""
    assert not RESERVED.keys() & OPERATIONS.keys()
    assert {word for _, word in RESERVED.values()} <= set(FEATURES)
    told = "operation 6 (create) needs the word conditions, which this program does not know"
    assert unknown_operation(6) == told
    for code in (0, 10, -1, True, 6.0, "6", None, [6]):
        assert unknown_operation(code).startswith("unknown operation ")
