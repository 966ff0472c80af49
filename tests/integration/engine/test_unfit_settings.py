"""Settings of running workers that do not fit a replica's are named, wherever somebody looks."""

from __future__ import annotations

import logging

import pytest
import redis
from click.testing import CliRunner

from broker import Inspector, Producer, Replica
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing
from workers.cli.doctor import doctor
from workers.cli.status import status

RARE = "heartbeat_interval=2 and staleness_bound=3"
LATE = "local_delta_max_age=5 and staleness_bound=3"


def settings_told(log: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines about settings."""
    return [line for line in log.messages if line.startswith("settings_conflict")]


def test_a_replica_logs_once_what_its_workers_do_not_keep(
    server: Server, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """It learns interval and age when it catches up; with a fitting bound there is none."""
    caplog.set_level(logging.WARNING)
    serving(server.url, namespace, heartbeat=2.0, max_age=5.0)
    with Replica(server.url, namespace=namespace, staleness_bound=10) as fitting:
        fitting.wait_live(10)
    assert settings_told(caplog) == []
    with (
        Replica(server.url, namespace=namespace, staleness_bound=3) as replica,
        Producer(server.url, namespace=namespace, local_delta_max_age=0.0) as producer,
    ):
        replica.wait_live(10)
        producer.set("k", 1)
        replica.wait_for(producer.flush(10), 10)
        told = settings_told(caplog)
        assert len(told) == 2
        assert RARE in told[0]
        assert "set heartbeat_interval to at most 1.5, or raise staleness_bound" in told[0]
        assert LATE in told[1]


def test_status_and_doctor_name_it(
    server: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the bound that is configured here, by option, variable or default."""
    serving(server.url, namespace, heartbeat=2.0, interval=1.0, max_age=0.01)
    place = ["--url", server.url, "--namespace", namespace]
    for command in (status, doctor):
        for options, is_told in ((["--staleness-bound", "10s"], False), ([], True)):
            shown = CliRunner().invoke(command, [*place, *options], catch_exceptions=False)
            assert (RARE in " ".join(shown.output.split())) == is_told, shown.output
        monkeypatch.setenv("STATEBROKER_STALENESS_BOUND", "20s")
        shown = CliRunner().invoke(command, place, catch_exceptions=False)
        assert "heartbeat_interval" not in shown.output
        monkeypatch.delenv("STATEBROKER_STALENESS_BOUND")
    shown = CliRunner().invoke(status, [*place, "--check"], catch_exceptions=False)
    assert RARE in shown.output


def test_the_shortest_interval_of_the_running_workers_is_known(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A worker with a longer one does not hide it; once it runs alone, its own is told."""
    short = serving(server.url, namespace, heartbeat=0.2)
    long = serving(server.url, namespace, heartbeat=1.0)

    def told() -> int | None:
        return inspector.status().shards[0].heartbeat_ms

    with Inspector(server.url, namespace=namespace) as inspector:
        eventually(lambda: told() == 200)
        short.stop()
        eventually(lambda: told() == 1000)
        serving(server.url, namespace, heartbeat=0.3)
        eventually(lambda: told() == 300)
    long.stop()


def test_a_worker_with_rare_heartbeats_is_not_gone(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """It notes that it lives every 3 s, and publishes no more heartbeats than it should."""
    keys = ShardKeys.of(namespace, 0, 1)
    worker = serving(server.url, namespace, heartbeat=60.0).flushers[0].name

    def noted() -> bytes:
        found: bytes = raw.hget(keys.workers, worker)  # type: ignore[assignment]
        return found

    eventually(lambda: noted() is not None)
    first, published = noted(), raw.hget(keys.meta, "published_at")
    eventually(lambda: noted() != first, 8)
    assert raw.hget(keys.meta, "published_at") == published
    with Inspector(server.url, namespace=namespace) as inspector:
        (one,) = inspector.status().workers
        assert one.health == "green"
