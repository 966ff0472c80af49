"""A server that is away for some seconds leaves a few lines, which say when it came back."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from broker import Producer, Replica
from broker.testing.waiting import eventually
from tests.conftest import OwnServer
from tests.integration.running_workers import NewServing

SHARDS = 4
# Of one task: it fails, perhaps by another kind of error while the server loads, and has ended.
MAX_LINES = 3


def test_an_outage_leaves_a_few_lines_with_its_end(
    own_server: OwnServer, namespace: str, serving: NewServing, caplog: pytest.LogCaptureFixture
) -> None:
    """However many shards and attempts there are, each task logs its begin and its end."""
    server = own_server(port=0)
    serving(server.url, namespace, shards=SHARDS, interval=0.2)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.set_many({f"k{number}": number for number in range(100)})
        replica.wait_for(producer.flush(5), 5)
        caplog.clear()
        server.kill()
        producer.set_many({f"k{number}": -number for number in range(100)})
        eventually(lambda: producer.stats().retries >= 8 * SHARDS, 20)
        assert "append_failed" in caplog.text
        server.start()
        replica.wait_for(producer.flush(20), 20)
        ends = ("append_failed_ended", "poll_failed_ended", "subscription_lost_ended")
        eventually(lambda: all(one in caplog.text for one in ends), 20, lambda: caplog.text)
    lines = Counter(
        found[0] for line in caplog.messages if (found := re.match(r"[a-z_]+?(?=_ended|\s)", line))
    )
    repeated = {"append_failed", "open_failed", "recovery_failed", "subscription_lost"} | {
        *("namespace_unknown", "owners_unknown", "lease_failed", "snapshot_failed", "poll_failed")
    }
    told = {event: lines[event] for event in repeated if lines[event]}
    # A flush worker and a scheduler each log failed polls.
    assert all(count <= MAX_LINES * 2 for count in told.values()), told
    assert sum(told.values()) <= 20, told
    ended = re.search(r"append_failed_ended node=\S+ failures=(\d+) after=", caplog.text)
    assert ended is not None
    assert int(ended[1]) >= 8 * SHARDS
