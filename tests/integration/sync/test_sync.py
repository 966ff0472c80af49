"""The threaded faces, end to end: what users see."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from broker import (
    FlushTimeoutError,
    Inspector,
    Producer,
    Replica,
    Status,
    Token,
)
from broker.core.fold import Tally, fold
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.exact_content import packed
from tests.integration.raw_subscriber import Channel
from tests.integration.running_workers import NewServing, write_snapshots

ROOT = Path(__file__).parents[3]

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "small": -1,
    "least": -(2**63),
    "most": 2**64 - 1,
    "float": 0.1 + 0.2,
    "tiny": 5e-324,
    "inf": math.inf,
    "nan": math.nan,
    "minus zero": -0.0,
    "whole float": 3.0,
    "str": "größer 👩‍🚀 \0 \u202e",
    "empty": "",
    "bytes": bytes(range(256)),
    "list": [1, [2.5, ["x", None]], b"\xff", {}],
    "map": {"": [], "a": {"b": {"c": [True]}}},
    "time": datetime(1969, 7, 20, 20, 17, 40, 123456, tzinfo=UTC),
    "large": "x" * 300_000,
}

UNICODE_KEYS = [
    " ",
    "a b\tc\n",
    "\0",
    "ключ",
    "键",
    "é",
    "e\u0301",
    "👩‍🚀",
    "\u202eabc",
    "\ufeff",
    "sb:{x}:meta",
    "*?[a]",
    "ü" * 512,
]

# Ends without close(): by falling off its end, or by an exception.
FORGETFUL = """
import sys
from broker import Producer
producer = Producer(sys.argv[1], namespace=sys.argv[2])
for n in range(1000):
    producer.increment("n")
if sys.argv[3] == "raise":
    raise SystemExit(3)
"""


def test_every_operation_arrives(server: Server, namespace: str, serving: NewServing) -> None:
    """Set, delete, increment and set_many do on a replica what their names say."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.set("a", 1)
        producer.set("a", 2)
        producer.set("gone", 1)
        producer.delete("gone")
        producer.delete("never there")
        producer.increment("n")
        producer.increment("n", 41)
        producer.increment("f", 0.5)
        producer.increment("a", -3)
        producer.set_many({"x": [1], "y": None})
        replica.wait_for(producer.flush(10), 10)
        assert dict(replica.items()) == {"a": -1, "n": 42, "f": 0.5, "x": [1], "y": None}
        assert replica.status is Status.LIVE
        wrote = producer.stats()
        assert (wrote.buffered, wrote.accepted, wrote.pending) == (11, 11, 0)
        assert replica.stats().deltas_applied == 11


