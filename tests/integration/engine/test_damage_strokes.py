"""The damages of `scripts/faults --damage`: every key of the protocol, every type, every way."""

from __future__ import annotations

import random
from collections import Counter

import redis

from broker.protocol.names import ShardKeys
from tests.chaos.damage.strokes import KINDS, Past, keys_of, mutated, strike
from tests.integration.watched_shard import WatchedShard

NODES = ("n1",)


def test_every_key_is_damaged_in_every_way(watched_shard: WatchedShard, raw: redis.Redis) -> None:
    """Each key that the document names is replaced, deleted, put back, and altered in part."""
    watched_shard.producer.set_many({f"k{n}": n for n in range(20)})
    watched_shard.publish()
    watched_shard.write()
    keys = keys_of(watched_shard.namespace, 1, NODES)
    names = ShardKeys.of(watched_shard.namespace, 0, 1)
    present = {name for name in keys if raw.exists(name)}
    assert {names.meta, names.intake, names.state, names.workers, names.log} <= present
    past, chance = Past(), random.Random(1)
    past.note(raw, keys)
    whole, found = {key: raw.dump(key) for key in present}, Counter[tuple[str, str]]()
    for _ in range(1500):
        stroke = strike(raw, chance, past, keys)
        words = stroke.what.split(" ")
        found[stroke.key, " ".join(words[:1] + words[-1:])] += 1
        for key, dump in whole.items():
            raw.restore(key, 0, dump, replace=True)
    assert {key for key, _ in found} == set(keys)
    assert {f"replaced {kind}" for kind in KINDS} | {"deleted deleted"} <= {how for _, how in found}
    for key in (names.meta, names.state, names.intake):
        ways = {how for at, how in found if at == key}
        assert {"field flipped", "field length", "field longer", "field deleted"} <= ways
        assert "field made" in ways
    ways = {how for at, how in found if at == names.log}
    assert {"entry deleted", "an added", "field bytes"} <= ways


def test_a_mutation_is_another_value_most_of_the_time() -> None:
    """Cut, longer, flipped, random, a number, rotated, or one of before."""
    chance = random.Random(1)
    value, old = bytes(range(56)), [b"old"]
    made = [mutated(chance, value, old) for _ in range(500)]
    assert {how.split(" ")[0] for _, how in made} >= {"cut", "made", "a", "random", "rotated", "as"}
    assert sum(one != value for one, _ in made) > 450
    assert (b"old", "as it was before") in made
    for empty in (b"", b"x"):
        for _ in range(100):
            mutated(chance, empty, [])
