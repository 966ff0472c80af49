"""Workers turn red when the data path fails, and recover by themselves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from broker import Inspector, Producer, Replica
from broker.backend.replies import DrainLimits
from broker.protocol.names import ShardKeys
from broker.stats import WorkerStatus
from broker.testing import FaultProxy
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.integration.running_workers import NewServing, Serving
from workers.canary import ENOUGH_BYTES

PIECE_BYTES = 48 << 10
# The bound is three of them, but at least half a second.
HEARTBEAT = 0.1
BY = 10.0
# Renewals come every 3 s and the bound of full states is 10 s.
SCHEDULER_BY = 30.0

Shown = Callable[[], dict[str, tuple[str, str]]]


@contextlib.contextmanager
def shown(url: str, namespace: str) -> Iterator[Shown]:
    """Return a function that reads health and reason of each role from `statebroker status`."""
    with Inspector(url, namespace=namespace) as inspector:
        yield lambda: {one.role: (one.health, one.reason) for one in inspector.status().workers}


def becomes(status: Shown, health: str, reason: str = "", role: str = "flush") -> None:
    """Wait until a role's worker has this health and a reason that contains `reason`."""

    def is_so() -> bool:
        found = status().get(role, ("", ""))
        return found[0] == health and reason in found[1]

    eventually(is_so, BY if role == "flush" else SCHEDULER_BY, lambda: str(status()))


def logged(caplog: pytest.LogCaptureFixture, serving: Serving) -> list[str]:
    """Return the words of the health events of this test's first flush worker."""
    mine = f"worker={serving.flushers[0].name}"
    lines = [record.getMessage() for record in caplog.records]
    return [line.split(" ")[0] for line in lines if line.startswith("health_") and mine in line]


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Return pytest's `caplog`, which records every message of the workers."""
    caplog.set_level(logging.INFO, "workers")
    return caplog


