"""The rules of the roles: which keys they fit, and which commands a server does not know."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.backend.acl import MAX_EXACT_SHARDS, ROLES, rules
from broker.protocol.names import ShardKeys, config_key

NAMES = st.text("ab0_.-", min_size=1, max_size=4)
FIELDS = ("meta", "intake", "queue", "ready", "log", "state", "lease", "workers", "dead")


def patterns(words: list[str]) -> set[str]:
    """Every key pattern of a rule, in selectors or not."""
    parts = [part for word in words for part in word.split()]
    return {part.strip("()").partition("~")[2] for part in parts if "~" in part}


def commands(words: list[str]) -> set[str]:
    """Every command of a rule."""
    return {part.strip("()+") for word in words for part in word.split() if "+" in part}


def fits(words: list[str], key: str) -> bool:
    """Whether any pattern of the rule fits a key; servers match as shells do."""
    return any(fnmatchcase(key, pattern) for pattern in patterns(words))


@given(NAMES, NAMES, st.sampled_from([1, 2, 3, 16, 40]), st.sampled_from(sorted(ROLES)))
def test_patterns_fit_one_namespace(mine: str, other: str, shards: int, role: str) -> None:
    """They cover all keys of the own namespace and none of another's, for any names and shards."""
    reported = rules([role], mine)
    counted = rules([role], mine, shards=shards)
    named = {name for name in (*FIELDS, "config", "stage") if name in ROLES[role].keys}
    for shard in range(shards):
        keys = ShardKeys.of(mine, shard, shards)
        for name in FIELDS:
            key = getattr(keys, name)
            assert fits(reported, key) == fits(counted, key) == (name in named)
        assert fits(reported, keys.stage(other)) == ("stage" in named)
        if other != mine:
            theirs = ShardKeys.of(other, shard, shards)
            for key in (*(getattr(theirs, name) for name in FIELDS), theirs.stage(mine)):
                assert not fits(reported, key)
                assert not fits(counted, key)
    assert fits(reported, config_key(mine))
    assert fits(reported, config_key(other)) == (mine == other)


@given(NAMES, NAMES)
def test_a_named_node_has_its_own_stage_only(node: str, other: str) -> None:
    """A producer's stage is its own by name."""
    keys = ShardKeys.of("fleet", 3, 8)
    for shards in (None, 8):
        reported = rules(["producer"], "fleet", node=node, shards=shards)
        assert fits(reported, keys.stage(node))
        assert fits(reported, keys.stage(other)) == (node == other)


@pytest.mark.parametrize("shards", [None, 2])
def test_channels_are_those_of_the_database(shards: int | None) -> None:
    """With its number; without one those of all; and 0 on a Cluster, which has no other."""

    def channels(**where: Any) -> set[str]:
        words = rules(["flusher", "subscriber"], "fleet", shards=shards, **where)
        return {word[1:] for word in words if word.startswith("&")}

    tags = ["fleet:*"] if shards is None else ["fleet:0", "fleet:1.2"]
    for where, number in (
        ({"database": 12}, "12"),
        ({"database": None}, "*"),
        ({"database": 12, "is_cluster": True}, "0"),
        ({"is_cluster": True}, "0"),
    ):
        expected = {f"sb:{{{tag}}}:{kind}:{number}" for tag in tags for kind in ("live", "bulk")}
        assert channels(**where) == expected


def test_few_shards_are_named_one_by_one() -> None:
    """Up to 16 shards the keys are exact; a server tries the patterns of a user one by one."""
    exact = rules(["producer", "flusher"], "fleet", node="n1", shards=MAX_EXACT_SHARDS)
    assert {pattern for pattern in patterns(exact) if "*" in pattern} == set()
    assert rules(["admin"], "fleet", shards=MAX_EXACT_SHARDS + 1) == rules(["admin"], "fleet")


def test_an_older_server_is_not_told_what_it_does_not_know() -> None:
    """Redis 7.0 refuses a rule with a command that it lacks; newer ones get it."""
    old, new = (
        commands(rules(["producer"], "fleet")),
        commands(rules(["producer"], "fleet", version=(7, 2))),
    )
    assert new - old == {"client|setinfo", "waitaof"}
    assert old < new


@pytest.mark.parametrize("role", ["flusher", "scheduler", "subscriber"])
def test_a_cluster_has_sharded_channels(role: str) -> None:
    """On a Cluster it is SPUBLISH and SSUBSCRIBE, and what finds the nodes."""
    plain = commands(rules([role], "fleet"))
    sharded = commands(rules([role], "fleet", is_cluster=True))
    assert {"cluster|slots", "asking"} <= sharded - plain
    assert plain - sharded == (plain & {"publish", "subscribe", "unsubscribe"})
    assert {f"s{word}" for word in plain - sharded} <= sharded


def test_roles_add_up() -> None:
    """A user of two roles may what either may; an admin what all may."""
    both = commands(rules(["flusher", "scheduler"], "fleet"))
    assert both == commands(rules(["flusher"], "fleet")) | commands(rules(["scheduler"], "fleet"))
    admin = commands(rules(["admin"], "fleet"))
    assert all(commands(rules([role], "fleet")) <= admin for role in ROLES)
