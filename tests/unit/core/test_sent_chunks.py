"""Chunks of one lane from packing on; test_buffer_machine.py tests them with the buffer."""

from __future__ import annotations

from broker.core.sent_chunks import Packed, SentChunks


def sent(*numbers: int) -> SentChunks:
    """Return chunks in flight: of 10 bytes, with 2 deltas each."""
    chunks = SentChunks()
    chunks.in_flight.extend(Packed(n, 2, 2 * n, 0.0, n, bytes(10)) for n in numbers)
    return chunks


def waiting(chunks: SentChunks) -> list[int]:
    """Return the numbers of the chunks to be sent again."""
    return [one.number for one in chunks.resend]


def test_an_accepted_chunk_is_kept_and_frees_its_bytes_once() -> None:
    """A chunk that was accepted before frees nothing, and counts no deltas."""
    chunks = sent(1, 2)
    assert [chunks.accept(5.0), chunks.accept(6.0), chunks.accept(7.0)] == [10, 10, 0]
    assert (chunks.accepted, chunks.accepted_number, chunks.kept_bytes) == (4, 2, 20)
    chunks.rewind(2)
    chunks.in_flight.append(chunks.resend.popleft())
    assert chunks.accept(8.0) == 0
    assert (chunks.accepted, chunks.kept_bytes) == (4, 20)


def test_kept_chunks_expire_by_age_and_by_size() -> None:
    """The oldest go first."""
    chunks = sent(1, 2, 3)
    for now in (1.0, 2.0, 3.0):
        chunks.accept(now)
    chunks.drop_expired(2.0, 100)
    assert [one.number for one, _ in chunks.kept] == [2, 3]
    chunks.drop_expired(0.0, 10)
    assert [one.number for one, _ in chunks.kept] == [3]
    assert chunks.kept_bytes == 10


def test_a_rewind_sends_kept_chunks_before_those_in_flight() -> None:
    """In the order of their numbers; the kept ones count as resent."""
    chunks = sent(1, 2, 3, 4)
    for _ in range(3):
        chunks.accept(1.0)
    chunks.rewind(2)
    assert waiting(chunks) == [2, 3, 4]
    assert not chunks.in_flight
    assert (chunks.resent, [one.number for one, _ in chunks.kept]) == (4, [1])


def test_a_loss_counts_once() -> None:
    """A later loss may overlap an earlier one, or repeat it."""
    chunks = SentChunks()
    assert [chunks.lose(10, 20), chunks.lose(10, 20), chunks.lose(5, 25), chunks.lose(9, 9)] == [
        *(10, 0, 10, 0)
    ]
    assert chunks.lost == 20


def test_tickets_are_outstanding_until_their_chunk_is_accepted() -> None:
    """Also while it waits to be sent again."""
    chunks = sent(1, 2)
    chunks.accept(1.0)
    assert (chunks.outstanding(1), chunks.outstanding(2)) == (False, True)
    chunks.requeue()
    assert (chunks.outstanding(1), chunks.outstanding(2)) == (False, True)


def test_the_reached_number_is_before_every_chunk_that_is_not_accepted() -> None:
    """All are reached when none is in flight or to be sent again."""
    chunks = sent(3, 4)
    assert chunks.reached(4) == 2
    chunks.accept(1.0)
    chunks.accept(1.0)
    assert chunks.reached(4) == 4
