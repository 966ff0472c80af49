"""The board of the compose demo, as a process whose output is a log."""

from __future__ import annotations

import json
import sys

from broker import Producer
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.processes.conftest import NewProgram, Serve


def test_the_first_board_waits_until_the_replica_is_live(
    valkey: Server, namespace: str, start: NewProgram, serve: Serve
) -> None:
    """Until then it says what it waits for; the first board has the numbers that are there."""
    with Producer(valkey.url, namespace=namespace) as producer:
        producer.set("count/EWR/departures", 4_321)
        producer.flush(10)
        watch = start.begin(
            [sys.executable, "-m", "scripts.flights.watch"],
            {"STATEBROKER_URL": valkey.url, "STATEBROKER_NAMESPACE": namespace},
        )
        eventually(lambda: '"waiting"' in watch.out, 30, lambda: watch.out + watch.err)
        assert "airports" not in watch.out
        serve(valkey.url, namespace)
        eventually(lambda: "last movements" in watch.out, 30, lambda: watch.out + watch.err)
        first = watch.out[: watch.out.index("last movements")]
        said = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
        assert all(one["kind"] == "waiting" for one in said)
        assert any("flush worker" in reason for one in said for reason in one.get("reasons", ()))
        for words in ("4,321", " live "):
            assert words in first
