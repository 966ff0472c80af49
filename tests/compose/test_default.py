"""The default profile: one Redis, two flush workers, two schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest

from tests.compose.harness import BETWEEN, READERS, Harness
from tests.compose.project import RECOVERY_SECONDS, Container, until

PROFILE = "default"
NETWORK = "default"
URL = "redis://redis:6379/0"
WORKER = "flush"
SHARDS = 2
# A month in a minute.
SPEED = 40_000
PRODUCERS = ("producer-ewr", "producer-jfk", "producer-lga")
SERVICES = (*PRODUCERS, "redis", "flush", "schedule", "subscriber")


def disconnected(containers: Sequence[Container]) -> float:
    """Take containers off the network, and return when that was."""
    began = monotonic()
    for one in containers:
        one.disconnect()
    return began


def test_the_board_is_shown_within_a_minute(harness: Harness) -> None:
    """The demo shows airports with numbers and a live replica."""
    subscriber = harness.project.one("subscriber")

    def shows() -> bool:
        text = subscriber.logs(60)
        return "EWR" in text and " live " in text

    until(shows, 60, subscriber.logs)


@pytest.mark.parametrize("service", SERVICES)
def test_any_container_is_killed(harness: Harness, service: str) -> None:
    """The engine restarts each container, and data flows again without intervention."""
    for container in harness.project.of(service):
        assert not container.has_ended_well, "the replay ended before it could be broken"
        harness.note(f"{container.name} was killed", forgets=service == "redis")
        container.crash_and_return()
        if service == "redis":
            harness.forgot("redis is back")
        harness.recovers()
    if service == "redis":
        harness.proves()


def test_redis_restarts_and_crashes_in_a_row(harness: Harness) -> None:
    """Nothing accepted goes back, neither in a restart nor in the crash right after it."""
    before = harness.counters()
    redis = harness.project.one("redis")
    harness.note("redis restarted, and crashed next")
    redis.restart()
    harness.accepts(BETWEEN)
    redis.crash_and_return()
    harness.recovers()
    harness.kept_all_since(before)


def test_redis_is_away_for_long(harness: Harness) -> None:
    """While Redis is stopped every reader is stale; after its start all continue."""
    harness.note("redis was stopped")
    began = monotonic()
    harness.project.one("redis").stop()
    until(
        lambda: all("stale" in harness.statuses(reader, began) for reader in READERS),
        RECOVERY_SECONDS,
        harness.reported,
    )
    harness.project.one("redis").start()
    harness.recovers()
    harness.proves()


def test_a_subscriber_loses_its_network(harness: Harness) -> None:
    """A disconnected replica is stale within the bound, then catches up; the other stays live."""
    harness.note("reader-1 lost its network")
    reader = harness.project.one("reader-1")
    began = disconnected([reader])
    until(
        lambda: "stale" in harness.statuses("reader-1", began), RECOVERY_SECONDS, harness.reported
    )
    assert harness.statuses("reader-2", began) == {"live"}
    reader.connect()
    harness.recovers()


def test_a_producer_loses_its_network(harness: Harness) -> None:
    """A disconnected producer affects no other part, and then sends its deltas once."""
    harness.note("writer-1 lost its network")
    writers = [harness.project.one("writer-1"), harness.project.one("producer-ewr")]
    began = disconnected(writers)
    harness.waits_for_batches(20)
    assert harness.statuses("reader-1", began) == {"live"}
    for writer in writers:
        writer.connect()
    harness.recovers()
    harness.hears_from("writer-1")


@pytest.mark.parametrize("service", ["flush", "schedule"])
def test_a_worker_loses_its_network(harness: Harness, service: str) -> None:
    """One worker of each role is enough; without any, work waits for the next."""
    first, second = harness.project.of(service)
    harness.note(f"one {service} worker lost its network")
    disconnected([first])
    harness.waits_for_batches(20)
    harness.note(f"both {service} workers lost their network")
    disconnected([second])
    began = monotonic()
    if service == "flush":
        until(
            lambda: all("stale" in harness.statuses(reader, began) for reader in READERS),
            RECOVERY_SECONDS,
            harness.reported,
        )
    first.connect()
    second.connect()
    harness.recovers()
    harness.proves()


def test_each_role_has_a_health_of_its_own(harness: Harness) -> None:
    """Without flush workers what needs one is unhealthy, and nothing else; then all recover."""
    project = harness.project
    first, second = project.of("flush")
    schedulers = project.of("schedule")
    # Producers end with the month, so what is not about a container of its own is asked here.
    asked = schedulers[0]
    checks: dict[str, Callable[[], bool]] = {
        "flush 1": first.is_healthy,
        "flush 2": second.is_healthy,
        "flush": lambda: asked.passes("statebroker", "status", "--check", "--role", "flush"),
        "producer": lambda: asked.passes(*project.one(PRODUCERS[0]).check),
        "subscriber": lambda: asked.passes(*project.one("subscriber").check),
    }
    others: dict[str, Callable[[], bool]] = {
        "schedule 1": schedulers[0].is_healthy,
        "schedule 2": schedulers[1].is_healthy,
        "redis": project.one("redis").is_healthy,
    }
    healths: dict[str, bool] = {}

    def are(*, good: bool) -> bool:
        """Whether all of `checks` say so, and all others are well in any case."""
        named = checks | others
        with ThreadPoolExecutor() as pool:
            healths.update(zip(named, pool.map(lambda check: check(), named.values()), strict=True))
        return healths == dict.fromkeys(checks, good) | dict.fromkeys(others, True)

    def become(*, good: bool) -> None:
        # The quick one alone at first: a replica that does not join takes seconds.
        until(lambda: second.is_healthy() == good, RECOVERY_SECONDS, f"flush 2 is healthy: {good}")
        until(lambda: are(good=good), RECOVERY_SECONDS, lambda: f"{healths}")

    harness.note("one flush worker was killed from outside, the other hangs")
    first.kill()
    second.hang()
    become(good=False)
    harness.note("both flush workers were killed from outside")
    second.kill()
    assert not checks["flush"]()
    # The engine starts only what ended by itself.
    assert not first.lives[0]
    assert not second.lives[0]
    first.start()
    second.start()
    become(good=True)
    harness.recovers()


def test_in_the_end_every_delta_counts_once(harness: Harness) -> None:
    """The recorded history keeps all promises, and the flights match the file's answer."""
    harness.ends_as_the_file_says(PRODUCERS)
    harness.settle()
    assert harness.violations() == []
