"""Whatever others write into Redis beside a running fleet is named and mended; nothing ends."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import redis

from broker import Producer, Replica
from broker.backend.stored import INTAKE_HEAD, intake_head
from broker.engine.repair import damages, repair
from broker.errors import BackendError, BrokerError, NamespaceMismatchError
from broker.protocol.features import NEW_FEATURES, text_of
from broker.protocol.names import ShardKeys
from broker.testing.server import Server
from broker.testing.waiting import eventually
from tests.damages import Case, cases
from tests.integration.running_workers import Serving
from tests.integration.watched_shard import WatchedShard

NODE = "n1"
SOON = 0.3
BY = 10.0
GROUPS = ("config", "lease", "log", "queue", "stage", "ready", "intake", "workers", "dead")


class Fleet:
    """Workers, a producer and a replica of a new namespace, and a client that damages it."""

    def __init__(self, server: Server, raw: redis.Redis, stack: ExitStack) -> None:
        self.url, self.raw = server.url, raw
        self.namespace = f"t-{uuid.uuid4().hex[:12]}"
        self.serving = Serving(
            server.url, self.namespace, heartbeat=0.1, interval=0.3, log_retention=0.5
        )
        stack.callback(self.serving.kill)
        self.producer = stack.enter_context(
            Producer(server.url, namespace=self.namespace, node=NODE)
        )
        self.replica = stack.enter_context(Replica(server.url, namespace=self.namespace))
        self.keys = ShardKeys.of(self.namespace, 0, 1)
        self.sum = self.written = 0

    def write(self, timeout: float = BY) -> None:
        """Write, and wait until the replica shows it."""
        self.producer.increment("n")
        self.sum += 1
        self.written += 1
        self.replica.wait_for(self.producer.flush(timeout), timeout)

    def flows(self) -> bool:
        """Whether what is written now arrives soon."""
        try:
            self.write(SOON)
        except (BrokerError, TimeoutError):
            return False
        return True

    def damages(self, *, is_whole: bool = False) -> list[str]:
        """What `status` would name."""
        return [
            str(one) for one in asyncio.run(damages(self.url, self.namespace, is_whole=is_whole))
        ]

    def mend(self) -> list[str]:
        """Run the command that the errors name."""
        return asyncio.run(repair(self.url, self.namespace, 1, lost=None))

    def suffer(self, case: Case) -> None:
        """Do a damage, and require all that is promised of it."""
        self.write()
        case.call(self.raw)
        named = self.damages()
        if not named:
            # As `status` looks where a replica cannot load.
            named = self.damages(is_whole=True)
        assert named or self.flows(), case.name
        assert all(len(one) < 500 for one in named), case.name
        done = self.mend() if named else []
        self.write()
        eventually(lambda: not self.damages(is_whole=True), BY, lambda: f"{case.name}: {done}")
        ended = [task for task in self.serving._tasks if task.done()]
        assert not ended, case.name
        with Replica(self.url, namespace=self.namespace) as joiner:
            joiner.wait_live(BY)
            joiner.wait_for(self.producer.flush(BY), BY)
            assert dict(joiner) == dict(self.replica), f"{case.name}: {done}"
        self.check_sum(case.name, done)

    def check_sum(self, name: str, done: list[str]) -> None:
        """Require that each increment counts once; but for what a damage deletes as a whole."""
        found = self.replica["n"]
        if name.startswith(("log ", "state ")):
            # What only the log or only the full state held is gone; what an earlier damage took out
            # of the full state comes back where the log still has it. Nothing counts twice.
            assert found <= self.written, f"{name}: {done}"
        elif name == "intake is a hash":
            # The record is deleted, as after a loss of data: its producer sends kept chunks again,
            # unless the heartbeat tells before that only records are gone.
            assert found >= self.sum, f"{name}: {done}"
            self.written += found - self.sum
        else:
            assert found == self.sum, f"{name}: {done}"
        self.sum = found


def all_cases() -> list[Case]:
    """Every damage, for a namespace that does not exist."""
    return list(cases("none", ShardKeys.of("none", 0, 1), NODE))


@pytest.fixture
def fleet(server: Server, raw: redis.Redis) -> Iterator[Fleet]:
    """Give a fleet that runs."""
    with ExitStack() as stack:
        yield Fleet(server, raw, stack)


def suffer_all(fleet: Fleet, names: list[str], log: pytest.LogCaptureFixture) -> None:
    """Do damages one after the other, each mended before the next."""
    log.set_level(logging.WARNING)
    of_name = {one.name: one for one in cases(fleet.namespace, fleet.keys, NODE)}
    for name in names:
        fleet.suffer(of_name[name])
    assert not [one for one in log.records if one.exc_info], "a traceback"


@pytest.mark.parametrize("group", GROUPS)
def test_damage_of_a_key_is_named_and_mended(
    fleet: Fleet, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any key but meta, gone or of another type, and any field of it in any wrong way."""
    names = [one.name for one in all_cases() if one.name.startswith(f"{group} ")]
    assert names
    # Some of each kind: the others differ only in their bytes.
    suffer_all(fleet, names[:6] + names[6::8], caplog)


