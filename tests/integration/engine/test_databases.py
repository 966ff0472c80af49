"""The same namespace in two databases of one server: two namespaces that do not hear each other."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
import redis

from broker import Producer, Replica
from broker.protocol.codec import encode_packet
from broker.protocol.constants import BULK_BYTES, NO_ID
from broker.protocol.messages import Heartbeat
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.integration.running_workers import NewServing
from workers.doctor.survey import survey


def test_each_database_has_its_own_state(
    own_server: OwnServer,
    kind: str,
    namespace: str,
    serving: NewServing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two fleets: each replica hears its own workers only, bulk chunks included."""
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
        first.set("bulk", "x" * BULK_BYTES)
        second.set("bulk", "y" * BULK_BYTES)
        of_first.wait_for(first.flush(5), 5)
        of_second.wait_for(second.flush(5), 5)
        assert (of_first["bulk"][0], of_second["bulk"][0]) == ("x", "y")
        for replica in (of_first, of_second):
            replica.wait_live(5)
            stats = replica.stats()
            assert (stats.loads, stats.forks, stats.gaps, stats.packets_foreign) == (1, 0, 0, 0)
            replica.verify()
        with redis.Redis.from_url(urls[1]) as client:
            found: Any = client.pubsub_channels(f"sb:{{{namespace}:0}}:*")
        named = {f"sb:{{{namespace}:0}}:{kind}:{n}" for kind in ("live", "bulk") for n in (0, 1)}
        assert {name.decode() for name in found} == named
    assert "foreign_history" not in caplog.text


def test_packets_of_another_history_are_ignored(
    server: Server,
    raw: redis.Redis,
    namespace: str,
    serving: NewServing,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Something else publishes on the channel: the replica stays live, and one line is logged."""
    serving(server.url, namespace)
    channel = ShardKeys.of(namespace, 0, 1).channel
    with (
        caplog.at_level(logging.WARNING),
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(5)
        for number in range(50):
            now = time.time_ns() // 1_000_000
            raw.publish(
                channel, encode_packet(Heartbeat(0, b"another!", 9, b"x" * 8, NO_ID, now, 9))
            )
            producer.set("a", number)
            replica.wait_for(producer.flush(5), 5)
            assert replica["a"] == number
        replica.wait_live(5)
        stats = replica.stats()
        assert stats.loads <= 3
        assert stats.packets_foreign > 0
    assert caplog.text.count("foreign_history") == 1


def test_a_history_that_becomes_the_servers_own_is_followed(
    own_server: OwnServer, kind: str, namespace: str, serving: NewServing
) -> None:
    """SWAPDB: what the other database held is the truth now, and workers publish it here."""
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
        replica.wait_live(5)
        with redis.Redis.from_url(urls[0]) as client:
            client.swapdb(0, 1)
        eventually(lambda: dict(replica) == {"a": "other"} and str(replica.status) == "live", 15)


def test_the_doctor_tells_what_still_shares_a_channel(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """A program of version 2 hears all databases; our own channels are of one each."""
    serving(server.url, namespace)
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_live(10)
        old = f"sb:{{{namespace}:0}}:live"
        subscription = raw.pubsub()
        for is_shared in (False, True, False):
            found = asyncio.run(survey(server.url, namespace, seconds=0)).servers[0]
            assert found.shared_channels == ({old: 1} if is_shared else {})
            if is_shared:
                subscription.close()
                eventually(lambda: raw.pubsub_numsub(old)[0][1] == 0)
            else:
                subscription.subscribe(old)
                subscription.get_message(timeout=10)
        subscription.close()
