"""A server without memory: what only reads goes on, what writes says why it waits."""

from __future__ import annotations

import pytest

from broker import BackendError, FlushTimeoutError, Inspector, Producer, Replica
from broker.testing.clusters import ask
from tests.conftest import OwnServer
from tests.integration.running_workers import NewServing, write_snapshots


def test_reading_and_joining_need_no_memory(
    own_server: OwnServer, kind: str, namespace: str, serving: NewServing
) -> None:
    """`status`, `get`, the folded state, `verify` and a new replica work; writing waits."""
    server = own_server(port=0, kind=kind)
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set_many({f"k{number}": number for number in range(100)})
        producer.flush(5)
        write_snapshots(server.url, namespace)
        producer.set("late", 1)
        token = producer.flush(5)
        with Replica(server.url, namespace=namespace) as before:
            before.wait_for(token, 5)
        ask(server, "CONFIG", "SET", "maxmemory", "1mb")
        with Inspector(server.url, namespace=namespace) as inspector:
            assert inspector.status().shards[0].offset >= 1
            assert inspector.get("late") == (True, 1)
            assert len(inspector.folded()) == 101
            assert inspector.altered() == {}
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_for(token, 5)
            replica.wait_live(5)
            assert len(replica) == 101
            assert replica.verify().differences == ()
        # The full state moves on, so that the log can be cut, which gives memory back.
        write_snapshots(server.url, namespace)
        with Inspector(server.url, namespace=namespace) as inspector:
            (shard,) = inspector.status().shards
            assert shard.snapshot_offset == shard.offset
            assert inspector.state()["late"] == 1
        producer.set("more", 1)
        with pytest.raises(FlushTimeoutError, match="out of memory"):
            producer.flush(0.5)
        with pytest.raises(BackendError, match="out of memory") as refused:
            Producer(server.url, namespace=namespace)
        assert refused.value.is_temporary
        ask(server, "CONFIG", "SET", "maxmemory", "0")
        producer.flush(5)
