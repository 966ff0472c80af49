"""Tables under faults: lost data, full logs, and programs without NumPy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis

from broker import DataLostError, Inspector, Producer, Replica, Status
from broker.backend.replies import DrainLimits
from broker.core import content as content_module
from broker.core.tables.shard import ShardTables
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.engine.test_tables import content
from tests.integration.lossy_proxy import Proxy
from tests.integration.running_workers import NewServing

OwnServer = Callable[..., Server]


@pytest.fixture
def own(kind: str, own_server: OwnServer) -> Server:
    """Give a server of each kind that a test may wipe and kill."""
    return own_server(kind=kind)


@pytest.fixture
def admin(own: Server) -> Iterator[redis.Redis]:
    """Give a plain client of that server."""
    with redis.Redis.from_url(own.url) as client:
        yield client


def agree(url: str, namespace: str, replica: Replica, right: dict[Any, Any]) -> None:
    """Wait until the replica's table has this content, as do a new replica and Redis."""
    eventually(
        lambda: replica.status is Status.LIVE and content(replica.table("t")) == right,
        15,
        lambda: f"{right}: {replica.status} {content(replica.table('t'))} {replica.stats()}",
    )
    with Replica(url, namespace=namespace) as newcomer:
        newcomer.wait_live(10)
        assert content(newcomer.table("t")) == right
        assert newcomer.stats().chunks_skipped == 0
        assert newcomer.verify().is_equal


def forget_kept(producer: Producer, chunks: int) -> None:
    """Expire the producer's oldest kept chunks."""
    (lane,) = producer._engine.sender.buffer.lanes
    for _ in range(chunks):
        lane.sent.kept.popleft()


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_wiped_server_gets_its_tables_again(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing, *, is_lost: bool
) -> None:
    """Deltas keep their keys, also where the chunk that defined the ids is lost."""
    serving(own.url, namespace, interval=0.1)
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        table = producer.table("t")
        table.set_many(["a", "b", "c"], [1.0, 2.0, 3.0])
        producer.flush(10)
        table.set_many(["d", "b"], [4.0, 20.0], [1, 2])
        replica.wait_for(producer.flush(10), 10)
        if is_lost:
            forget_kept(producer, 1)
        admin.flushall()
        eventually(lambda: producer.stats().resent > 0)
        late = {"d": (4.0, 1), "b": (20.0, 2)}
        right = late if is_lost else {"a": (1.0, 0), "c": (3.0, 0)} | late
        agree(own.url, namespace, replica, right)
        assert producer.stats().lost == 3 * is_lost
        table.increment_many(["a", "e"], 5.0)
        if is_lost:
            with pytest.raises(DataLostError):
                producer.flush(10)
        right |= {"a": (6.0 - is_lost, 0), "e": (5.0, 0)}
        replica.wait_for(producer.flush(10), 10)
        agree(own.url, namespace, replica, right)


def test_a_server_that_comes_back_with_less_gets_the_rest_once(
    own: Server, admin: redis.Redis, namespace: str, serving: NewServing
) -> None:
    """After a restart from a dump sums are exact and replicas load again."""
    serving(own.url, namespace, interval=0.1)
    with (
        Producer(own.url, namespace=namespace) as producer,
        Replica(own.url, namespace=namespace) as replica,
    ):
        table = producer.table("t")
        table.increment_many(["a", "b"], 1.0)
        replica.wait_for(producer.flush(10), 10)
        admin.save()
        for number in range(20):
            table.increment_many(["a", f"k{number}"], 1.0)
            producer.flush(10)
        eventually(lambda: content(replica.table("t")).get("a") == (21.0, 0))
        own.kill()
        own.start()
        right = {"a": (21.0, 0), "b": (1.0, 0)} | {f"k{n}": (1.0, 0) for n in range(20)}
        agree(own.url, namespace, replica, right)
        assert producer.stats().lost == 0
        table.increment_many(["a", "k19"], 1.0)
        replica.wait_for(producer.flush(10), 10)
        agree(own.url, namespace, replica, right | {"a": (22.0, 0), "k19": (2.0, 0)})


