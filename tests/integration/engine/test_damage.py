"""The full state is damaged by others: nothing stops, and what is damaged is named and mended."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
import redis
from click.testing import CliRunner

from broker import DecodeError, Inspector, Producer, Replica
from broker.core.shard import ShardState
from broker.engine.self_check import check_and_repair
from broker.engine.verifier import Verifier
from broker.protocol.digest import DIGEST_BYTES
from broker.protocol.fields import pack_field
from broker.protocol.messages import TableKey
from broker.protocol.names import ShardKeys
from broker.protocol.sums import with_head, without_head
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.damages import flip_logged
from tests.integration.manual_flush import ManualFlush
from tests.integration.running_workers import NewServing
from tests.integration.watched_shard import WatchedShard
from workers.cli.repair import repair
from workers.cli.status import status
from workers.cli.verify import verify

GARBAGE = b"\0" * 13 + b"\xc1"


def keys_of(shard: WatchedShard) -> ShardKeys:
    """Return the names of the shard's keys in Redis."""
    return ShardKeys.of(shard.namespace, 0, 1)


def memory(replica: Replica) -> ShardState:
    """Return the replica's shard."""
    return replica._engine._follower.shards[0]


def self_check(replica: Replica) -> None:
    """Compare the replica with Redis once, as it does in the background."""
    engine = replica._engine
    perform = engine._follower._perform
    replica._thread.call(check_and_repair(engine._session, memory(replica), perform, lambda: False))


@pytest.mark.parametrize("damage", ["garbage", "one bit", "another key's"])
def test_an_unreadable_field_hides_no_other_key(
    watched_shard: WatchedShard, raw: redis.Redis, damage: str
) -> None:
    """A new replica is live without it, and says so; the inspector names the key."""
    watched_shard.producer.set_many({"a": 1, "b": 2, "n": 3})
    watched_shard.publish()
    watched_shard.write()
    state = keys_of(watched_shard).state
    whole: Any = raw.hget(state, "n")
    raw.hset(
        *(state, "n"),
        {
            "garbage": GARBAGE,
            "one bit": whole[:-1] + bytes((whole[-1] ^ 2,)),
            "another key's": raw.hget(state, "b"),
        }[damage],
    )
    raw.hset(keys_of(watched_shard).state, b"\xff", pack_field(b"\xff", 1, 1))
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == {"a": 1, "b": 2}
        assert replica.stats().keys_damaged == 2
        health = replica.health
        assert not health.ok
        assert "has 2 keys whose field cannot be read" in health.reasons[0]
        assert "'n'" in health.reasons[0]
        found = replica.verify()
        assert not found.is_equal
        assert found.differences == ()
        assert "key 'n' of shard 0" in found.damaged
    assert watched_shard.inspector.state() == {"a": 1, "b": 2}
    assert watched_shard.inspector.folded() == {"a": 1, "b": 2}
    with pytest.raises(DecodeError, match=r"key 'n' in .* cannot be read"):
        watched_shard.inspector.get("n")


@pytest.mark.parametrize("mend", ["set", "delete"])
def test_a_scheduler_goes_on_over_an_unreadable_field(
    watched_shard: WatchedShard, raw: redis.Redis, mend: str
) -> None:
    """Increments of the damaged value are refused alike by all who need it; a write mends it."""
    watched_shard.producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write(log_limit=1)
    url, namespace, state = watched_shard.url, watched_shard.namespace, keys_of(watched_shard).state
    with Replica(url, namespace=namespace) as right:
        right.wait_live(10)
        raw.hset(state, "n", GARBAGE)
        watched_shard.producer.increment("n", 4)
        watched_shard.producer.increment("m", 4)
        watched_shard.publish()
        assert watched_shard.write() is not None
        assert raw.hget(state, "n") == GARBAGE
        with Replica(url, namespace=namespace) as late:
            late.wait_live(10)
            watched_shard.producer.increment("n", 1)
            watched_shard.publish()
            eventually(lambda: right["n"] == 8)
            assert dict(late.items()) == {"m": 5}
            assert late.stats().deltas_refused == 1
            if mend == "set":
                watched_shard.producer.set("n", 10)
                watched_shard.producer.increment("n", 1)
            else:
                watched_shard.producer.delete("n")
            watched_shard.publish()
            content = {"m": 5, "n": 11} if mend == "set" else {"m": 5}
            for replica in (right, late):
                eventually(lambda replica=replica: dict(replica.items()) == content)  # type: ignore[misc]
            assert (late.health.ok, late.stats().keys_damaged) == (True, 0)
    watched_shard.write()
    assert watched_shard.inspector.accept() == ()
    watched_shard.producer.set("m", 6)
    watched_shard.publish()
    watched_shard.write()
    assert watched_shard.agree() == content | {"m": 6}
    assert watched_shard.inspector.altered() == {}


