"""A replica verifies its content against the history, and repairs only what differs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import pytest
import redis

from broker import ABSENT, BackendError, ClosedError, Inspector, Producer, Replica
from broker.backend import queries
from broker.backend.session import Session
from broker.core.shard import ShardState
from broker.engine.self_check import check_and_repair
from broker.engine.state_copy import StateCopy
from broker.engine.verifier import SnapshotMovedError, Verifier
from broker.protocol.digest import DIGEST_BYTES, range_of
from broker.protocol.fields import pack_field
from broker.protocol.messages import Position
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.integration.running_workers import NewServing
from tests.integration.watched_shard import WatchedShard, half_written


def memory(replica: Replica, shard: int = 0) -> ShardState:
    """Return the replica's content of a shard, for the test to alter."""
    return replica._engine._follower.shards[shard]


@contextmanager
def writing(url: str, namespace: str) -> Iterator[Callable[[], int]]:
    """Write at full speed, every operation; gives a function that says how many rounds."""
    stop = threading.Event()
    rounds = 0

    def write() -> None:
        nonlocal rounds
        with Producer(url, namespace=namespace, node="busy") as producer:
            while not stop.is_set():
                rounds += 1
                producer.increment("n")
                producer.increment("half", 0.5)
                producer.set_many({f"many/{rounds % 50}/{n}": rounds for n in range(40)})
                producer.set(f"only/{rounds}", rounds)
                producer.delete(f"only/{rounds - 1}")
                if rounds % 20 == 0:
                    producer.flush(10)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: rounds
    finally:
        stop.set()
        thread.join()


