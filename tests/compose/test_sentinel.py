"""The sentinel profile: a primary, two replicas, three sentinels."""

from __future__ import annotations

import pytest

from tests.compose.harness import BETWEEN, Harness
from tests.compose.project import RECOVERY_SECONDS, until

PROFILE = "sentinel"
NETWORK = "sentinel"
URL = "redis+sentinel://sentinel-1:26379,sentinel-2:26379,sentinel-3:26379/main"
WORKER = "sentinel-flush"
SHARDS = 2
# A month in a minute and a half.
SPEED = 30_000
PRODUCERS = ("sentinel-producer-ewr", "sentinel-producer-jfk", "sentinel-producer-lga")
# Addresses of docker-compose.yml.
STORES = {"10.213.79.11": "store-1", "10.213.79.12": "store-2", "10.213.79.13": "store-3"}
SENTINELS = ("sentinel-1", "sentinel-2", "sentinel-3")
SERVICES = (PRODUCERS[0], "sentinel-flush", "sentinel-schedule", "sentinel-subscriber")


def said(harness: Harness, *questions: str) -> list[list[str]]:
    """Return each sentinel's reply to each question; [] without one."""
    asked = [
        f"echo =; timeout 2 redis-cli -h {one} -p 26379 sentinel {question}"
        for one in SENTINELS
        for question in questions
    ]
    # One command for all: to start one in a container takes longer than to ask.
    ran = harness.project.one("sentinel-1").run("sh", "-c", "; ".join(asked))
    return [answer.split() for answer in ran.stdout.split("=\n")[1:]]


def primary(harness: Harness) -> str:
    """Return the server that most sentinels name as primary; "" without a reply."""
    hosts = [answer[0] for answer in said(harness, "get-master-addr-by-name main") if answer]
    return STORES.get(max(hosts, key=hosts.count, default=""), "")


def is_whole(harness: Harness) -> bool:
    """Return whether all sentinels know all, and both replicas follow."""
    for flat in said(harness, "master main"):
        facts = dict(zip(flat[::2], flat[1::2], strict=False))
        counts = (facts.get("num-slaves"), facts.get("num-other-sentinels"))
        if facts.get("flags") != "master" or counts != ("2", "2"):
            return False
    named = primary(harness)
    if not named:
        return False
    found = harness.project.one(named).run("redis-cli", "info", "replication").stdout
    return "role:master" in found and found.count("state=online") == 2


def becomes_whole(harness: Harness) -> None:
    """Wait until it is."""
    until(lambda: is_whole(harness), RECOVERY_SECONDS, lambda: reported(harness))


def is_replaced(harness: Harness, before: str) -> None:
    """Wait until the sentinels name another primary."""
    until(lambda: primary(harness) not in ("", before), RECOVERY_SECONDS, lambda: reported(harness))


def reported(harness: Harness) -> str:
    """Return the servers' last replies."""
    services = (*STORES.values(), *SENTINELS)
    return "\n".join(f"--- {one}\n{harness.project.one(one).logs(12)}" for one in services)


@pytest.fixture(scope="module", autouse=True)
def hurried(harness: Harness) -> None:
    """Shorten the sentinels' polling interval of ten seconds."""
    reported = said(harness, "debug info-period 1000 publish-period 500")
    assert reported == [["OK"]] * len(SENTINELS)


@pytest.mark.parametrize("service", SERVICES)
def test_any_part_of_ours_is_killed(harness: Harness, service: str) -> None:
    """The engine restarts each container, and data flows again without intervention."""
    container = harness.project.one(service)
    assert not container.has_ended_well, "the replay ended before it could be broken"
    harness.note(f"{container.name} was killed")
    container.crash_and_return()
    harness.recovers()


def test_a_failover_is_asked_for(harness: Harness) -> None:
    """A requested failover loses nothing and raises no error."""
    becomes_whole(harness)
    before = primary(harness)
    harness.note("a failover was asked for")
    answer = harness.project.one("sentinel-1").run(
        *("redis-cli", "-p", "26379", "sentinel", "failover", "main")
    )
    assert answer.stdout.strip() == "OK", answer
    is_replaced(harness, before)
    harness.recovers()
    becomes_whole(harness)
    harness.proves()


@pytest.mark.parametrize("service", ["sentinel-2", "replica", "primary"])
def test_any_server_is_killed(harness: Harness, service: str) -> None:
    """The engine restarts each server, and data flows again without intervention."""
    becomes_whole(harness)
    first = primary(harness)
    name = {"primary": first, "replica": next(one for one in STORES.values() if one != first)}
    harness.note(f"{service} was killed", forgets=service == "primary")
    harness.project.one(name.get(service, service)).crash_and_return()
    if service == "primary":
        harness.forgot("the primary is back, or another")
    harness.recovers()


def test_servers_restart_one_after_the_other(harness: Harness) -> None:
    """Nothing accepted goes back, also not if the replicas crash and the primary dies next."""
    becomes_whole(harness)
    before = harness.counters()
    first = primary(harness)
    harness.note("every store restarts")
    for name in (*(one for one in STORES.values() if one != first), first):
        harness.project.one(name).restart()
    becomes_whole(harness)
    first = primary(harness)
    harness.note("both replicas crashed, and the primary dies", forgets=True)
    for name in STORES.values():
        if name != first:
            harness.project.one(name).crash_and_return()
    harness.accepts(BETWEEN)
    harness.project.one(first).kill()
    is_replaced(harness, first)
    harness.forgot("there is another primary")
    harness.project.one(first).start()
    becomes_whole(harness)
    harness.recovers()
    harness.kept_all_since(before)


@pytest.mark.parametrize("how", ["dies", "loses its network"])
def test_the_primary_is_away_for_long(harness: Harness, how: str) -> None:
    """A replica takes over without intervention; the returning old primary is not used."""
    becomes_whole(harness)
    before = primary(harness)
    container = harness.project.one(before)
    harness.note(f"the primary {how}", forgets=True)
    if how == "dies":
        container.kill()
    else:
        container.disconnect()
    is_replaced(harness, before)
    harness.forgot("there is another primary")
    harness.recovers()
    harness.note(f"the primary that {how} is back")
    if how == "dies":
        container.start()
    else:
        container.connect()
    becomes_whole(harness)
    assert primary(harness) != before
    harness.recovers()
    harness.proves()


def test_in_the_end_every_delta_counts_once(harness: Harness) -> None:
    """The recorded history keeps all promises, and the flights match the file's answer."""
    harness.ends_as_the_file_says(PRODUCERS)
    harness.settle()
    assert harness.violations() == []