def test_a_replica_that_lost_its_subscription_catches_up(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The replica reads the log without another load, and keeps its content meanwhile."""
    serving(server.url, namespace)
    with (
        Proxy(server) as proxy,
        Producer(server.url, namespace=namespace) as producer,
        Replica(proxy.url, namespace=namespace, staleness_bound=0.5) as replica,
    ):
        table = producer.table("t")
        table.set_many(["a", "b"], [1.0, 2.0])
        replica.wait_for(producer.flush(10), 10)
        for number in range(3):
            proxy.cut()
            table.increment_many(["a", f"k{number}"], 1.0)
            replica.wait_for(producer.flush(10), 10)
        assert content(replica.table("t"))["a"] == (4.0, 0)
        assert replica.stats().loads == 1
        assert replica.verify().is_equal


def test_schedulers_come_and_go_under_sustained_writing(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """New replicas are right while schedulers are killed, restarted and cut the log."""
    serving(server.url, namespace, shards=2, max_age=0.002)
    stop = threading.Event()
    totals = {"n": 0}

    def write() -> None:
        with Producer(server.url, namespace=namespace) as producer:
            table = producer.table("t")
            while not stop.is_set():
                totals["n"] += 1
                number = totals["n"]
                names = [f"k{n}" for n in range(number % 50 * 20, number % 50 * 20 + 40)]
                table.increment_many([*names, "n"], 1.0)
                if number % 5 == 0:
                    producer.flush(10)

    writer = threading.Thread(target=write)
    with Replica(server.url, namespace=namespace) as replica:
        writer.start()
        try:
            for _ in range(6):
                scheduler = serving(
                    server.url, namespace, flushers=0, interval=0.1, log_retention=0.1
                )
                before = totals["n"]
                eventually(lambda before=before: totals["n"] > before + 50)  # type: ignore[misc]
                scheduler.kill()
                with Replica(server.url, namespace=namespace) as newcomer:
                    newcomer.wait_live(10)
                    assert newcomer.stats().chunks_skipped == 0
        finally:
            stop.set()
            writer.join()
        eventually(lambda: replica.table("t")["n"] == totals["n"])
        with Replica(server.url, namespace=namespace) as newcomer:
            newcomer.wait_live(10)
            assert content(newcomer.table("t")) == content(replica.table("t"))
            assert sum(content(newcomer.table("t"))[key][0] for key in newcomer.table("t")) == (
                41 * totals["n"]
            )
            serving(server.url, namespace, flushers=0, interval=0.1)
            assert newcomer.verify().is_equal


# -- the log --------------------------------------------------------------------------------------


def test_more_than_a_log_within_an_interval_is_written_without_a_stall(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A scheduler with a half-full log writes at once, although its interval is an hour."""
    limit = 2 << 20
    serving(
        server.url,
        namespace,
        interval=3600.0,
        log_limit=limit,
        limits=DrainLimits(log_bytes=limit),
    )
    with (
        Producer(server.url, namespace=namespace, compress=0) as producer,
        Replica(server.url, namespace=namespace) as replica,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        table = producer.table("t", keys=int)
        keys = table.keys(np.arange(10_000, dtype=np.uint64))
        for number in range(60):
            table.set_many(keys, float(number))
        replica.wait_for(producer.flush(20), 20)
        view = replica.table("t", keys=int)
        assert set(content(view).values()) == {(59.0, 0)}
        shard = inspector.status().shards[0]
        assert shard.snapshot_offset > 1
        with redis.Redis.from_url(server.url) as raw:
            bytes_ever: Any = raw.hget(f"sb:{{{namespace}:0}}:meta", "logged")
        assert int(bytes_ever) > 3 * limit


def test_a_flush_worker_does_not_spin_while_the_log_is_full(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Despite wake-ups it polls a few times a second, and resumes once there is room."""
    limits = DrainLimits(log_bytes=20_000)
    served = serving(server.url, namespace, limits=limits, heartbeat=10.0, max_count=1)
    commands = served.session.commands
    drain, drains = commands.drain, [0]

    async def counted(*arguments: Any) -> Any:
        drains[0] += 1
        return await drain(*arguments)

    commands.drain = counted  # type: ignore[method-assign]
    with (
        Producer(server.url, namespace=namespace, linger=0.0) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        table = producer.table("t")
        number = 0

        def is_full() -> bool:
            nonlocal number
            number += 1
            table.set(f"k{number % 500}", number)
            producer.flush(10)
            return bool(served._thread.call(_is_full(served)))

        eventually(is_full, 20)
        before, began = drains[0], time.monotonic()
        for _ in range(400):
            is_full()
        seconds = time.monotonic() - began
        assert drains[0] - before <= seconds / 0.25 + 2
        serving(server.url, namespace, flushers=0, interval=0.1, log_limit=20_000)
        replica.wait_for(producer.flush(10), 20)
        assert replica.table("t")[f"k{number % 500}"] == number


async def _is_full(served: Any) -> bool:
    return any(shard.is_full for shard in served.flushers[0]._shards)


# -- without numpy --------------------------------------------------------------------------------

BARE = """
import sys
sys.modules["numpy"] = None  # as if it were not installed
from broker import NumpyMissingError, Producer, Replica
from tests.integration.running_workers import Serving
from broker.testing.waiting import eventually

url, namespace = sys.argv[1:]
with Producer(url, namespace=namespace) as producer, Replica(url, namespace=namespace) as replica:
    for one in (producer, replica):
        try:
            one.table("t")
        except NumpyMissingError as error:
            assert "pip install 'statebroker[numpy]'" in str(error)
        else:
            raise AssertionError("a table without numpy")
    replica.wait_live(10)
    assert replica["x"] == 1
    producer.set("y", 2)
    replica.wait_for(producer.flush(10), 10)
    assert replica["y"] == 2
    assert replica.verify().is_equal
    serving = Serving(url, namespace, flushers=0, interval=0.1)
    scheduler = serving.scheduler
    eventually(lambda: scheduler.stats().errors > 0)
    scheduler.health.bound = 0.0
    eventually(lambda: "statebroker[numpy]" in scheduler.reason, 30, lambda: scheduler.reason)
    serving.stop()
print("fine")
"""


def test_without_numpy_objects_work_and_the_scheduler_says_what_is_missing(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """No partial state is written: the log waits for a scheduler with NumPy."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        producer.table("t").set("a", 1.0)
        producer.set("x", 1)
        producer.flush(10)
        eventually(lambda: inspector.status().shards[0].pending_deltas == 0)
        done = subprocess.run(
            [sys.executable, "-c", BARE, server.url, namespace],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == "fine\n", done.stderr
        assert inspector.status().shards[0].snapshot_offset == 0
        serving(server.url, namespace, flushers=0, interval=0.1)
        eventually(lambda: inspector.status().shards[0].snapshot_offset > 0, 20)
        with Replica(server.url, namespace=namespace) as newcomer:
            newcomer.wait_live(10)
            assert newcomer.table("t")["a"] == 1.0
            assert newcomer["y"] == 2


def test_a_replica_short_of_memory_says_so_and_goes_on_later(
    server: Server,
    namespace: str,
    serving: NewServing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MemoryError out of a load or out of a batch ends nothing, and no half of it is shown."""
    url = server.url
    serving(url, namespace)
    fold, loaded = content_module.fold, ShardTables.loaded

    def fail(*_args: Any, **_options: Any) -> Any:
        raise MemoryError

    with Producer(url, namespace=namespace) as producer:
        table = producer.table("t", keys=int)
        table.set_many([1, 2], [1.0, 2.0])
        producer.flush(10)
        with Replica(url, namespace=namespace) as replica:
            replica.wait_live(10)
            monkeypatch.setattr(content_module, "fold", fail)
            monkeypatch.setattr(ShardTables, "loaded", fail)
            table.set_many([2, 3], [3.0, 4.0])
            producer.flush(10)
            eventually(lambda: "memory_exhausted" in caplog.text, 10)
            assert replica.status is Status.LOADING
            assert "error=memory_exhausted fix=give the process more memory" in caplog.text
            monkeypatch.setattr(content_module, "fold", fold)
            monkeypatch.setattr(ShardTables, "loaded", loaded)
            right = {1: 1.0, 2: 3.0, 3: 4.0}
            eventually(
                lambda: (
                    replica.status is Status.LIVE and dict(replica.table("t", keys=int)) == right
                ),
                10,
            )
