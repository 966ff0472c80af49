"""A replica that missed packets or got repeated or wrong ones ends with the right state."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis

from broker import Producer, Replica, Status
from broker.backend import queries
from broker.protocol.codec import encode_chunk, encode_packet
from broker.protocol.messages import Chunk, Heartbeat, Run
from broker.protocol.operations import OP_SET
from broker.stats import ReplicaStats
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.lossy_proxy import Proxy
from tests.integration.manual_flush import ManualFlush
from tests.integration.running_workers import NewServing

# Long: these tests are about packets, not about silence.
PATIENT = 60.0


class FollowedShard:
    """One producer, one replica, and a flush worker that the test runs step by step."""

    def __init__(self, producer: Producer, replica: Replica, flusher: ManualFlush) -> None:
        self.producer = producer
        self.replica = replica
        self.flusher = flusher
        self.written = 0

    def write(self, *, is_lost: bool = False) -> int:
        """Make one batch: a set, an increment and a delete; return its offset."""
        self.written += 1
        self.producer.set("key", self.written)
        self.producer.increment("n")
        self.producer.set(f"only{self.written}", self.written)
        self.producer.delete(f"only{self.written - 1}")
        self.producer.flush(10)
        return self.flusher.drain(is_lost=is_lost).offset

    @property
    def expected(self) -> dict[str, Any]:
        """The content that a replica must have."""
        return {"key": self.written, "n": self.written, f"only{self.written}": self.written}

    def is_right(self) -> bool:
        """Whether the replica is live and has the expected content."""
        return self.replica.status is Status.LIVE and dict(self.replica.items()) == self.expected

    def settle(self) -> ReplicaStats:
        """Wait until the replica is right, and return its counters."""
        eventually(
            self.is_right,
            message=lambda: (
                f"{dict(self.replica.items())} is {self.expected}: {self.replica.stats()}"
            ),
        )
        return self.replica.stats()


@pytest.fixture
def followed(server: Server, namespace: str) -> Iterator[FollowedShard]:
    """Give a live replica that holds three batches."""
    with (
        ManualFlush(server.url, namespace) as flusher,
        Producer(
            server.url, namespace=namespace, local_delta_max_count=4, local_delta_max_age=60
        ) as producer,
    ):
        flusher.beat()
        with Replica(server.url, namespace=namespace, staleness_bound=PATIENT) as replica:
            replica.wait_live(10)
            followed = FollowedShard(producer, replica, flusher)
            for _ in range(3):
                followed.write()
            followed.settle()
            yield followed


def test_a_lost_packet_is_noticed_at_the_next(followed: FollowedShard) -> None:
    """After a gap the replica reads the log from where it was, and applies each delta once."""
    changes = followed.replica.changes("key")
    followed.write(is_lost=True)
    followed.write(is_lost=True)
    followed.write()
    stats = followed.settle()
    assert (stats.gaps, stats.loads, stats.batches_applied) == (1, 1, 6)
    assert [next(changes).value for _ in range(3)] == [4, 5, 6]


def test_the_last_lost_packet_is_noticed_at_a_heartbeat(followed: FollowedShard) -> None:
    """The next heartbeat reveals a lost packet when no other packet follows."""
    offset = followed.write(is_lost=True)
    assert followed.replica.position.offset == offset - 1
    followed.flusher.beat()
    stats = followed.settle()
    assert (stats.gaps, stats.loads) == (1, 1)


def test_a_live_replica_stops_reading_the_log(followed: FollowedShard, server: Server) -> None:
    """Batches that fit are applied as they arrive, without a read of the log."""
    with redis.Redis.from_url(server.url) as client:

        def reads() -> int:
            found: Any = client.info("commandstats")
            return int(found.get("cmdstat_xrange", {"calls": 0})["calls"])

        followed.write()
        followed.settle()
        before = reads()
        for _ in range(20):
            followed.write()
            followed.settle()
        # The background check of a replica may read it once.
        assert reads() - before <= 1


def test_a_log_cut_beyond_a_replica_means_a_full_load(followed: FollowedShard) -> None:
    """Where the log is cut, the full state is loaded and readers get the difference."""
    changes = followed.replica.changes()
    for _ in range(5):
        followed.write(is_lost=True)
    followed.flusher.snapshot(is_lost=True)
    followed.flusher.cut_log(7)
    followed.write(is_lost=True)
    followed.flusher.beat()
    stats = followed.settle()
    assert (stats.loads, stats.cuts) == (2, 1)
    changes.close()
    reported = list(changes)
    assert {(one.operation, one.key, one.value) for one in reported} == {
        ("set", "key", 9),
        ("set", "n", 9),
        ("set", "only9", 9),
        ("delete", "only3", None),
    }
    assert all(one.resync for one in reported)
    assert {one.position for one in reported} == {followed.replica.position}


def test_a_repeated_packet_counts_once(followed: FollowedShard) -> None:
    """Repeated packets, old and new, change nothing."""
    offset = followed.write()
    for number in (offset, 1, offset, 2):
        followed.flusher.publish(followed.flusher.logged(number))
    eventually(lambda: followed.replica.stats().batches_duplicate == 4)
    followed.write()
    stats = followed.settle()
    assert (stats.gaps, stats.forks, stats.loads) == (0, 0, 1)
    assert stats.batches_applied == 5


def test_a_packet_older_than_a_replica_is_settled_with_the_server(
    followed: FollowedShard, server: Server, namespace: str
) -> None:
    """A late packet from before the loaded full state is no sign of another history."""
    followed.flusher.snapshot()
    with Replica(server.url, namespace=namespace, staleness_bound=PATIENT) as late:
        late.wait_live(10)
        before = late.stats()
        followed.flusher.publish(followed.flusher.logged(1))
        eventually(lambda: late.stats().catch_ups > before.catch_ups)
        followed.replica, followed.written = late, 3
        followed.write()
        stats = followed.settle()
        assert (stats.loads, stats.batches_applied) == (1, 1)


def test_packets_in_the_wrong_order_end_in_the_right_one(followed: FollowedShard) -> None:
    """Batches that arrive out of order are applied in the order of their offsets."""
    changes = followed.replica.changes("key")
    offsets = [followed.write(is_lost=True) for _ in range(4)]
    for offset in (offsets[2], offsets[0], offsets[3], offsets[1]):
        followed.flusher.publish(followed.flusher.logged(offset))
    stats = followed.settle()
    assert stats.batches_applied == 7
    assert [next(changes).value for _ in range(4)] == [4, 5, 6, 7]


def test_packets_that_cannot_be_read_are_counted(followed: FollowedShard) -> None:
    """Invalid packets are skipped and counted, and the replica stays right."""
    good = followed.flusher.logged(3)
    packet = followed.flusher.batch(3)
    garbage = [
        b"",
        b"\xc1",
        b"hello",
        b"\x80",
        good[:-1],
        good + b"\0",
        good.replace(b"\x9f\x03\x01", b"\x9f\x02\x01", 1),
        encode_packet(replace(packet, shard=1)),
        bytes([0x9F, 3, 9]) + good[3:],
        good[:20] + bytes((good[20] ^ 1,)) + good[21:],
    ]
    for data in garbage:
        followed.flusher.publish(data)
    eventually(lambda: followed.replica.stats().packets_unreadable == len(garbage))
    followed.write()
    stats = followed.settle()
    assert (stats.gaps, stats.forks, stats.loads) == (0, 0, 1)


@pytest.mark.parametrize("forged", ["previous id", "id", "epoch", "heartbeat ahead", "old id"])
def test_a_packet_of_another_history_is_found_out(followed: FollowedShard, forged: str) -> None:
    """A packet that contradicts the replica's history makes it read the server's state."""
    last = followed.flusher.batch(3)
    beat = Heartbeat(0, last.epoch, 3, last.id, last.previous_id, last.time_ms, last.covered)
    packet = {
        "previous id": replace(last, offset=4, id=b"otherone", previous_id=b"otherold"),
        "id": replace(last, id=b"otherone"),
        "epoch": replace(beat, epoch=b"otherone"),
        "heartbeat ahead": replace(beat, offset=9, id=b"otherone"),
        "old id": replace(followed.flusher.batch(2), id=b"otherone"),
    }[forged]
    before = followed.replica.stats()
    followed.flusher.publish(encode_packet(packet))
    eventually(
        lambda: (
            followed.replica.status is Status.LIVE
            and followed.replica.stats().catch_ups > before.catch_ups
        )
    )
    stats = followed.settle()
    assert stats.loads == (1 if forged == "heartbeat ahead" else 2)
    followed.write()
    followed.settle()


def test_a_believed_forgery_ends_at_the_next_packet(followed: FollowedShard) -> None:
    """A batch that was never logged is removed as soon as the logged history continues."""
    last = followed.flusher.batch(3)
    lie = encode_chunk(Chunk("liar", 1, 1, 0, [Run(OP_SET, ["key", "lie"], ["lie", 1])]))
    followed.flusher.publish(
        encode_packet(
            replace(last, offset=4, id=b"otherone", previous_id=last.id, deltas=2, chunks=[lie])
        )
    )
    eventually(lambda: "lie" in followed.replica)
    changes = followed.replica.changes()
    followed.write()
    stats = followed.settle()
    assert (stats.forks, stats.loads) == (1, 2)
    changes.close()
    reported = {(one.operation, one.key): one.resync for one in changes}
    assert reported[("delete", "lie")]


def test_a_killed_subscription_misses_nothing(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis
) -> None:
    """Each change is reported once and in order while subscriptions are killed."""
    serving(server.url, namespace, max_age=0.001)
    with (
        Producer(server.url, namespace=namespace, linger=0) as producer,
        Replica(server.url, namespace=namespace) as replica,
    ):
        replica.wait_live(10)
        changes = replica.changes()
        stop = threading.Event()

        def has_come_back(times: int) -> bool:
            return bool(replica.stats().reconnects >= times)

        def write() -> None:
            number = 0
            while not stop.is_set():
                producer.set("key", number)
                number += 1
                producer.flush(10)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for kills in range(1, 6):
                raw.client_kill_filter(_type="pubsub")
                eventually(partial(has_come_back, kills))
                replica.wait_live(10)
        finally:
            stop.set()
            writer.join()
        replica.wait_for(producer.flush(10), 10)
        changes.close()
        reported = list(changes)
        assert [change.value for change in reported] == list(range(producer.stats().buffered))
        assert not any(change.resync for change in reported)
        assert replica.stats().loads == 1


def test_a_load_that_breaks_again_and_again_ends_well(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Connections cut during a load delay a replica; it never shows a partial state."""
    serving(server.url, namespace, interval=0.1)
    keys = 20_000
    with Proxy(server) as proxy, Producer(server.url, namespace=namespace) as producer:
        producer.set_many({f"k{number}": number for number in range(keys)})
        producer.increment("n")
        with Replica(server.url, namespace=namespace) as other:
            # Published, not only accepted: so whatever is live from now on has all keys.
            other.wait_for(producer.flush(10), 10)
        with Replica(proxy.url, namespace=namespace) as replica:
            for _ in range(20):
                proxy.cut()
                producer.increment("n")
                producer.flush(10)
                if replica.status is Status.LIVE:
                    assert len(replica) == keys + 1
                assert len(replica) in (0, keys, keys + 1)
            replica.wait_for(producer.flush(10), 10)
            assert (len(replica), replica["n"]) == (keys + 1, 21)


