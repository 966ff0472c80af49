"""Epochs of other databases on the same channel."""

from __future__ import annotations

from broker.core.foreign import MOST, ForeignHistories


def test_an_epoch_is_foreign_once_the_server_says_that_its_own_is_another() -> None:
    """A suspicion alone proves nothing, and neither does a server that has that epoch now."""
    foreign = ForeignHistories()
    assert foreign.own(b"mine") is None
    foreign.suspect(b"other")
    assert b"other" not in foreign
    assert foreign.own(b"other") is None
    foreign.suspect(b"mine")
    assert foreign.own(b"other") == b"mine"
    assert b"mine" in foreign
    assert foreign.own(b"mine") is None
    assert b"mine" not in foreign


def test_what_is_foreign_is_bounded_and_forgotten_with_the_subscription() -> None:
    """The oldest one goes first; another server may send what was foreign here."""
    foreign = ForeignHistories()
    for number in range(MOST + 1):
        foreign.suspect(b"%d" % number)
        foreign.own(b"mine")
    assert b"0" not in foreign
    assert b"%d" % MOST in foreign
    foreign.clear()
    assert b"%d" % MOST not in foreign