def test_dropped_messages_turn_it_red(
    server: Server, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the canary detects lost messages: commands and heartbeats all succeed."""
    with FaultProxy(server.url) as proxy, shown_after(server, namespace) as status:
        worker = serving(proxy.url, namespace, heartbeat=HEARTBEAT)
        becomes(status, "green")
        proxy.faults.drop_messages = 1.0
        becomes(status, "red", "shard 0: nothing arrived on its channel for over 0.5 s")
        assert logged(caplog, worker) == ["health_red"]
        # Another connection may hear more: it tries one again and again.
        tried = proxy.counts["connections"]
        eventually(lambda: proxy.counts["connections"] > tried + 1, BY)
        proxy.faults.drop_messages = 0.0
        becomes(status, "green")
        # In the log once per change, and not at the start.
        assert logged(caplog, worker) == ["health_red", "health_green"]


def test_a_canary_that_heard_enough_rests_and_notices_all_the_same(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """With many packets the canary rests; once none arrives the worker is red in time."""
    keys = ShardKeys.of(namespace, 0, 1)
    with (
        FaultProxy(server.url) as proxy,
        shown_after(server, namespace) as status,
        redis.Redis.from_url(server.url) as admin,
        Producer(server.url, namespace=namespace, compress=0) as producer,
    ):
        serving(proxy.url, namespace, heartbeat=HEARTBEAT)
        becomes(status, "green")

        def listens() -> bool:
            return dict(admin.pubsub_numsub(keys.channel))[keys.channel.encode()] > 0

        def publish() -> None:
            # A canary leaves bulk chunks alone, so none of these may be one.
            for _ in range(ENOUGH_BYTES // PIECE_BYTES + 1):
                producer.set("much", bytes(PIECE_BYTES))
                producer.flush(10)

        for is_listening in (False, True, False):
            eventually(lambda wanted=is_listening: publish() or listens() is wanted, BY)
            assert status().get("flush") == ("green", "")
        # At a low rate it receives everything.
        eventually(listens, BY)
        proxy.faults.drop_messages = 1.0
        becomes(status, "red", "on its channel")
        proxy.faults.drop_messages = 0.0
        becomes(status, "green")


@contextlib.contextmanager
def shown_after(server: Server, namespace: str) -> Iterator[Shown]:
    """As `shown`, without the proxy, for a namespace that this creates."""
    Producer(server.url, namespace=namespace).close()
    with shown(server.url, namespace) as status:
        yield status


def test_a_batch_that_does_not_arrive_turns_it_red(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A batch that never arrives is detected despite heartbeats of an older head."""
    with (
        FaultProxy(server.url) as proxy,
        shown_after(server, namespace) as status,
        Producer(server.url, namespace=namespace) as producer,
    ):
        (flusher,) = serving(proxy.url, namespace, heartbeat=HEARTBEAT).flushers
        becomes(status, "green")
        # Told as if published: the offset is never heard, the heartbeats go on.
        flusher.health.published(0, 1_000_000, 0.0)
        becomes(status, "red", "the published batch did not arrive")
        # A real batch has a lower offset: the history is another one.
        producer.set("a", 1)
        producer.flush(10)
        becomes(status, "green")


def test_a_stalled_link_is_red_in_the_log_alone(
    server: Server, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """On a half-open link the worker logs red within the bound, and green afterwards."""
    with FaultProxy(server.url) as proxy, shown_after(server, namespace) as status:
        worker = serving(proxy.url, namespace, heartbeat=HEARTBEAT)
        becomes(status, "green")
        proxy.faults.stall()
        eventually(lambda: logged(caplog, worker) == ["health_red"], BY)
        reported = "Redis has not answered for over 0.5 s"
        eventually(lambda: worker.flushers[0].reason == reported, BY)
        assert status()["flush"][0] == "green", "it cannot write there"
        proxy.faults.heal()
        eventually(lambda: logged(caplog, worker) == ["health_red", "health_green"], BY)
        becomes(status, "green")


def test_a_broken_subscription_is_made_anew(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Connections that are cut repeatedly recover without a restart."""
    with FaultProxy(server.url) as proxy, shown_after(server, namespace) as status:
        (flusher,) = serving(proxy.url, namespace, heartbeat=HEARTBEAT).flushers
        for _ in range(3):
            proxy.cut()
        proxy.faults.drop_messages = 1.0
        becomes(status, "red")
        proxy.cut()
        proxy.faults.drop_messages = 0.0
        becomes(status, "green")
        assert flusher.reason == ""


@pytest.mark.parametrize("interval", [0.1, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_server_that_goes_and_comes_back(
    own_server: OwnServer,
    namespace: str,
    serving: NewServing,
    caplog: pytest.LogCaptureFixture,
    interval: float,
) -> None:
    """Both roles are red while the server is away, and green with an empty one in its place."""
    server = own_server(port=0)
    workers = serving(server.url, namespace, heartbeat=HEARTBEAT, interval=interval)
    assert workers.scheduler is not None
    scheduler = workers.scheduler
    with Inspector(server.url, namespace=namespace) as inspector:
        eventually(lambda: inspector.status().shards[0].lease == scheduler.name)
    # What comes after the first round: with the long interval it only renews.
    eventually(lambda: not scheduler._is_writing)
    server.kill()
    eventually(lambda: "cannot reach" in workers.flushers[0].reason, BY)
    eventually(lambda: scheduler.reason, SCHEDULER_BY)
    assert "the lease could not be renewed for over 4 s" in scheduler.reason
    server.start()
    eventually(lambda: not workers.flushers[0].reason and not scheduler.reason, SCHEDULER_BY)
    assert logged(caplog, workers) == ["health_red", "health_green"]
    with shown(server.url, namespace) as status:
        becomes(status, "green")
        becomes(status, "green", role="schedule")


def test_a_worker_that_is_not_heard_of_is_gone(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A worker killed 10 s ago is shown neither green nor red."""
    worker = serving(server.url, namespace, heartbeat=HEARTBEAT)
    name = ShardKeys.of(namespace, 0, 1).workers
    with (
        redis.Redis.from_url(server.url, protocol=2) as raw,
        Inspector(server.url, namespace=namespace) as inspector,
    ):

        def reported() -> dict[str, str]:
            # Written anew for each look: on a busy machine one may come a second later.
            seconds: Any = raw.time()
            now = seconds[0] * 1000
            said = {"a": f"flush {now - 9000} why", "b": f"flush {now - 12000} why"}
            raw.hset(name, mapping=said)
            return {one.worker: one.health for one in inspector.status().workers}

        expected = {worker.flushers[0].name: "green", "a": "red", "b": "gone"}
        eventually(lambda: reported() == expected, BY, lambda: str(reported()))


def test_a_full_log_is_red_until_a_scheduler_comes(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """With a full log nothing is published, although every packet is received."""
    limits = DrainLimits(log_bytes=100_000)
    serving(server.url, namespace, heartbeat=HEARTBEAT, limits=limits)
    with (
        shown(server.url, namespace) as status,
        Producer(server.url, namespace=namespace) as producer,
    ):

        def is_full() -> bool:
            # What is pending may go into an empty log at once, whatever its size.
            producer.set("key", "x" * 20_000)
            producer.flush(10)
            return status().get("flush") == (
                "red",
                "shard 0: the log is full; is a scheduler running?",
            )

        eventually(is_full, BY)
        serving(server.url, namespace, interval=0.2, log_retention=0.0, log_limit=100_000)
        becomes(status, "green")


@pytest.mark.slow
def test_a_scheduler_whose_writes_fail_is_red_and_a_standby_green(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A scheduler that renews its lease but cannot write is red until a write succeeds."""
    serving(server.url, namespace, heartbeat=HEARTBEAT)
    keys = ShardKeys.of(namespace, 0, 1)
    with (
        shown(server.url, namespace) as status,
        redis.Redis.from_url(server.url, protocol=2) as raw,
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
        user_without(server, namespace, "xrange") as (url, allow),
    ):
        producer.set("a", 1)
        producer.flush(10)
        active = serving(url, namespace, interval=0.3).scheduler
        assert active is not None
        eventually(lambda: raw.get(keys.lease))
        standby = serving(url, namespace, interval=0.3).scheduler
        assert standby is not None
        workers = eventually(lambda: once_red(inspector, active.name), SCHEDULER_BY)
        reported = {one.worker: one.health for one in workers}
        assert (reported[active.name], reported[standby.name]) == ("red", "green")
        assert "shard 0: no full state was written for over 10 s: " in active.reason
        allow()
        eventually(lambda: not active.reason, SCHEDULER_BY)
        assert standby.reason == ""
        becomes(status, "green", role="schedule")


def once_red(inspector: Inspector, name: str) -> tuple[WorkerStatus, ...] | None:
    """Return the workers as soon as this one is red; others may be, on a slow machine."""
    workers = inspector.status().workers
    return workers if (name, "red") in {(one.worker, one.health) for one in workers} else None


def test_a_worker_without_the_right_to_listen_says_so(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The reason names the missing right to subscribe; data flows meanwhile."""
    with user_without(server, namespace, "subscribe") as (url, allow):
        serving(url, namespace, heartbeat=HEARTBEAT)
        with (
            shown(server.url, namespace) as status,
            Replica(server.url, namespace=namespace) as replica,
            Producer(server.url, namespace=namespace) as producer,
        ):
            becomes(status, "red", "does not permit it")
            assert "subscribe" in status()["flush"][1]
            producer.set("a", 1)
            replica.wait_for(producer.flush(10), 10)
            allow()
            becomes(status, "green")


@contextlib.contextmanager
def user_without(
    server: Server, namespace: str, command: str
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return the URL of a user without one command, and a function that grants it."""
    with redis.Redis.from_url(server.url, protocol=2) as raw:

        def acl(*rules: str) -> None:
            raw.execute_command("ACL", "SETUSER", namespace, *rules)

        acl("reset", "on", ">secret", "~*", "&*", "+@all", f"-{command}")
        try:
            yield f"unix://{namespace}:secret@{server.socket}", lambda: acl(f"+{command}")
        finally:
            raw.execute_command("ACL", "DELUSER", namespace)