def test_a_replica_is_proved_equal_while_writing_goes_on(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """Replica and history are equal at one position, on two shards, while both change."""
    serving(server.url, namespace, shards=2, interval=0.3, max_age=0.005, log_retention=0.5)
    with (
        writing(server.url, namespace) as rounds,
        Replica(server.url, namespace=namespace) as replica,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        replica.wait_live(10)
        eventually(lambda: len(replica) > 0)
        for _ in range(5):
            before = rounds()
            found = replica.verify()
            assert found.is_equal, found
            assert found.keys > 0
            assert not found.differences
            eventually(lambda before=before: rounds() > before + 20)  # type: ignore[misc]
        assert inspector.altered() == {}
        offsets = [shard.snapshot_offset for shard in inspector.status().shards]
        assert all(offsets), "no full state was written meanwhile"


@pytest.mark.parametrize("when", ["in the log", "in the full state", "half written"])
def test_what_differs_is_reported_and_only_that_is_read(
    watched_shard: WatchedShard, when: str
) -> None:
    """Wrong, missing and surplus keys are listed with both values, and nothing is changed."""
    keys = 20_000
    watched_shard.producer.set_many({f"k{n}": n for n in range(keys)})
    watched_shard.publish()

    if when != "in the log":
        watched_shard.write()
        watched_shard.producer.set_many({f"k{n}": -n for n in range(100)})
        watched_shard.publish()
    if when == "half written":
        watched_shard.run(half_written)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert replica.verify().is_equal
        held = memory(replica).values
        sign = 1 if when == "in the log" else -1
        # The same number in another form is another value.
        held["k7"], held["surplus"] = sign * 7.0, [1]
        del held["k20"]
        found = replica.verify()
        assert not found.is_equal
        assert [(one.key, one.replica, one.history) for one in found.differences] == [
            ("k20", ABSENT, sign * 20),
            ("k7", sign * 7.0, sign * 7),
            ("surplus", [1], ABSENT),
        ]
        assert {one.offset for one in found.differences} == {replica.position.offset}
        assert found.ranges == len({range_of(key) for key in ("k7", "k20", "surplus")})
        assert (type(held["k7"]), "k20" in held) == (float, False)
        if when == "in the full state":
            # 3 of 256 ranges, three digests and a short log: the state itself has over 300 kB.
            assert found.bytes_read < 5 * DIGEST_BYTES + 30_000


def test_a_replica_mends_itself_and_nothing_else(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The self-check repairs only what differs, reports it as changes, counts and logs it."""
    monkeypatch.setattr("broker.engine.replication.NOTICE_WAIT", 0.01)
    watched_shard.producer.set_many({f"k{n}": n for n in range(1000)})
    watched_shard.publish()
    watched_shard.write()
    with (
        Replica(
            watched_shard.url, namespace=watched_shard.namespace, self_check_interval=0.05
        ) as replica,
        Replica(
            watched_shard.url, namespace=watched_shard.namespace, self_check_interval=0
        ) as other,
    ):
        replica.wait_live(10)
        other.wait_live(10)
        eventually(lambda: replica.stats().self_checks >= 2)
        assert replica.stats().self_checks_failed == 0
        changes = replica.changes()
        for one in (replica, other):
            held = memory(one).values
            held["k7"], held["surplus"] = 7.0, 1
            del held["k20"]
        eventually(lambda: replica.stats().keys_repaired == 3)
        reported = sorted((next(changes) for _ in range(3)), key=lambda change: change.key)
        assert [(one.key, one.operation, one.value, one.resync) for one in reported] == [
            ("k20", "set", 20, True),
            ("k7", "set", 7, True),
            ("surplus", "delete", None, True),
        ]
        assert dict(replica.items()) == {f"k{n}": n for n in range(1000)}
        assert replica.verify().is_equal
        stats = replica.stats()
        assert (stats.self_checks_failed, stats.loads, stats.status) == (1, 1, "live")
        assert "self_check_repaired shard=0" in caplog.text
        assert "k20" in caplog.text
        assert (type(replica["k7"]), type(other["k7"])) == (int, float), "0 is never"


@pytest.mark.slow
def test_a_replica_mends_itself_while_it_is_being_written_to(
    server: Server, namespace: str, serving: NewServing
) -> None:
    """The repair matches the replica's position at that time, so sums stay exact."""
    # A check has so long before the next full state is beyond its position.
    serving(server.url, namespace, interval=1.0, max_age=0.005)
    with Producer(server.url, namespace=namespace) as producer:
        producer.set_many({f"calm/{n}": n for n in range(500)})
        producer.flush(10)
    with Replica(server.url, namespace=namespace, self_check_interval=0.1) as replica:
        with writing(server.url, namespace) as rounds:
            eventually(lambda: replica.get("n", 0) > 50)
            for number in range(3):
                replica._thread.call(spoil(memory(replica), number))
                eventually(
                    lambda number=number: (  # type: ignore[misc]
                        replica.stats().self_checks_failed > number
                        and replica.get(f"calm/{number}") == number
                    ),
                    30,
                )
        total = rounds()
        eventually(lambda: replica.get("n") == total, 20)
        assert replica["half"] == total / 2
        assert replica.verify().is_equal
        assert replica.stats().keys_repaired >= 6


async def spoil(shard: ShardState, number: int) -> None:
    """Alter a key that is not written any longer, and a sum that is."""
    shard.values[f"calm/{number}"] = "spoilt"
    shard.values["n"] += 1000


@pytest.mark.parametrize("how", ["set", "deleted", "added"])
def test_a_full_state_that_another_hand_altered_is_found(
    watched_shard: WatchedShard,
    raw: redis.Redis,
    keys: ShardKeys,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """New replicas, existing replicas and the hash's own digest detect the change."""
    watched_shard.producer.set_many({f"k{n}": n for n in range(300)})
    watched_shard.publish()
    watched_shard.write()
    at = range_of("k7") if how != "added" else range_of("other")
    neighbours = sorted(f"k{n}" for n in range(300) if range_of(f"k{n}") == at)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as before:
        before.wait_live(10)
        assert watched_shard.inspector.altered() == {}
        if how == "set":
            raw.hset(keys.state, "k7", pack_field("k7", 1, 99))
        elif how == "deleted":
            raw.hdel(keys.state, "k7")
            neighbours.remove("k7")
        else:
            raw.hset(keys.state, "other", pack_field("other", 1, 99))
            neighbours = sorted([*neighbours, "other"])
        assert watched_shard.inspector.altered() == {(0, at): neighbours}
        assert before.verify().is_equal, "it loaded what the schedulers wrote"
        with Replica(watched_shard.url, namespace=watched_shard.namespace) as after:
            after.wait_live(10)
            found = after.verify()
            assert (found.ranges, found.differences) == (1, ())
            after._thread.call(
                check_and_repair(
                    after._engine._session, memory(after), lambda *_: None, lambda: False
                )
            )
            assert after.stats().full_state_altered == 1
            assert after.stats().keys_repaired == 0
            assert f"full_state_altered shard=0 ranges={at:02x}" in caplog.text
    watched_shard.producer.set_many({"k7": 7})
    watched_shard.producer.delete("other")
    watched_shard.publish()
    watched_shard.write()
    assert watched_shard.inspector.altered() != {}, "the digest still counts what was taken away"
    watched_shard.inspector.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.engine.self_check.PAUSE_MAX", 0.001)
        with pytest.raises(BackendError, match="has no digest; the scheduler"):
            watched_shard.inspector.altered()
    watched_shard.write()
    assert watched_shard.inspector.altered() == {}
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert replica.verify().is_equal
        assert replica["k7"] == 7


def test_nothing_is_proved_about_a_replica_that_is_not_live(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says why the replica is not live, or that it is closed."""
    monkeypatch.setattr("broker.engine.self_check.PAUSE_MAX", 0.001)
    replica = Replica(watched_shard.url, namespace=watched_shard.namespace)
    replica.wait_live(10)
    replica._thread.call(lose(memory(replica)))
    with pytest.raises(BackendError, match="shard 0 is stale"):
        replica.verify()
    replica.close()
    with pytest.raises(ClosedError):
        replica.verify()


async def lose(shard: ShardState) -> None:
    """Simulate a lost connection that never returns."""
    shard.disconnected()
    shard.packet = lambda *_: None  # type: ignore[assignment, method-assign]


def test_an_empty_state_without_a_scheduler_is_proved_too(watched_shard: WatchedShard) -> None:
    """Without a digest the proof starts from an empty state and the log."""
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert replica.verify().is_equal
        watched_shard.producer.set_many({"a": 1, "b": [1.5, None]})
        watched_shard.producer.increment("a", 2)
        replica.wait_for(watched_shard.producer.flush(10), 10)
        assert replica.verify().is_equal
        memory(replica).values["a"] = 4
        (one,) = replica.verify().differences
        assert (one.key, one.replica, one.history) == ("a", 4, 3)
        assert watched_shard.inspector.altered() == {}


def test_a_full_state_that_is_written_during_a_proof_spoils_it(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full state that is committed during a proof makes the proof start again."""
    watched_shard.producer.set_many({f"k{n}": n for n in range(100)})
    watched_shard.publish()
    read, written = queries.state_fields, threading.Event()

    async def late(*arguments: Any) -> Any:
        if not written.is_set():
            written.set()
            assert await asyncio.to_thread(watched_shard.write) is not None
        return await read(*arguments)

    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        monkeypatch.setattr(queries, "state_fields", late)
        found = replica.verify()
        assert written.is_set()
        assert (found.is_equal, found.ranges) == (True, 0)


def test_nothing_is_proved_of_a_position_that_the_full_state_has_left(
    watched_shard: WatchedShard,
) -> None:
    """A partially written full state cannot prove an older position."""

    async def scenario(session: Session) -> None:
        verifier = Verifier(session, 0)
        for number, held in enumerate(map(StateCopy, ({}, {"k": 1}, {"k": 2}))):
            head = (await queries.log_page(session.client, session.keys[0], 0, 0)).head
            assert head is not None
            position = head.position
            assert position.offset == number
            assert await verifier.differing(held, position) == set()
            await asyncio.to_thread(watched_shard.producer.set, "k", number + 1)
            await asyncio.to_thread(watched_shard.publish)
            if number == 1:
                await half_written(session)
            elif number == 2:
                assert await asyncio.to_thread(eventually, watched_shard.write)
            if number:
                with pytest.raises(SnapshotMovedError, match=f"beyond offset {number} already"):
                    await verifier.differing(held, position)
                with pytest.raises(SnapshotMovedError, match=f"beyond offset {number} already"):
                    await verifier.content({range_of("k")}, lambda at=position: at)  # type: ignore[misc]

    watched_shard.run(scenario)


def test_a_history_that_was_rewritten_is_not_compared_with(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position that was rolled back is neither equal nor different."""
    monkeypatch.setattr("broker.engine.self_check.PAUSE_MAX", 0.001)
    watched_shard.producer.set("a", 1)
    watched_shard.publish()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        entries: Any = raw.xrange(keys.log)
        raw.delete(keys.log)
        with pytest.raises(BackendError, match="has nothing after offset 0"):
            replica.verify()
        raw.xadd(keys.log, entries[0][1], id="1-0")
        assert replica.verify().is_equal
        raw.hset(keys.meta, "epoch", b"another!")
        with pytest.raises(BackendError, match=r"another epoch|is loading|is catching_up"):
            replica.verify()


def test_a_deletion_beyond_a_position_is_not_taken_for_its_content(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read for an older position fails once a later page deleted a key."""
    monkeypatch.setattr("broker.engine.self_check.PAUSE_MAX", 0.001)
    watched_shard.producer.set_many({"kept": 1, "gone": 1})
    watched_shard.publish()
    watched_shard.write()
    watched_shard.producer.delete("gone")
    watched_shard.publish()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        after = replica.position
    watched_shard.run(half_written)
    assert watched_shard.inspector.folded_shard(0, after) == ({"kept": 1}, after)

    async def scenario(session: Session) -> None:
        head = (await queries.log_page(session.client, session.keys[0], 0, 0)).head
        assert head is not None
        before = head.snapshot
        assert (before.offset, head.fold_to) == (1, 2)
        # A replica that goes back while its repair reads.
        goals = iter([after, after, after])
        with pytest.raises(SnapshotMovedError, match="is beyond offset 1"):
            await Verifier(session, 0).content(set(range(256)), lambda: next(goals, before))
        right, at = await Verifier(session, 0).content(set(range(256)), lambda: after)
        assert (right, at) == ({"kept": 1}, after)
        with pytest.raises(BackendError, match="did not fit together"):
            await asyncio.to_thread(watched_shard.inspector.folded_shard, 0, before)

    watched_shard.run(scenario)


def test_tables_of_another_server_than_the_position_are_not_believed(
    watched_shard: WatchedShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server is replaced between position and fields, the read is refused."""
    watched_shard.producer.table("t").set("a", 1.0)
    watched_shard.publish()
    watched_shard.write()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        here = replica.position

    async def scenario(session: Session) -> None:
        verifier = Verifier(session, 0)
        assert len((await verifier.tables(lambda: here)).tables) == 1
        runs = ["the one"]
        marks = verifier._marks

        async def run(*_: object) -> str:
            return runs[-1]

        async def replaced(position: Position) -> queries.StateMarks:
            found = await marks(position)
            runs.append("another")
            return found

        monkeypatch.setattr(queries, "server_identity", run)
        monkeypatch.setattr(verifier, "_marks", replaced)
        with pytest.raises(BackendError, match="replaced or restarted"):
            await verifier.tables(lambda: here)

    watched_shard.run(scenario)


def test_a_damaged_full_state_does_not_end_the_self_check(
    watched_shard: WatchedShard, raw: redis.Redis, keys: ShardKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is right is repaired by the rest of it."""
    monkeypatch.setattr("broker.engine.replication.NOTICE_WAIT", 0.01)
    watched_shard.producer.set_many({"a": 1, "b": 1})
    watched_shard.publish()
    watched_shard.write()
    with Replica(
        watched_shard.url, namespace=watched_shard.namespace, self_check_interval=0.05
    ) as replica:
        replica.wait_live(10)
        wanted = range_of("a")
        assert range_of("b") != wanted
        damaged = next(key for n in range(99_999) if name_range(key := b"\xff%d" % n) == wanted)
        raw.hset(keys.state, damaged, pack_field(damaged, 1, 1))
        memory(replica).values["a"] = 2
        memory(replica).values["b"] = 2
        eventually(lambda: replica["b"] == 1)
        eventually(lambda: replica.stats().full_state_altered >= 2)
        # Its key range is not what a scheduler wrote, so it is not believed.
        assert replica["a"] == 2
        assert replica.stats().self_checks_undecided == 0
        raw.hdel(keys.state, damaged)
        eventually(lambda: replica["a"] == 1)


def name_range(key: bytes) -> int:
    """Return the key range of a key that is not text."""
    return crc32(key) >> 24