@pytest.mark.parametrize("last", ["set", "increment", "delete"])
def test_a_scheduler_writes_anew_what_the_log_proves(
    watched_shard: WatchedShard, raw: redis.Redis, last: str
) -> None:
    """Nobody has to touch the key; digest, replicas and full state agree afterwards."""
    producer, state = watched_shard.producer, keys_of(watched_shard).state
    producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write(log_limit=1)
    producer.set("n", 10)
    if last != "set":
        getattr(producer, last)("n")
    watched_shard.publish()
    watched_shard.write()
    right = watched_shard.inspector.state()
    assert right == {"m": 1} | {"set": {"n": 10}, "increment": {"n": 11}, "delete": {}}[last]
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        for key in ("n", "m"):
            raw.hset(state, key, GARBAGE)
        watched_shard.write()
        assert raw.hget(state, "n") != GARBAGE
        # Of this one the log knows nothing any more.
        assert raw.hget(state, "m") == GARBAGE
        assert watched_shard.inspector.state() == {key: right[key] for key in right if key != "m"}
        assert list(watched_shard.inspector.altered().values()) == [["m"]]
        raw.hset(state, "m", pack_field("m", 1, 1))
        watched_shard.write()
        assert watched_shard.agree() == right
        assert watched_shard.inspector.altered() == {}
        assert replica.verify().is_equal
        assert dict(replica.items()) == right


@pytest.mark.parametrize("place", [77, -6])
def test_a_log_with_a_batch_that_cannot_be_read_proves_nothing(
    watched_shard: WatchedShard, raw: redis.Redis, place: int
) -> None:
    """Or with a chunk: it may have changed the key, and others may have heard it whole."""
    watched_shard.producer.set("n", 3)
    watched_shard.publish()
    watched_shard.write()
    raw.hset(keys_of(watched_shard).state, "n", GARBAGE)
    flip_logged(keys_of(watched_shard).log, place)(raw)
    watched_shard.write()
    assert raw.hget(keys_of(watched_shard).state, "n") == GARBAGE


def test_a_scheduler_finds_what_nobody_needs(
    server: Server, namespace: str, raw: redis.Redis, serving: NewServing
) -> None:
    """It reads the full state bit by bit, also while nothing is written; what is no text too."""
    workers = serving(server.url, namespace, interval=0.1, log_limit=1)
    scheduler, keys = workers.scheduler, workers.session.keys[0]
    assert scheduler is not None
    with Producer(server.url, namespace=namespace) as producer:
        producer.set_many({f"k{n}": n for n in range(3000)})
        producer.flush(10)
        eventually(lambda: raw.hlen(keys.state) == 3000)
        eventually(lambda: raw.xlen(keys.log) == 0)
        raw.hset(keys.state, mapping={"k7": GARBAGE, b"\xff": GARBAGE})
        eventually(lambda: scheduler.stats().unreadable == 2, 20)
        eventually(lambda: "2 keys ('\\\\xff', 'k7')" in scheduler.reason, 20)
        raw.hdel(keys.state, b"\xff")
        producer.set("k7", 7)
        eventually(lambda: scheduler.stats().unreadable == 0, 20)


