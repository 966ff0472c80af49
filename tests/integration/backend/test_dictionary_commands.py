"""dict_add.lua, and what append.lua does with its numbers."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from broker.backend.stored import dictionaries_in
from broker.protocol.names import ShardKeys
from tests.integration.lua_shard import Shard


def add(
    shard: Shard, number: Any, content: bytes = b"content", most: int = 8, fence: int = 1
) -> Any:
    """Store a dictionary as scheduler s1."""
    k: ShardKeys = shard.keys
    return shard.call("dict_add", [k.dicts, k.intake, k.lease], "s1", fence, number, content, most)


def numbers(shard: Shard) -> tuple[int, ...]:
    """What the intake hash lists, and the hash of dictionaries has."""
    found = dictionaries_in(shard.admin.hget(shard.keys.intake, ":dicts"))
    assert {b"%d" % one for one in found} == set(shard.admin.hkeys(shard.keys.dicts))
    return found


def test_only_the_holder_of_the_lease_stores(shard: Shard) -> None:
    """A scheduler that lost it, or never had it, writes nothing."""
    assert add(shard, 32768) == 0
    assert not shard.admin.exists(shard.keys.dicts, shard.keys.intake)
    shard.take("s1")
    assert add(shard, 32768, fence=2) == 0
    assert add(shard, 32768) == 1
    assert numbers(shard) == (32768,)
    assert shard.admin.hget(shard.keys.dicts, "32768") == b"content"


def test_the_lowest_are_dropped(shard: Shard) -> None:
    """Of more than so many, whatever the order in which they came."""
    shard.take("s1")
    for number in (32768, 40_000, 2147483647, 39_999, 9_999_999):
        assert add(shard, number, most=3) == 1
    assert numbers(shard) == (40_000, 9_999_999, 2147483647)
    assert add(shard, 9_999_999, b"again", most=3) == 1
    assert numbers(shard) == (40_000, 9_999_999, 2147483647)
    assert shard.admin.hget(shard.keys.dicts, "9999999") == b"again"


def test_what_somebody_else_put_there_is_removed(shard: Shard) -> None:
    """A key of another type, names that are no numbers, and a field of another form."""
    shard.take("s1")
    shard.admin.set(shard.keys.dicts, "x")
    assert add(shard, 32768) == 1
    # Another text of a number that is there, too.
    for name in ("x", "-1", "1e99", "5000000000", "032768", "0x8000", "32768.0", "1.5"):
        shard.admin.hset(shard.keys.dicts, name, "y")
    shard.admin.hset(shard.keys.intake, ":dicts", "garbage")
    assert add(shard, 32769) == 1
    assert numbers(shard) == (32768, 32769)


def test_without_memory_those_that_are_there_stay(shard: Shard) -> None:
    """Chunks need them; what cannot be stored is refused."""
    shard.take("s1")
    for number in (32768, 32769):
        add(shard, number)
    shard.admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            add(shard, 32770)
    finally:
        shard.admin.config_set("maxmemory", 0)
    assert numbers(shard) == (32768, 32769)


def test_a_chunk_needs_its_dictionary(shard: Shard) -> None:
    """Exactly one of those that are there; others, and a list that is damaged, refuse it."""
    shard.opened()
    shard.take("s1")
    assert shard.append(1, dictionary=32768) == [b"DICT"]
    for number in (32768, 40_000):
        add(shard, number)
    assert shard.append(1, dictionary=32769) == [b"DICT"]
    assert shard.append(1, dictionary=39_999) == [b"DICT"]
    assert shard.append(1, dictionary=40_001) == [b"DICT"]
    assert shard.append(1, dictionary=32768)[0] == b"OK"
    assert shard.append(2, dictionary=40_000)[0] == b"OK"
    for garbage in ("", "x", "abcde", struct.pack(">I", 7)):
        shard.admin.hset(shard.keys.intake, ":dicts", garbage)
        assert shard.append(3, dictionary=40_000) == [b"DICT"]
    assert shard.append(3)[0] == b"OK"
    shard.admin.hset(shard.keys.intake, ":dicts", struct.pack(">I", 40_000) + b"abc")
    assert shard.append(4, dictionary=40_000)[0] == b"OK"


def test_others_come_first(shard: Shard) -> None:
    """FENCED, MISSING and DUPLICATE are answered as without a dictionary; BUSY after it."""
    shard.opened()
    assert shard.append(1)[0] == b"OK"
    assert shard.append(1, dictionary=32768)[0] == b"DUPLICATE"
    assert shard.append(3, dictionary=32768)[0] == b"MISSING"
    assert shard.append(2, dictionary=32768, incarnation=4)[0] == b"FENCED"
    assert shard.append(2, dictionary=32768, limit=1)[0] == b"DICT"


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (None, ()),
        (b"", ()),
        (struct.pack(">2I", 5, 7), (5, 7)),
        (struct.pack(">2I", 7, 5), ()),
        (struct.pack(">2I", 5, 5), ()),
        (b"abcde", ()),
    ],
)
def test_a_list_of_another_form_is_none(field: bytes | None, found: tuple[int, ...]) -> None:
    """Readers of the field look at it alike."""
    assert dictionaries_in(field) == found
