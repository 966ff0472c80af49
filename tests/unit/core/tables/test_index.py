"""The index from key to slot behaves like a dict that numbers its keys."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from broker.core.tables.index import SPREAD, NameIndex, NumberIndex, shards_of_numbers

INVERSE = pow(SPREAD, -1, 1 << 64)


def in_one_place(count: int) -> list[int]:
    """Return keys whose products with the golden ratio are 1, 2, 3 ...: one place, unseeded."""
    return [(n * INVERSE) % (1 << 64) for n in range(1, count + 1)]


# Some are 0, the largest, close together, and all in one place of the index.
NUMBERS = st.one_of(
    st.integers(0, 40),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, (1 << 64) - 1, *in_one_place(40)]),
)
NAMES = st.text(min_size=1, max_size=2)


def numbered(index: NumberIndex, keys: list[int]) -> np.ndarray[Any, Any]:
    """Add number keys."""
    return index.add(np.array(keys, dtype=np.uint64))


@given(st.lists(st.lists(NUMBERS, max_size=30), max_size=5), st.lists(NUMBERS, max_size=30))
def test_numbers_have_the_slots_that_a_dict_gives(
    columns: list[list[int]], asked: list[int]
) -> None:
    """Slots are numbered by first occurrence, also where a column repeats a key."""
    index, model = NumberIndex(), dict[int, int]()
    for column in columns:
        expected = [model.setdefault(key, len(model)) for key in column]
        assert numbered(index, column).tolist() == expected
        assert index.keys.tolist() == list(model)
        assert len(index) == len(model)
    found = index.find_all(np.array(asked, dtype=np.uint64))
    assert found.tolist() == [model.get(key, -1) for key in asked]
    assert [index.find(key) for key in asked] == [model.get(key) for key in asked]


@given(st.lists(st.lists(NAMES, max_size=20), max_size=5), st.lists(NAMES, max_size=20))
def test_names_have_the_slots_that_a_dict_gives(columns: list[list[str]], asked: list[str]) -> None:
    """Text keys get slots by first occurrence too."""
    index, model = NameIndex(), dict[str, int]()
    for column in columns:
        expected = [model.setdefault(key, len(model)) for key in column]
        assert index.add(column).tolist() == expected
        assert index.keys == list(model)
    assert index.find_all(asked).tolist() == [model.get(key, -1) for key in asked]
    assert [index.find(key) for key in asked] == [model.get(key) for key in asked]


@pytest.mark.parametrize("step", [1, 8, 1 << 20, 1 << 40, INVERSE])
def test_numbers_keep_their_slots_while_the_index_grows(step: int) -> None:
    """Slots stay the same for any pattern of keys, colliding ones included."""
    index = NumberIndex()
    keys = [(n * step) % (1 << 64) for n in range(3000)]
    for first in range(0, 3000, 700):
        numbered(index, keys[first : first + 700])
    assert index.find_all(np.array(keys, dtype=np.uint64)).tolist() == [*range(3000)]
    assert index.find(((1 << 64) - 1) * step % (1 << 64)) is None


@pytest.mark.parametrize("key", [-1, 1 << 64, "x", None, [1]])
def test_what_is_no_key_is_not_found(key: object) -> None:
    """A look-up of something that is not a key finds nothing and raises nothing."""
    number, name = NumberIndex(), NameIndex()
    numbered(number, [0, 1])
    name.add(["0"])
    assert number.find(key) is None
    assert name.find(key) is None


@given(st.lists(NUMBERS, min_size=1), st.integers(1, 4096))
def test_number_keys_belong_to_the_shard_that_the_document_gives(
    keys: list[int], shards: int
) -> None:
    """The shard is the upper 32 bits of the product, modulo the number of shards."""
    told = [((key * 0x9E3779B97F4A7C15) % (1 << 64) >> 32) % shards for key in keys]
    assert shards_of_numbers(np.array(keys, dtype=np.uint64), shards).tolist() == told


@pytest.mark.parametrize("step", [1, 1 << 20, 1 << 40, INVERSE], ids=hex)
def test_no_choice_of_number_keys_makes_look_ups_slow(step: int) -> None:
    """Keys that all had one place under a known hash need few probes: the hash is seeded."""
    index, keys = NumberIndex(), np.array([n * step % (1 << 64) for n in range(20_000)], np.uint64)
    index.add(keys)
    rounds = index.rounds
    assert index.find_all(keys).tolist() == [*range(20_000)]
    assert index.rounds - rounds < 100


def test_an_index_of_few_keys_is_small() -> None:
    """A table of one row costs its readers less than a kilobyte for its index."""
    index = NumberIndex()
    numbered(index, [7])
    assert index.size_bytes < 1024
