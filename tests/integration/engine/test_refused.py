"""An increment that is refused is told by who can know: the replicas."""

from __future__ import annotations

import logging

import pytest

from broker import Producer, Replica
from broker.testing.server import Server
from tests.integration.running_workers import NewServing


def test_replicas_count_and_name_refused_increments(
    server: Server, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """By key and node, the last few of many; in the log once."""
    caplog.set_level(logging.WARNING)
    serving(server.url, namespace)
    with (
        Replica(server.url, namespace=namespace) as replica,
        Producer(server.url, namespace=namespace, node="n1") as producer,
    ):
        producer.set_many({f"text/{at}": "x" for at in range(100)} | {"n": 1})
        producer.increment("n")
        replica.wait_for(producer.flush(10), 10)
        assert (replica.stats().deltas_refused, replica.stats().refused) == (0, ())
        for at in range(100):
            producer.increment(f"text/{at}")
            if at % 10 == 0:
                replica.wait_for(producer.flush(10), 10)
        replica.wait_for(producer.flush(10), 10)
        found = replica.stats()
        assert found.deltas_refused == 100
        assert len(found.refused) == 5
        assert all(one.startswith("'text/") and one.endswith(" by n1") for one in found.refused)
        assert replica["text/7"] == "x"
    (line,) = [one for one in caplog.messages if one.startswith("increments_refused")]
    assert "'text/0' by n1" in line
    assert "set them first" in line
