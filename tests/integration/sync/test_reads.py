"""Reads and waits of the threaded replica at unusual moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from broker import NotLoadedError, Producer, Replica
from broker.core.content import Content
from broker.engine.table_view import TableView
from broker.testing.server import Server
from tests.integration.running_workers import NewServing


def test_a_read_right_after_the_start_waits_for_the_first_load(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """`get` never answers its default because the state is not there yet."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set("flag", True)
        with Replica(server.url, namespace=namespace) as replica:
            replica.wait_for(producer.flush(10), 10)
        reads: list[Callable[[Replica], object]] = [
            lambda replica: replica.get("flag", False),
            lambda replica: "flag" in replica,
            len,
            dict,
        ]
        for read in reads:
            for _ in range(3):
                with Replica(server.url, namespace=namespace) as replica:
                    assert read(replica)


def test_a_read_gives_up_where_the_state_does_not_come(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises NotLoadedError after a while, and names `wait_live`."""
    monkeypatch.setattr("broker.engine.replica.LOAD_PATIENCE_S", 0.2)
    monkeypatch.setattr(Content, "is_loaded", property(lambda _: False))
    with (
        Producer(server.url, namespace=namespace),
        Replica(server.url, namespace=namespace) as replica,
        pytest.raises(NotLoadedError, match=r"call wait_live\(\) before"),
    ):
        replica.get("flag", False)


@pytest.mark.parametrize("closes", ["reader", "replica"])
def test_closing_wakes_every_thread_that_shares_a_reader(
    server: Server, namespace: str, closes: str
) -> None:
    """Four threads share one `changes()`: each of them ends."""
    with Replica(server.url, namespace=namespace) as replica:
        reader = replica.changes()
        started = threading.Barrier(5)

        def follow() -> None:
            started.wait(10)
            for _ in reader:
                pass

        threads = [threading.Thread(target=follow, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait(10)
        (reader if closes == "reader" else replica).close()
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)


def test_a_wait_ends_in_time_while_another_thread_reads_a_moment(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout of a wait holds although nothing can be applied meanwhile; nothing is left."""
    monkeypatch.setattr("broker.sync.loop_thread.GRACE_S", 0.1)
    inside, go_on = threading.Event(), threading.Event()

    def block(_view: TableView) -> None:
        inside.set()
        go_on.wait(30)

    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.set("key", 1)
        token = producer.flush(10)
        len(replica)
        reading = threading.Thread(target=lambda: replica.table("fleet").read(block))
        reading.start()
        try:
            assert inside.wait(10)
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                replica.wait_for(token, 0.1)
            with pytest.raises(TimeoutError):
                replica.wait_live(0.1)
            assert time.monotonic() - begun < 2
        finally:
            go_on.set()
            reading.join(10)
