"""A lane compresses its chunks as long as that pays, and tries again later where it did not."""

from __future__ import annotations

from broker.core.compression import MAX_PAUSE, MIN_BYTES, Compression


def test_a_small_chunk_is_not_compressed() -> None:
    """It would cost as much as a large one, and save little."""
    lane = Compression()
    assert [lane.is_due(size) for size in (0, MIN_BYTES - 1, MIN_BYTES)] == [False, False, True]


def test_chunks_that_become_smaller_are_all_compressed() -> None:
    """As long as they do."""
    lane = Compression()
    for _ in range(100):
        assert lane.is_due(1000)
        lane.tried(500)


def test_where_it_does_not_pay_it_is_tried_ever_more_rarely() -> None:
    """The pause doubles up to a bound; small chunks are no part of it."""
    lane, pauses = Compression(), []
    for _ in range(9):
        assert lane.is_due(1000)
        lane.tried(0)
        left_out = 0
        while not lane.is_due(1000):
            assert not lane.is_due(10)
            left_out += 1
        pauses.append(left_out)
        lane._left_out = 0
    assert pauses == [1, 2, 4, 8, 16, 32, MAX_PAUSE, MAX_PAUSE, MAX_PAUSE]


def test_one_that_pays_ends_the_pauses() -> None:
    """What a producer writes may change."""
    lane = Compression()
    for _ in range(5):
        lane.tried(0)
    lane.tried(1)
    assert lane.is_due(1000)
    lane.tried(0)
    assert [lane.is_due(1000) for _ in range(2)] == [False, True]