def test_a_load_that_two_servers_answered_is_repeated(
    server: Server,
    namespace: str,
    serving: NewServing,
    raw: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the server changes during the read of the pages, they are read again."""
    serving(server.url, namespace)
    info: Any = raw.info("server")
    run = info["run_id"].encode()
    pages, loads = queries.state_pages, 0
    with Proxy(server) as proxy, Producer(server.url, namespace=namespace) as producer:
        producer.set("key", 1)
        token = producer.flush(10)

        async def moving(*arguments: Any) -> AsyncIterator[Any]:
            nonlocal loads
            loads += 1
            async for page in pages(*arguments):
                yield page
                proxy.rewrite = (run, run[::-1])

        monkeypatch.setattr(queries, "state_pages", moving)
        with Replica(proxy.url, namespace=namespace) as replica:
            replica.wait_for(token, 10)
            replica.wait_live(10)
            assert (replica["key"], replica.stats().loads, loads) == (1, 2, 2)


def test_a_deaf_connection_is_noticed_and_replaced(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """A connection that delivers nothing makes a replica stale; it then recovers."""
    bound = 0.5
    serving(server.url, namespace)
    with (
        Proxy(server) as proxy,
        Producer(server.url, namespace=namespace) as producer,
        Replica(proxy.url, namespace=namespace, staleness_bound=bound) as replica,
    ):
        replica.wait_live(10)
        proxy.drops_replies = True
        producer.set("key", 1)
        token = producer.flush(10)
        eventually(lambda: replica.status is not Status.LIVE, bound * 1.25 + 0.5)
        assert "key" not in replica
        # It may never speak again: another one is tried.
        eventually(lambda: replica.stats().reconnects >= 1)
        proxy.drops_replies = False
        replica.wait_for(token, 15)
        replica.wait_live(10)
        assert replica["key"] == 1


@pytest.mark.parametrize("after", [b"SETINFO", b"SUBSCRIBE"])
def test_a_connection_that_is_never_answered_is_given_up(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, after: bytes
) -> None:
    """A subscription on a half-open connection times out and is retried."""
    serving(server.url, namespace)
    with (
        Proxy(server) as proxy,
        Producer(server.url, namespace=namespace) as producer,
        Replica(proxy.url, namespace=namespace, staleness_bound=0.5) as replica,
    ):
        replica.wait_live(10)
        proxy.mute_after = after
        raw.client_kill_filter(_type="pubsub")
        eventually(lambda: proxy.muted >= 1)
        proxy.mute_after = None
        producer.set("key", 1)
        token = producer.flush(10)
        replica.wait_for(token, 15)
        replica.wait_live(10)
        assert replica["key"] == 1
