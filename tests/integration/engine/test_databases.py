"""The same namespace in two databases of one server, whose channels are the same."""

from __future__ import annotations

import logging

import pytest
import redis

from broker import Producer, Replica
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.integration.running_workers import NewServing


def test_each_database_has_its_own_state(
    own_server: OwnServer,
    kind: str,
    namespace: str,
    serving: NewServing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both stay live, each loads once more for the other at most, and one line is logged."""
    server = own_server(port=0, kind=kind)
    urls = [f"redis://127.0.0.1:{server.port}/{number}" for number in (0, 1)]
    for url in urls:
        serving(url, namespace)
    with (
        caplog.at_level(logging.WARNING),
        Producer(urls[0], namespace=namespace) as first,
        Producer(urls[1], namespace=namespace) as second,
        Replica(urls[0], namespace=namespace) as of_first,
        Replica(urls[1], namespace=namespace) as of_second,
    ):
        for number in range(50):
            first.set("a", number)
            second.set("a", -number)
            tokens = first.flush(5), second.flush(5)
            of_first.wait_for(tokens[0], 5)
            of_second.wait_for(tokens[1], 5)
            assert (of_first["a"], of_second["a"]) == (number, -number)
        for replica in (of_first, of_second):
            replica.wait_live(5)
            stats = replica.stats()
            assert stats.loads <= 3
            assert stats.packets_foreign > 0
            replica.verify()
    assert 0 < caplog.text.count("foreign_history") <= 2


def test_a_history_that_becomes_the_servers_own_is_followed(
    own_server: OwnServer, kind: str, namespace: str, serving: NewServing
) -> None:
    """SWAPDB: what was foreign is the truth now, and replicas find out by the silence."""
    server = own_server(port=0, kind=kind)
    urls = [f"redis://127.0.0.1:{server.port}/{number}" for number in (0, 1)]
    for url in urls:
        serving(url, namespace)
    with (
        Producer(urls[1], namespace=namespace) as other,
        Replica(urls[0], namespace=namespace, staleness_bound=0.5) as replica,
    ):
        other.set("a", "other")
        other.flush(5)
        eventually(lambda: replica.stats().packets_foreign > 0)
        with redis.Redis.from_url(urls[0]) as client:
            client.swapdb(0, 1)
        eventually(lambda: dict(replica) == {"a": "other"} and str(replica.status) == "live", 15)