def _rotated(step: int) -> list[str]:
    """Each field of meta in two ways, not the same two for all."""
    found: dict[str, list[str]] = {}
    for one in all_cases():
        place, *field = one.name.split(" ")
        if place == "meta" and len(field) > 1:
            found.setdefault(field[0], []).append(one.name)
    return [ways[(at * 3 + step * 5) % len(ways)] for at, ways in enumerate(found.values())]


@pytest.mark.parametrize("step", [0, 1])
def test_damage_of_a_field_of_meta_is_named_and_mended(
    fleet: Fleet, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each field, missing, text, empty, negative, no whole number, huge, binary, or one bit off."""
    suffer_all(fleet, _rotated(step), caplog)


@pytest.mark.parametrize("key", ["meta", "state", "tables"])
def test_a_hash_of_another_type_is_named_and_mended(
    fleet: Fleet, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A string, a list or a set in place of a hash, and a field that is none of ours."""
    suffer_all(fleet, [one.name for one in all_cases() if one.name.startswith(f"{key} is")], caplog)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_damage_is_named_and_mended(
    fleet: Fleet, part: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole matrix: every key and field of the protocol, in every wrong way."""
    suffer_all(fleet, [one.name for one in all_cases()][part::4], caplog)


def test_a_record_that_was_overwritten_counts_nothing_twice(fleet: Fleet) -> None:
    """A producer writes its own record again, and goes on with the next chunk."""
    for _ in range(5):
        fleet.write()
        fleet.raw.hset(fleet.keys.intake, NODE, "nonsense")
        fleet.write()
    assert fleet.replica["n"] == fleet.sum == 10


def test_what_is_left_of_a_log_is_numbered_anew(
    watched_shard: WatchedShard, raw: redis.Redis
) -> None:
    """A batch from the middle is lost; all others can be read, and nothing is damaged any more."""
    for number in range(5):
        watched_shard.producer.set(f"k{number}", number)
        watched_shard.publish()
    url, namespace = watched_shard.url, watched_shard.namespace
    log = ShardKeys.of(namespace, 0, 1).log
    places = [place for place, _ in raw.xrange(log)]
    assert len(places) == 5
    raw.xdel(log, places[2])
    done = asyncio.run(repair(url, namespace, None))
    assert any("4 of the 4 entries of the log are numbered anew" in line for line in done), done
    assert asyncio.run(damages(url, namespace, is_whole=True)) == []
    watched_shard.producer.set("k5", 5)
    watched_shard.publish()
    content = {"k0": 0, "k1": 1, "k3": 3, "k4": 4, "k5": 5}
    with Replica(url, namespace=namespace) as replica:
        replica.wait_live(10)
        assert dict(replica.items()) == content
    watched_shard.write()
    assert watched_shard.agree() == content


def counters(fleet: Fleet) -> dict[str, int]:
    """What was accepted and published, as Redis counts it."""
    head = intake_head(fleet.raw.hget(fleet.keys.intake, INTAKE_HEAD))  # type: ignore[arg-type]
    assert head is not None
    published: Any = fleet.raw.hget(fleet.keys.meta, "published")
    return {"accepted": head.accepted, "published": int(published)}


@pytest.mark.parametrize("field", ["accepted", "published"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_counter_that_began_again_goes_on_where_it_was(
    fleet: Fleet, field: str, value: int | None
) -> None:
    """What is accepted is published or pending: each counter follows from the other."""
    for _ in range(5):
        fleet.write()
    before = counters(fleet)
    if field == "accepted":
        head = intake_head(fleet.raw.hget(fleet.keys.intake, INTAKE_HEAD))  # type: ignore[arg-type]
        assert head is not None
        fleet.raw.hset(fleet.keys.intake, INTAKE_HEAD, replace(head, accepted=value or 0).packed())
    elif value is None:
        fleet.raw.hdel(fleet.keys.meta, field)
    else:
        fleet.raw.hset(fleet.keys.meta, field, value)
    fleet.producer.increment("n")
    fleet.sum += 1
    eventually(fleet.damages, BY)
    fleet.mend()
    fleet.write()
    assert not fleet.damages()
    assert counters(fleet) == {name: count + fleet.sum - 5 for name, count in before.items()}


@pytest.mark.parametrize("bad", [b"", b"x" * 56, bytes(55), b"\xff" * 56])
def test_a_head_that_cannot_be_read_is_made_anew(fleet: Fleet, bad: bytes) -> None:
    """By the next heartbeat, while producers wait: nobody has to mend it, nothing counts twice."""
    for _ in range(5):
        fleet.write()
    before = counters(fleet)
    for _ in range(3):
        fleet.raw.hset(fleet.keys.intake, INTAKE_HEAD, bad)
        fleet.write()
    assert counters(fleet) == {name: count + 3 for name, count in before.items()}
    assert fleet.replica["n"] == fleet.sum
    assert not fleet.damages()


def test_thresholds_that_were_overwritten_are_written_again(fleet: Fleet) -> None:
    """By the next heartbeat, from meta; until then the default holds."""
    fleet.write()
    before = fleet.raw.hget(fleet.keys.intake, ":limits")
    for bad in (b"", b"x" * 8, bytes(8), b"\xff" * 8):
        fleet.raw.hset(fleet.keys.intake, ":limits", bad)
        fleet.write()
        eventually(lambda: fleet.raw.hget(fleet.keys.intake, ":limits") == before, BY)


def test_a_namespace_that_cannot_be_read_needs_its_number(fleet: Fleet) -> None:
    """Nothing else in Redis tells the number of shards: the command asks for it, and takes it."""
    fleet.write()
    fleet.raw.hset(f"sb:{{{fleet.namespace}}}:config", "shards", "x")
    for face in (Producer, Replica):
        with (
            pytest.raises(BackendError, match=r"repair --shards N"),
            face(fleet.url, namespace=fleet.namespace) as one,
        ):
            getattr(one, "wait_live", one.close)()
    with pytest.raises(BrokerError, match="not a number from 1 to 4096"):
        asyncio.run(repair(fleet.url, fleet.namespace, None))
    asyncio.run(repair(fleet.url, fleet.namespace, 1))
    fleet.write()


def test_repair_refuses_a_namespace_of_another_form(fleet: Fleet) -> None:
    """What this release must not use it must not mend either, not even to make it anew."""
    # A replica that connects anew would find that it must not follow, for good.
    fleet.replica.close()
    config = f"sb:{{{fleet.namespace}}}:config"
    for field, value, named in (
        ("features", "conditions", "needs the feature word conditions"),
        ("protocol", "2", "has protocol version 2, this release has version 3"),
    ):
        before: Any = fleet.raw.hget(config, field)
        fleet.raw.hset(config, field, value)
        made: Any = fleet.raw.hgetall(config)
        for shards in (None, 1, 2):
            with pytest.raises(NamespaceMismatchError, match=named):
                asyncio.run(
                    repair(fleet.url, fleet.namespace, shards, deletes_content=bool(shards))
                )
        assert fleet.raw.hgetall(config) == made
        fleet.raw.hset(config, field, before)
    fleet.producer.increment("n")
    with Replica(fleet.url, namespace=fleet.namespace) as replica:
        replica.wait_live(BY)
        replica.wait_for(fleet.producer.flush(BY), BY)
        assert replica["n"] == 1


def test_words_that_cannot_be_read_are_mended_as_those_of_a_new_namespace(fleet: Fleet) -> None:
    """Nothing tells which they were; who can read a new namespace can read this one."""
    fleet.write()
    config = f"sb:{{{fleet.namespace}}}:config"
    before = fleet.raw.hget(config, "features")
    assert before == text_of(NEW_FEATURES).encode() != b""
    fleet.raw.hset(config, "features", "TTL")
    assert ["features is" in one for one in fleet.damages()] == [True]
    fleet.mend()
    assert fleet.raw.hget(config, "features") == before
    fleet.write()


@pytest.mark.parametrize("words", ["", "compress"])
def test_repair_of_a_namespace_keeps_its_words(fleet: Fleet, words: str) -> None:
    """Otherwise processes that run would take it for another namespace."""
    config = f"sb:{{{fleet.namespace}}}:config"
    fleet.raw.hset(config, "features", words)
    fleet.raw.hdel(config, "protocol")
    asyncio.run(repair(fleet.url, fleet.namespace, 1))
    assert fleet.raw.hmget(config, "protocol", "features") == [b"3", words.encode()]


def test_repair_of_what_is_whole_changes_nothing(fleet: Fleet) -> None:
    """Run at any time, it keeps what is known: also the digest."""
    fleet.write()
    eventually(lambda: fleet.raw.hexists(fleet.keys.meta, "digest"))
    before: Any = fleet.raw.hgetall(fleet.keys.meta)
    epoch = before[b"epoch"]
    assert asyncio.run(repair(fleet.url, fleet.namespace, None)) == []
    assert fleet.raw.hget(fleet.keys.meta, "epoch") == epoch
    assert fleet.raw.hexists(fleet.keys.meta, "digest")
    fleet.write()
    assert fleet.replica["n"] == fleet.sum