@pytest.mark.parametrize("mend", ["set", "delete", "accept"])
def test_a_scheduler_that_meets_an_unreadable_field_is_red(
    server: Server, namespace: str, raw: redis.Redis, serving: NewServing, mend: str
) -> None:
    """It counts such fields until they are mended; `status` names them, and its check fails."""
    workers = serving(server.url, namespace, interval=0.1, log_limit=1)
    scheduler = workers.scheduler
    assert scheduler is not None
    options = ["--url", server.url, "--namespace", namespace, "--check"]
    with (
        Producer(server.url, namespace=namespace) as producer,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        state = workers.session.keys[0].state
        producer.set_many({"n": 3, "m": 4})
        producer.flush(10)
        eventually(lambda: raw.hlen(state) == 2)
        eventually(lambda: raw.xlen(workers.session.keys[0].log) == 0)
        raw.hset(state, "n", GARBAGE)
        producer.increment("n")
        producer.increment("m")
        eventually(lambda: scheduler.stats().unreadable == 1)
        eventually(lambda: "1 key ('n') of the full state cannot be read" in scheduler.reason, 20)
        eventually(lambda: "red" in [one.health for one in inspector.status().workers], 20)
        found = CliRunner().invoke(status, options)
        assert found.exit_code == 1
        assert "lacks 1 keys" in found.stdout
        assert "degraded: the full state of shard 0 has 1 keys" in found.stdout
        assert "is red: shard 0: 1 key ('n') of the full state cannot be read" in found.stderr
        assert "a replica that joined is degraded" in found.stderr
        if mend == "accept":
            inspector.accept()
        elif mend == "set":
            producer.set("n", 1)
        else:
            producer.delete("n")
        eventually(lambda: scheduler.stats().unreadable == 0)
        eventually(lambda: not scheduler.reason, 20)


def test_accepting_removes_what_cannot_be_read(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """Afterwards new replicas are whole, and full state and digest agree."""
    watched_shard.producer.set_many({"a": 1, "n": 3})
    watched_shard.publish()
    watched_shard.write()
    raw.hset(keys_of(watched_shard).state, "n", GARBAGE)
    assert watched_shard.inspector.accept() == ("key 'n' of shard 0",)
    watched_shard.write()
    assert watched_shard.agree() == {"a": 1}
    assert watched_shard.inspector.altered() == {}
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert replica.health.ok
        assert replica.verify().is_equal


@pytest.mark.parametrize("is_late", [False, True])
def test_a_self_check_does_not_repair_by_an_unreadable_field(
    watched_shard: WatchedShard, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    """A replica that is right keeps its value where the full state lost it, at whatever moment."""
    if is_late:
        # The field is damaged after the look for what others changed.
        async def altered(_: Verifier) -> dict[int, list[str]]:
            return {}

        monkeypatch.setattr(Verifier, "altered", altered)
    watched_shard.producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        raw.hset(keys_of(watched_shard).state, "n", GARBAGE)
        watched_shard.producer.increment("n")
        watched_shard.publish()
        eventually(lambda: replica["n"] == 4)
        self_check(replica)
        assert dict(replica.items()) == {"n": 4, "m": 1}
        assert replica.stats().keys_repaired == 0
        assert replica.stats().full_state_altered == 1
        assert replica.verify().damaged == ("key 'n' of shard 0",)


def test_a_value_that_others_changed_does_not_spread(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """A scheduler that went on from it does not make right replicas wrong."""
    watched_shard.producer.set_many({"n": 3, "m": 1})
    watched_shard.publish()
    watched_shard.write()
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        raw.hset(keys_of(watched_shard).state, "n", pack_field("n", 1, 500))
        watched_shard.producer.increment("n")
        watched_shard.publish()
        watched_shard.write()
        assert watched_shard.inspector.state()["n"] == 501
        eventually(lambda: replica["n"] == 4)
        self_check(replica)
        assert dict(replica.items()) == {"n": 4, "m": 1}
        assert replica.stats().full_state_altered == 1


def test_a_damaged_digest_is_computed_again(watched_shard: WatchedShard, raw: redis.Redis) -> None:
    """A scheduler does not stop over it, and readers wait for the new one."""
    watched_shard.producer.set("a", 1)
    watched_shard.publish()
    watched_shard.write()
    raw.hset(keys_of(watched_shard).meta, "digest", b"short")
    assert watched_shard.write() is not None
    assert watched_shard.inspector.altered() == {}


def test_doubt_that_lasts_is_told(watched_shard: WatchedShard) -> None:
    """After three undecided self-checks in a row the health says so, until one decides."""
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        shard = memory(replica)
        for number in range(3):
            assert replica.health.ok, number
            shard.self_check_undecided("no digest")
        assert not replica.health.ok
        assert "3 self-checks of shard 0 in a row could not decide (no digest)" in str(
            replica.health.reasons
        )
        shard.self_checked(keys_differ=False, tables_differ=False)
        assert replica.health.ok


def test_repair_keeps_what_live_replicas_may_know(
    server: Server, namespace: str, raw: redis.Redis, serving: NewServing
) -> None:
    """Until a value is given, or its loss accepted: of one key, or of all."""
    workers = serving(server.url, namespace, interval=0.1, log_limit=1)
    keys = workers.session.keys[0]
    options = ["--url", server.url, "--namespace", namespace]
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace) as replica,
        Inspector(server.url, namespace=namespace) as inspector,
    ):
        names = ("m", "n", "o", "p")
        producer.set_many(dict.fromkeys(names, 3))
        replica.wait_for(producer.flush(10), 10)
        eventually(lambda: raw.hlen(keys.state) == 4 and raw.xlen(keys.log) == 0)
        raw.hset(keys.state, mapping=dict.fromkeys(names, GARBAGE))
        told = CliRunner().invoke(repair, options)
        assert told.exit_code == 0
        assert told.output.count("stays as it is: a scheduler writes it anew") == 4
        self_check(replica)
        assert dict(replica.items()) == dict.fromkeys(names, 3)
        assert set(raw.hvals(keys.state)) == {GARBAGE}
        value = str(replica["n"])
        told = CliRunner().invoke(repair, [*options, "n", "--value", value])
        assert told.output == "'n' is written anew\n"
        told = CliRunner().invoke(repair, [*options, "n", "--value", value])
        assert "can be read; write it as any other key" in str(told.exception)
        assert CliRunner().invoke(repair, [*options, "n", "m", "--value", value]).exit_code == 2
        epoch = raw.hget(keys.meta, "epoch")
        told = CliRunner().invoke(repair, [*options, "o"])
        assert "'o' is deleted, write it again" in told.output
        # Who still held it loads again.
        assert raw.hget(keys.meta, "epoch") != epoch
        assert raw.hget(keys.state, "m") == GARBAGE
        told = CliRunner().invoke(repair, [*options, "m", "--all"])
        assert (told.exit_code, "give no KEY with it" in told.output) == (2, True)
        assert raw.hget(keys.state, "m") == GARBAGE
        told = CliRunner().invoke(repair, [*options, "--all"])
        assert told.output.count(" is deleted, write it again") == 2
        eventually(lambda: dict(replica.items()) == {"n": 3})
        eventually(lambda: raw.hexists(keys.meta, "digest"))
        assert inspector.altered() == {}
        eventually(lambda: replica.health.ok)


# -- tables ---------------------------------------------------------------------------------------

ROWS = {n: float(n) for n in range(700)}


def fill(shard: WatchedShard) -> None:
    """Write a table of 700 rows, and a full state."""
    table = shard.producer.table("t", keys=int)
    table.set_many([*ROWS], [*ROWS.values()])
    shard.publish()
    shard.write()


def rows(replica: Replica) -> dict[int, float]:
    """Return the rows that a replica shows."""
    return dict(replica.table("t", keys=int))


@pytest.mark.parametrize("name", ["k:0", "v:0", "v:1", "k:1", "*"])
def test_a_lost_field_of_a_table_takes_no_rows_away(
    watched_shard: WatchedShard, raw: redis.Redis, name: str
) -> None:
    """A right replica keeps its rows; a new one is live, and says so where the table is read."""
    fill(watched_shard)
    watched_shard.producer.table("other", keys=int).set_many([1], [5.0])
    watched_shard.publish()
    tables = keys_of(watched_shard).tables
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        if name == "*":
            raw.delete(tables)
        else:
            raw.hdel(tables, f"t:u64-f64:{name}")
        assert not replica.verify().is_equal
        self_check(replica)
        assert rows(replica) == ROWS
        assert "in doubt: the tables in the full state of shard 0" in replica.health.reasons[0]
        if name != "*":
            (damage,) = watched_shard.inspector.damaged_tables()
            assert damage.startswith("table t (u64-f64) of shard 0: field ")
            place = ["--url", watched_shard.url, "--namespace", watched_shard.namespace]
            told = CliRunner().invoke(verify, place)
            assert told.exit_code == 1
            assert f"damaged: {damage}\n" in told.output
            told = CliRunner().invoke(verify, [*place, "--json"])
            report = json.loads(told.output)
            assert report["equal"] is False
            assert damage in report["damaged"]
            with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
                late.wait_live(10)
                with pytest.raises(DecodeError, match="table t"):
                    rows(late)
                assert dict(late.table("other", keys=int)) == {1: 5.0}
                assert "has 1 tables of which a part cannot be read" in late.health.reasons[0]
                assert (late.stats().tables_damaged, replica.stats().tables_damaged) == (1, 0)
                assert watched_shard.inspector.accept() == (damage,)
                # What others lack now is no reason to lose it.
                watched_shard.producer.set("a", 1)
                watched_shard.publish()
                watched_shard.write()
                self_check(late)
                assert rows(late) == {}
                assert late.health.ok
                with pytest.raises(DecodeError, match="lacks keys of table t"):
                    self_check(replica)
                assert rows(replica) == ROWS


def test_a_name_that_is_no_text_hides_no_table(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """A field that is none of ours: schedulers go on, and new replicas show every table."""
    fill(watched_shard)
    raw.hset(keys_of(watched_shard).tables, b"\xff\xfe", GARBAGE)
    watched_shard.producer.table("t", keys=int).set(1, 5.0)
    watched_shard.publish()
    assert watched_shard.write() is not None
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
        late.wait_live(10)
        assert rows(late) == ROWS | {1: 5.0}
        assert late.verify().is_equal


def test_an_altered_row_is_not_believed(watched_shard: WatchedShard, raw: redis.Redis) -> None:
    """Another value under a right check sum: replicas keep theirs, and `verify` names the row."""
    fill(watched_shard)
    tables, field = keys_of(watched_shard).tables, "t:u64-f64:v:0"
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        offset, content = without_head(field.encode(), raw.hget(tables, field) or b"")
        bad = bytearray(content)
        bad[100] ^= 4
        raw.hset(tables, field, with_head(field.encode(), offset, bytes(bad)))
        # The digest proves its own, whatever lies there.
        assert replica.verify().is_equal
        # Now that depends on what lies there: it is not known who is right.
        watched_shard.producer.table("t", keys=int).set_many([600], [-1.0])
        watched_shard.publish()
        for _ in range(3):
            self_check(replica)
        assert rows(replica) == ROWS | {600: -1.0}
        assert replica.stats().keys_repaired == 0
        found = replica.verify()
        assert not found.is_equal
        assert [one.key[:2] for one in found.differences] == ["t["]
        doubt = "table t (u64-f64) rows 0, 1, 2, 3, 4 and 507 more"
        assert found.damaged == (f"{doubt} of shard 0: not what schedulers wrote",)
        with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
            late.wait_live(10)
            assert f"are not what schedulers wrote ({doubt}" in late.health.reasons[0]
            assert not late.verify().is_equal


def test_a_wrong_row_of_a_replica_is_repaired_by_what_schedulers_wrote(
    watched_shard: WatchedShard,
) -> None:
    """Where the digest fits; and a table that was not touched is proved without reading it."""
    fill(watched_shard)
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        found = replica.verify()
        assert found.is_equal
        assert (found.keys, found.bytes_read) == (len(ROWS), 3 * DIGEST_BYTES)
        held = memory(replica).tables
        assert held is not None
        held.tables[TableKey("t", "u64-f64")].values[7] = 99.0
        found = replica.verify()
        assert [(one.key, one.replica, one.history) for one in found.differences] == [
            ("t[7]", (99.0, 0), (7.0, 0))
        ]
        self_check(replica)
        assert rows(replica) == ROWS
        assert replica.stats().keys_repaired == 1
        assert replica.health.ok


def test_a_digest_of_tables_that_is_gone_is_made_again(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """By the next full state, whether or not tables are written."""
    fill(watched_shard)
    meta = keys_of(watched_shard).meta
    right = raw.hget(meta, "tables_digest")
    for damage in (None, b"x"):
        raw.hdel(meta, "tables_digest")
        if damage is not None:
            raw.hset(meta, "tables_digest", damage)
        watched_shard.producer.increment("n")
        watched_shard.publish()
        watched_shard.write()
        assert raw.hget(meta, "tables_digest") == right


@pytest.mark.parametrize("place", [2, 11, 12, 100, -1])
def test_a_bit_of_a_table_that_flipped_is_not_applied(
    watched_shard: WatchedShard, raw: redis.Redis, place: int
) -> None:
    """In check sum, offset, flags or content: the field is named, and no new replica shows it."""
    fill(watched_shard)
    tables, field = keys_of(watched_shard).tables, "t:u64-f64:v:0"
    bad = bytearray(raw.hget(tables, field) or b"")
    bad[place] ^= 4
    raw.hset(tables, field, bytes(bad))
    (damage,) = watched_shard.inspector.damaged_tables()
    assert damage == "table t (u64-f64) of shard 0: field 'v:0' cannot be read"
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as late:
        late.wait_live(10)
        with pytest.raises(DecodeError, match="field 'v:0' cannot be read"):
            rows(late)
        assert late.tables() == ()


@pytest.mark.parametrize("how", ["deleted", "flipped", "garbage", "surplus"])
def test_a_scheduler_writes_again_what_others_damaged(
    server: Server, namespace: str, serving: NewServing, raw: redis.Redis, how: str
) -> None:
    """It compares the tables with its own, so new replicas are whole within a round."""
    serving(server.url, namespace, interval=0.1)
    tables = ShardKeys.of(namespace, 0, 1).tables
    with (
        Producer(server.url, namespace=namespace) as producer,
        Replica(server.url, namespace=namespace, self_check_interval=0.1) as replica,
    ):
        producer.table("t", keys=int).set_many([*ROWS], [*ROWS.values()])
        replica.wait_for(producer.flush(10), 10)
        field = "t:u64-f64:v:0"
        eventually(lambda: raw.hlen(tables) == 4)
        before = raw.hgetall(tables)
        if how == "deleted":
            raw.hdel(tables, field)
        elif how == "surplus":
            raw.hset(tables, "other:u64-f64:v:0", GARBAGE)
        else:
            bad = bytearray(before[field.encode()])
            bad[100] ^= 4
            raw.hset(tables, field, bytes(bad) if how == "flipped" else GARBAGE)
        eventually(lambda: raw.hgetall(tables) == before)
        with Replica(server.url, namespace=namespace) as late:
            late.wait_live(10)
            assert rows(late) == ROWS
        assert rows(replica) == ROWS
        assert replica.stats().keys_repaired == 0


def test_a_scheduler_without_the_table_goes_on_with_the_rest(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """The log does not fill: keys and other tables are written, the damaged one is left alone."""
    fill(watched_shard)
    tables = keys_of(watched_shard).tables
    raw.hset(tables, "t:u64-f64:k:0", GARBAGE)
    watched_shard.producer.table("t", keys=int).set_many([1], [5.0])
    watched_shard.producer.table("u", keys=int).set_many([1], [5.0])
    watched_shard.producer.set("a", 1)
    watched_shard.publish()
    written = watched_shard.write()
    assert written is not None
    assert watched_shard.inspector.state() == {"a": 1}
    assert raw.hget(tables, "t:u64-f64:k:0") == GARBAGE
    assert raw.hexists(tables, "u:u64-f64:k:0")
    assert len(watched_shard.inspector.accept()) == 1
    with Replica(watched_shard.url, namespace=watched_shard.namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.table("u", keys=int)) == {1: 5.0}


# -- chunks on their way --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 70_000])
@pytest.mark.parametrize("place", [0, 1, 4, 30, -8, -5, -1])
def test_a_flipped_bit_of_a_pending_chunk_is_refused_by_all(
    server: Server, namespace: str, raw: redis.Redis, keys: ShardKeys, *, size: int, place: int
) -> None:
    """In a head, key, value or check sum, bulk or not: skipped, counted, kept, and no other."""
    url = server.url
    with (
        ManualFlush(url, namespace) as flush,
        Producer(url, namespace=namespace, node="EWR", local_delta_max_age=0) as producer,
        Replica(url, namespace=namespace) as live,
    ):
        flush.beat()
        live.wait_live(10)
        for number in range(3):
            producer.set(f"k{number}", "x" * size)
            producer.flush(10)
        # Behind each chunk is its entry.
        chunk: Any = raw.lindex(keys.queue, 2)
        damaged = bytearray(chunk)
        damaged[place] ^= 4
        raw.lset(keys.queue, 2, bytes(damaged))
        assert flush.drain().chunks == 3
        expected = {"k0": "x" * size, "k2": "x" * size}
        eventually(lambda: live.stats().chunks_skipped == 1)
        with Replica(url, namespace=namespace) as from_log:
            from_log.wait_live(10)
            assert dict(live.items()) == dict(from_log.items()) == expected
        assert live.stats().deltas_skipped == 1
        flush.snapshot()
        with (
            Inspector(url, namespace=namespace) as inspector,
            Replica(url, namespace=namespace) as late,
        ):
            assert inspector.state() == inspector.folded() == expected
            assert inspector.status().shards[0].dead == 1
            late.wait_live(10)
            assert dict(late.items()) == expected
            assert live.verify().is_equal
        letters: Any = raw.lrange(keys.dead, 0, -1)
        ((offset, index, fault, node, data),) = map(msgpack.unpackb, letters)
        assert (offset, index, node, data) == (1, 1, "EWR", bytes(damaged)[:16384])
        assert "check sum" in fault
