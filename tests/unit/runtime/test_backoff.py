"""Pauses grow from failure to failure, stay bounded, and differ from process to process."""

from __future__ import annotations

import pytest

from broker.runtime.backoff import Backoff


@pytest.fixture
def unshortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chance always choose the longest pause."""
    monkeypatch.setattr("random.uniform", lambda _least, most: most)


@pytest.mark.usefixtures("unshortened")
def test_pauses_double_up_to_the_longest_and_begin_again_after_success() -> None:
    """The first pause is the first one's length, each is twice the one before, none is longer."""
    retry = Backoff(0.1, 0.5)

    assert [retry.next() for _ in range(4)] == [0.1, 0.2, 0.4, 0.5]
    retry.reset()
    assert retry.next() == 0.1


@pytest.mark.usefixtures("unshortened")
def test_a_failure_may_have_a_limit_of_its_own() -> None:
    """What passes sooner is tried again sooner, also after long pauses for something else."""
    retry = Backoff(0.1, 2.0)
    for _ in range(5):
        retry.next()

    assert retry.next(0.3) == 0.3
    assert retry.next() == 0.6


def test_pauses_are_shortened_by_up_to_half() -> None:
    """Clients that failed at the same moment do not retry at the same moment."""
    pauses = {Backoff(1.0, 1.0).next() for _ in range(50)}

    assert len(pauses) > 1
    assert all(0.5 <= pause <= 1.0 for pause in pauses)


def test_pauses_may_be_spread_from_zero_on() -> None:
    """Work that many clients begin at the same moment is spread over the whole pause."""
    pauses = {Backoff(1.0, 1.0, least=0.0).next() for _ in range(100)}

    assert min(pauses) < 0.5 < max(pauses)
    assert all(0.0 <= pause <= 1.0 for pause in pauses)
