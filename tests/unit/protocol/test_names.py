"""Names in Redis, and which shard a key belongs to."""

from __future__ import annotations

import re
from zlib import crc32

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from redis.crc import key_slot

from broker.protocol.constants import MAX_SHARDS
from broker.protocol.names import (
    SLOTS,
    ShardKeys,
    config_key,
    shard_of,
    shard_tag,
    slot_of,
    slot_of_key,
)
from tests.unit.strategies import KEYS

NAMES = st.text("abcXYZ019_.-", min_size=1, max_size=64)


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM bit by bit, as the Redis Cluster specification describes it."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


@given(NAMES)
def test_slots_follow_the_specification_of_redis_cluster(tag: str) -> None:
    """The test computes the checksum independently, bit by bit."""
    assert slot_of(tag) == crc16(tag.encode()) % 16384


@pytest.mark.parametrize("shards", [1, 2, 3, 16, 100, 128])
def test_shards_spread_evenly_over_the_slots(shards: int) -> None:
    """Each has one of equal ranges to itself, so that any split of a Cluster shares them out."""
    slots = [slot_of(shard_tag("default", shard, shards)) for shard in range(shards)]
    width = SLOTS / shards
    assert [int(slot / width) for slot in slots] == list(range(shards))


@pytest.mark.parametrize(("shards", "nodes"), [(16, 2), (16, 3), (128, 3), (128, 7)])
def test_nodes_of_a_cluster_get_their_share(shards: int, nodes: int) -> None:
    """With the slots cut in contiguous parts, as clusters are, all nodes get nearly the same."""
    counts = [0] * nodes
    for shard in range(shards):
        counts[slot_of(shard_tag("prices", shard, shards)) * nodes // SLOTS] += 1
    assert max(counts) - min(counts) <= 1


@given(NAMES, st.integers(1, 64), st.data())
def test_a_tag_is_the_first_candidate_in_its_range(
    namespace: str, shards: int, data: st.DataObject
) -> None:
    """Any client can compute it, also for a name with dots."""
    shard = data.draw(st.integers(0, shards - 1))
    tag = shard_tag(namespace, shard, shards)
    found = re.fullmatch(re.escape(f"{namespace}:{shard}") + r"(?:\.([1-9][0-9]*))?", tag)
    assert found is not None
    earlier = range(int(found[1] or 0))
    for n in earlier:
        candidate = f"{namespace}:{shard}" + (f".{n}" if n else "")
        assert slot_of(candidate) * shards // SLOTS != shard


def test_one_shard_needs_no_search() -> None:
    """The tag of a namespace with one shard is plain."""
    assert shard_tag("default", 0, 1) == "default:0"


def counted(key: str) -> str:
    """What counts of a key, character by character: a tag in braces if there is one, else all."""
    opened = next((n for n, char in enumerate(key) if char == "{"), len(key))
    closed = next((n for n, char in enumerate(key) if char == "}" and n > opened), opened)
    return key[opened + 1 : closed] or key


@given(KEYS | st.text("{}ab/ü", max_size=12), st.integers(1, MAX_SHARDS))
@example("{}x", 4096)
@example("x{o7}", 4096)
@example("{o7", 4096)
def test_the_shard_of_a_key_is_its_crc(key: str, shards: int) -> None:
    """CRC-32 of UTF-8 modulo the shards, always one of them; of a tag in braces if there is one."""
    assert shard_of(key, shards) == crc32(counted(key).encode()) % shards


@given(st.text("{}ab/ü", min_size=1, max_size=12))
def test_a_tag_is_what_a_redis_cluster_takes_for_one(key: str) -> None:
    """The client library has its own rule, which the server shares: same text, same slot."""
    assert key_slot(key.encode()) == crc16(counted(key).encode()) % 16384
    assert slot_of_key(key.encode()) == key_slot(key.encode())


@given(st.text("ab{/ü", min_size=1), *[st.text("ab{}/ü")] * 2, st.integers(1, MAX_SHARDS))
def test_keys_with_the_same_tag_are_in_the_same_shard(
    tag: str, one: str, other: str, shards: int
) -> None:
    """Whatever is behind it; and it is the shard of the tag alone, unless that has a tag itself."""
    assert shard_of(f"{{{tag}}}{one}", shards) == shard_of(f"{{{tag}}}{other}", shards)
    assert shard_of(f"{{{tag}}}{one}", shards) == crc32(tag.encode()) % shards


def test_keys_spread_evenly_over_the_shards() -> None:
    """No shard of 16 gets a tenth more than its share of ordinary keys."""
    counts = [0] * 16
    for n in range(16_000):
        counts[shard_of(f"bus/{n}", 16)] += 1
    assert max(counts) < 1100
    assert min(counts) > 900


@given(NAMES, st.integers(1, 16), st.data())
def test_everything_of_a_shard_is_in_one_slot(
    namespace: str, shards: int, data: st.DataObject
) -> None:
    """One hash tag, so that a script may touch all of it; and no two names are the same."""
    shard = data.draw(st.integers(0, shards - 1))
    keys = ShardKeys.of(namespace, shard, shards)
    names = [getattr(keys, name) for name in keys.__slots__ if name != "prefix"]
    names += [keys.stage("n1"), keys.stage("n2")]
    tags = {re.fullmatch(r"sb:\{([^{}]+)\}:.+", name)[1] for name in names}  # type: ignore[index]
    assert tags == {shard_tag(namespace, shard, shards)}
    assert len(set(names)) == len(names)


def test_shards_and_namespaces_share_no_name() -> None:
    """Not even where one namespace is called almost like another one's shard."""
    spellings = [("a", 0, 2), ("a", 1, 2), ("a.1", 0, 2), ("a.1", 1, 2), ("a.0", 0, 1)]
    names = {ShardKeys.of(*spelling).meta for spelling in spellings}
    assert len(names) == len(spellings)
    assert config_key("a") not in names