def test_values_of_every_type_arrive_as_they_were(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A value reaches live and late replicas and the full state with type and bits unchanged."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        for key, value in VALUES.items():
            producer.set(key, value)
        replica.wait_for(producer.flush(10), 10)
        expected = packed(VALUES)
        assert packed(replica) == expected
        assert {key: type(value) for key, value in replica.items()} == {
            key: type(value) for key, value in VALUES.items()
        }
        write_snapshots(server.url, namespace)
        with Inspector(server.url, namespace=namespace) as inspector:
            for content in (inspector.state(), inspector.folded()):
                assert packed(content) == expected
        with Replica(server.url, namespace=namespace) as late:
            late.wait_live(10)
            assert packed(late) == expected


def test_a_time_is_the_same_moment_whatever_its_zone(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """An aware datetime arrives as the same moment."""
    serving(server.url, namespace)
    given = datetime(2013, 1, 1, 5, 15, tzinfo=timezone(timedelta(hours=-5)))
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.set("departed", given)
        replica.wait_for(producer.flush(10), 10)
        assert replica["departed"] == given
        assert replica["departed"].utcoffset() == timedelta(0)


def test_unicode_keys_arrive(server: Server, namespace: str, serving: NewServing) -> None:
    """Any text of 1 to 1,024 UTF-8 bytes is a key, and equal only to itself."""
    serving(server.url, namespace, shards=2)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        for number, key in enumerate(UNICODE_KEYS):
            producer.set(key, number)
        replica.wait_for(producer.flush(10), 10)
        expected = {key: number for number, key in enumerate(UNICODE_KEYS)}
        assert dict(replica.items()) == expected
        write_snapshots(server.url, namespace)
        with Inspector(server.url, namespace=namespace) as inspector:
            assert inspector.state() == expected
            assert [inspector.get(key) for key in UNICODE_KEYS] == [
                (True, number) for number in range(len(UNICODE_KEYS))
            ]


def test_a_token_carries_read_your_writes_as_text(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A replica that waited for the text of a token shows what was flushed before it."""
    serving(server.url, namespace, shards=2)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as one,
        Replica(server.url, namespace=namespace) as two,
    ):
        for number in range(50):
            producer.set("key", number)
            producer.set("other", number)
            text = str(producer.flush(10))
            assert Token.parse(text).marks
            for replica in (one, two):
                replica.wait_for(text, 10)
                assert (replica["key"], replica["other"]) == (number, number)


def test_waiting_for_a_token_ends_in_time(server: Server, namespace: str) -> None:
    """Where no worker publishes, waiting for a token ends with a TimeoutError that says so."""
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.set("key", 1)
        token = producer.flush(10)
        with pytest.raises(TimeoutError, match=r"does not show the token.*flush worker"):
            replica.wait_for(token, 0.05)
        assert "key" not in replica


def test_a_snapshot_is_one_moment(
    server: Server, namespace: str, serving: NewServing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that a thread makes in the middle of a batch holds all of it or nothing."""
    serving(server.url, namespace)
    in_the_middle, go_on = threading.Event(), threading.Event()

    def slowly(values: dict[str, Any], *rest: Any, **more: Any) -> Tally:
        values["left"] = 1
        in_the_middle.set()
        assert go_on.wait(10)
        return fold(values, *rest, **more)

    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        monkeypatch.setattr("broker.core.content.fold", slowly)
        producer.set_many({"left": 1, "right": 1})
        producer.flush(10)
        assert in_the_middle.wait(10)
        copies: list[Any] = []
        readers = [
            threading.Thread(target=lambda read=read: copies.append(read()))  # type: ignore[misc]
            for read in (lambda: replica.snapshot()[0], lambda: dict(replica.items()))
        ]
        for reader in readers:
            reader.start()
        # One that does not wait for the batch has its copy by then.
        readers[0].join(0.2)
        go_on.set()
        for reader in readers:
            reader.join(10)
        assert [one.keys() for one in copies] == [{"left", "right"}] * 2


def test_a_replica_is_a_read_only_mapping(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A replica reads as a dict does, and refuses to be written to."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        producer.set_many({"a": 1, "b": [2]})
        replica.wait_for(producer.flush(10), 10)
        assert replica["a"] == 1
        assert replica.get("b") == [2]
        assert replica.get("c", "none") == "none"
        with pytest.raises(KeyError):
            replica["c"]
        assert "a" in replica
        assert "c" not in replica
        assert len(replica) == 2
        assert sorted(replica) == sorted(replica.keys()) == ["a", "b"]
        assert sorted(map(str, replica.values())) == ["1", "[2]"]
        with pytest.raises(TypeError):
            replica["a"] = 2  # type: ignore[index]


def test_two_namespaces_do_not_mix(server: Server, namespace: str, serving: NewServing) -> None:
    """Two namespaces on one server, one name the beginning of the other, share nothing."""
    other = namespace + ".1"
    serving(server.url, namespace, shards=2)
    serving(server.url, other, shards=2)
    with (
        Producer(server.url, namespace=namespace, node="n") as here,
        Producer(server.url, namespace=other, node="n") as there,
        Replica(server.url, namespace=namespace) as near,
        Replica(server.url, namespace=other) as far,
    ):
        for number in range(100):
            here.set(f"k{number}", "here")
            there.set(f"k{number + 50}", "there")
        near.wait_for(here.flush(10), 10)
        far.wait_for(there.flush(10), 10)
        assert dict(near.items()) == {f"k{number}": "here" for number in range(100)}
        assert dict(far.items()) == {f"k{number}": "there" for number in range(50, 150)}


@pytest.mark.parametrize("has_snapshot", [False, True])
def test_a_late_replica_equals_an_early_one(
    server: Server, namespace: str, serving: NewServing, *, has_snapshot: bool
) -> None:
    """A late replica holds what the others hold, from the log alone and from the full state."""
    serving(server.url, namespace)
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as early,
    ):
        early.wait_live(10)
        for number in range(300):
            producer.set(f"k{number % 50}", number)
            producer.increment("n", 0.1)
            producer.flush(10)
        producer.delete("k7")
        if has_snapshot:
            producer.flush(10)
            eventually(lambda: write_snapshots(server.url, namespace) != [None])
        producer.set("after", True)
        early.wait_for(producer.flush(10), 10)
        with Replica(server.url, namespace=namespace) as late:
            late.wait_live(10)
            assert late.snapshot() == early.snapshot()
            assert bool(late.stats().batches_applied) or has_snapshot


def test_a_replica_may_come_before_the_namespace(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A replica of a missing namespace waits, says so, and then becomes live."""
    with Replica(server.url, namespace=namespace) as replica:
        assert replica.status is Status.CONNECTING
        assert (len(replica), replica.get("key"), replica.positions) == (0, None, ())
        with pytest.raises(TimeoutError, match="connecting and the namespace does not exist yet"):
            replica.wait_live(0.05)
        changes = replica.changes()
        serving(server.url, namespace, shards=2)
        replica.wait_live(10)
        with Producer(server.url, namespace=namespace) as producer:
            producer.set("key", 1)
            replica.wait_for(producer.flush(10), 10)
        assert next(changes).key == "key"


def test_close_sends_what_is_buffered(server: Server, namespace: str, serving: NewServing) -> None:
    """Leaving the with-block right after writing loses nothing, however long the linger."""
    serving(server.url, namespace)
    with Producer(server.url, namespace=namespace, linger=60, local_delta_max_age=3000) as producer:
        for number in range(100):
            producer.set(f"k{number}", number)
    with Inspector(server.url, namespace=namespace) as inspector:
        (shard,) = inspector.status().shards
        assert shard.accepted == 100


def test_closing_ends_in_time_though_the_server_hangs(
    kind: str, own_server: Callable[..., Server], namespace: str, serving: NewServing
) -> None:
    """With a server that answers nothing, close() still ends, and says what was not accepted."""
    server = own_server(kind=kind)
    serving(server.url, namespace)
    producer = Producer(server.url, namespace=namespace)
    replica = Replica(server.url, namespace=namespace)
    inspector = Inspector(server.url, namespace=namespace)
    replica.wait_live(10)
    server.pause()
    try:
        started = time.monotonic()
        producer.set("key", 1)
        with pytest.raises(FlushTimeoutError, match="has not accepted 1 deltas"):
            producer.close(0.3)
        replica.close()
        inspector.close()
        assert time.monotonic() - started < 3
    finally:
        server.resume()


def test_a_subclass_may_have_a_set_of_its_own(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Every call of `set` goes through the one of the subclass."""

    class Loud(Producer):
        def set(self, key: str, value: Any) -> None:
            super().set(key.upper(), value)

    serving(server.url, namespace)
    with Loud(server.url, namespace=namespace) as producer:
        for number in range(3):
            producer.set("a", number)
        token = producer.flush(10)
    with Replica(server.url, namespace=namespace) as replica:
        replica.wait_for(token, 10)
        assert dict(replica) == {"A": 2}


@pytest.mark.parametrize("how", ["return", "raise"])
def test_a_program_that_forgets_to_close_loses_nothing(
    server: Server, namespace: str, serving: NewServing, how: str
) -> None:
    """A program that ends without close() still gets its last deltas accepted."""
    serving(server.url, namespace)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORGETFUL, server.url, namespace, how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        timeout=30,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (3 if how == "raise" else 0, "")
    with Replica(server.url, namespace=namespace) as replica:
        eventually(lambda: replica.get("n") == 1000, message=lambda: f"{dict(replica)}")


def test_many_threads_may_write_with_one_producer(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Increments of many threads through one producer all count; each thread's order is kept."""
    serving(server.url, namespace, shards=2)
    threads, times = 8, 500
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes("mine")

        def write(name: int) -> None:
            for number in range(times):
                producer.increment("all")
                producer.set(f"mine{name}", number)

        workers = [threading.Thread(target=write, args=(name,)) for name in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        replica.wait_for(producer.flush(10), 10)
        assert replica["all"] == threads * times
        changes.close()
        reported: dict[str, list[Any]] = {}
        for change in changes:
            reported.setdefault(change.key, []).append(change.value)
        assert reported == {f"mine{name}": list(range(times)) for name in range(threads)}


def test_set_many_is_one_batch_beyond_every_threshold(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """What one call sets in one shard is published in one packet, however many keys it has."""
    serving(server.url, namespace, max_count=10)
    keys = ShardKeys.of(namespace, 0, 1)
    with (
        Channel(server.url, keys) as channel,
        Producer(
            server.url,
            namespace=namespace,
            local_delta_max_count=10,
            chunk_bytes=1024,
            compress=0,
        ) as producer,
    ):
        producer.set("before", 1)
        producer.set_many({f"k{number}": "x" * 100 for number in range(500)})
        producer.set("after", 1)
        producer.flush(10)
        eventually(lambda: sum(batch.deltas for batch in channel.batches) == 502)
        assert max(len(chunk) for batch in channel.batches for chunk in batch.chunks) > 50_000


def test_a_conflating_producer_sends_less_and_means_the_same(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """What replica and full state end with is the same; offsets, counts and sums stay right."""
    serving(server.url, namespace, interval=0.1)
    with (
        Replica(server.url, namespace=namespace) as replica,
        Producer(server.url, namespace=namespace, conflate=True, linger=0.005) as producer,
    ):
        expected: dict[str, Any] = {"sum": 0, "half": 0.0}
        for n in range(20_000):
            producer.set(f"k{n % 7}", n)
            producer.increment("sum", 2)
            producer.increment("half", 0.5)
            if n % 100 == 0:
                producer.set_many({"pair/a": n, "pair/b": n})
                producer.delete("gone")
                producer.set("gone", n)
            expected |= {f"k{n % 7}": n, "sum": expected["sum"] + 2, "half": expected["half"] + 0.5}
        producer.delete("gone")
        expected |= {"pair/a": 19_900, "pair/b": 19_900}
        replica.wait_for(producer.flush(20), 20)
        assert dict(replica.items()) == expected
        stats = producer.stats()
        assert stats.buffered == stats.accepted + stats.conflated
        assert stats.conflated > 10_000
        assert replica.stats().deltas_applied == stats.accepted
        assert replica.verify().is_equal
