"""Which key says where a command goes, and what is told where nobody accepts it."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from broker.backend.connections import as_ours
from broker.backend.routing import key_of
from broker.errors import ConnectError
from broker.protocol.names import ShardKeys, slot_of, slot_of_key


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("HGET", "k", "f"), "k"),
        (("EVALSHA", "sha", 2, "k", "other", "a"), "k"),
        (("EVALSHA", "sha", 0, "a"), None),
        (("BLPOP", "k", 5), "k"),
        (("INFO", "server"), None),
        (("SCRIPT LOAD", "text"), None),
        (("TIME",), None),
    ],
)
def test_a_command_goes_where_its_first_key_is(command: tuple[Any, ...], key: str | None) -> None:
    """Or anywhere, if it has none."""
    assert key_of(command) == key


def test_slots_are_those_of_the_cluster_specification() -> None:
    """Vectors from Redis' own documentation and `CLUSTER KEYSLOT`."""
    assert slot_of_key(b"123456789") == 0x31C3
    assert slot_of_key(b"{user1000}.following") == slot_of("user1000") == 3443
    assert slot_of_key(b"foo{}{bar}") == 8363
    assert slot_of_key(b"foo{{bar}}zap") == 4015
    assert slot_of_key(b"foo{bar}{zap}") == slot_of("bar") == 5061


def test_all_that_belongs_to_a_shard_has_one_slot() -> None:
    """Its channel too."""
    keys = ShardKeys.of("fleet", 3, 7)
    slots = {slot_of_key(name.encode()) for name in (keys.meta, keys.log, keys.stage("n{x}"))}
    assert slots == {slot_of_key(keys.channel.encode())}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write; start its"),
        ("READONLY You can't write against a read only replica.", "is a replica, which takes no"),
        # The URL of a Cluster is right, whatever its nodes answer.
        ("MOVED 1 127.0.0.1:7000", "cannot reach Redis"),
    ],
)
def test_a_reply_that_was_waited_for_is_named(reply: str, says: str) -> None:
    """What a server answered until a routed command gave up is in the error, and how to mend it."""
    gave_up = RedisConnectionError("127.0.0.1:6379 still answers")
    gave_up.__cause__ = ResponseError(reply)
    ours = as_ours(gave_up, "append", "Redis")
    assert type(ours) is ConnectError
    assert ours.is_temporary
    assert says in str(ours).replace(f" ({gave_up})", "")
