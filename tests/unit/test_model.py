"""Tokens, positions and what a status is."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.errors import BrokerError, TokenError
from broker.model import Status, Token
from broker.protocol.constants import NO_ID
from broker.protocol.messages import Batch, Chunk, Position, Run

MARKS = st.dictionaries(
    st.integers(0, 4095),
    st.tuples(st.binary(min_size=8, max_size=8), st.integers(0, (1 << 64) - 1)),
    max_size=5,
)


@given(MARKS)
def test_tokens_travel_as_text(marks: dict[int, tuple[bytes, int]]) -> None:
    """Another process waits for the same point; the text is one word."""
    token = Token(marks)
    text = str(token)
    assert Token.parse(text) == Token.parse(f" {text}\n") == token
    assert text.isascii()
    assert not set(text) - set("0123456789abcdef:,")


@pytest.mark.parametrize(
    "text",
    ["x", "0", "0:00", "0:zz:1", "a:0000000000000000:1", "0:0000000000000000:x", "0:00:1:1", "::"],
)
def test_other_text_is_no_token(text: str) -> None:
    """The message shows it, and what was expected."""
    with pytest.raises(
        TokenError, match=r"not a token: .* expected 'shard:epoch:append'"
    ) as caught:
        Token.parse(text)
    assert text in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, BrokerError)


def test_the_empty_token_waits_for_nothing() -> None:
    """As `flush()` gives it before anything was written."""
    assert str(Token({})) == ""
    assert Token.parse("").marks == {}


def test_the_beginning_is_a_position_of_no_epoch() -> None:
    """Before its first read a replica has no position, which differs from offset 0 of an epoch."""
    assert Position() == Position(b"", 0, NO_ID)
    assert Position() != Position(b"epoch--1", 0, NO_ID)


def test_models_do_not_change() -> None:
    """They are immutable, since other threads read them."""
    batch = Batch(0, b"epoch--1", 2, b"batch--2", b"batch--1", 5, 9)
    assert batch.position == Position(b"epoch--1", 2, b"batch--2")
    with pytest.raises(FrozenInstanceError):
        batch.offset = 3  # type: ignore[misc]


def test_a_chunk_counts_its_deltas() -> None:
    """Over all runs; a key that comes twice counts twice."""
    runs = [Run(1, ["a", "a"], [1, 2]), Run(2, ["b"], None)]
    assert Chunk("n", 1, 1, 1, runs).deltas == 3
    assert Chunk("n", 1, 1, 1, []).deltas == 0


def test_statuses_are_their_words() -> None:
    """As they stand in logs, JSON and comparisons with plain text."""
    words = {"connecting", "loading", "catching_up", "live", "stale", "closed", "failed"}
    assert {str(status) for status in Status} == words
    assert Status("live") is Status.LIVE
