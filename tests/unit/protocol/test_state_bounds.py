"""Bounds of the state: which one is passed, and the text that says so."""

from __future__ import annotations

import pytest

from broker.protocol.state_bounds import StateBounds, StateFull, state_full


@pytest.mark.parametrize(
    ("bounds", "keys", "size", "what"),
    [
        (StateBounds(), 1 << 60, 1 << 60, None),
        (StateBounds(keys=10), 10, 1 << 60, None),
        (StateBounds(keys=10), 11, 0, StateFull("keys", 11, 10)),
        (StateBounds(bytes=10), 1 << 60, 10, None),
        (StateBounds(bytes=10), 0, 11, StateFull("bytes", 11, 10)),
        (StateBounds(5, 5), 6, 6, StateFull("keys", 6, 5)),
    ],
)
def test_a_bound_is_passed_by_more_than_it(
    bounds: StateBounds, keys: int, size: int, what: StateFull | None
) -> None:
    """0 is no bound; at the bound there is room for the last time."""
    assert bounds.passed_by(keys, size) == what


def test_each_shard_has_its_part() -> None:
    """Rounded up, so that a bound never becomes none."""
    assert StateBounds.of(10, 0, 4) == StateBounds(3, 0)
    assert StateBounds.of(1, 1, 4096) == StateBounds(1, 1)
    assert StateBounds.of(0, 0, 4) == StateBounds()


def test_a_text_is_read_as_it_was_written() -> None:
    """What others put there is no bound that is passed."""
    for one in (StateFull("keys", 3, 2), StateFull("bytes", (1 << 53) + 1, 1 << 53)):
        assert state_full(one.packed()) == one
    for text in (None, b"", b"keys", b"keys 1", b"keys -1 1", b"text 2 1", b"keys 2 1 ", b"\xff"):
        assert state_full(text) is None
