"""How old the proof of a shard's content is."""

from __future__ import annotations

from broker.core.freshness import Freshness

REDIS = 1_000_000.0  # what the Redis clock shows when the local one shows 0


def ms(at: float) -> int:
    """Return a local moment as milliseconds of the Redis clock."""
    return round((REDIS + at) * 1000)


def test_without_a_proof_the_age_is_infinite() -> None:
    """Nothing is assumed about content that nothing proved."""
    assert Freshness().age(5.0) == float("inf")


def test_the_first_packet_counts_from_its_arrival() -> None:
    """The difference of the clocks is unknown, so it is taken to be the largest possible."""
    freshness = Freshness()
    freshness.take_packet(ms(1.0), 1.5)
    assert freshness.age(2.5) == 1.0


def test_a_packet_that_waited_proves_the_moment_of_its_publication() -> None:
    """A faster packet before it bounds the difference of the clocks."""
    freshness = Freshness()
    freshness.take_packet(ms(1.0), 1.0)
    freshness.take_packet(ms(2.0), 5.0)
    assert freshness.as_of == 2.0


def test_a_read_counts_from_when_it_was_sent() -> None:
    """Its result is true of that moment or a later one."""
    freshness = Freshness()
    freshness.take_read(REDIS + 3.0, 3.0)
    assert freshness.age(4.0) == 1.0


def test_a_read_replaces_the_bound_of_another_clock() -> None:
    """After a failover, or when Redis' clock was set, older packets bound nothing."""
    freshness = Freshness()
    freshness.take_packet(ms(1.0), 1.0)
    freshness.take_read(REDIS + 102.0, 2.0)
    freshness.take_packet(ms(103.0), 3.5)
    assert freshness.as_of == 3.0
