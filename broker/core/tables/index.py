"""Key to slot, a column at a time. Slots are 0, 1, 2 ... in the order in which keys are added."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Slots: TypeAlias = "npt.NDArray[np.int64]"
U64s: TypeAlias = "npt.NDArray[np.uint64]"

# An odd number near 2^64 over the golden ratio (Knuth, TAOCP 3, 6.4): products spread over the top
# bits, also of keys that count up.
SPREAD = 0x9E3779B97F4A7C15

_MIN_KEYS = 8
_PLACES_PER_KEY = 4

# Random in each process: whoever chooses keys must not be able to choose keys of one place, which
# would make every look-up as slow as a search. Slots do not depend on it.
_SEED = np.uint64(secrets.randbits(64))
_FACTOR = np.uint64(secrets.randbits(64) | 1)
_FOLD = np.uint64(32)


class NameIndex:
    """Slots of text keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self._slots: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, key: Any) -> int | None:
        """Return a key's slot; None if it has none."""
        return self._slots.get(key) if isinstance(key, str) else None

    def find_all(self, keys: Iterable[str]) -> Slots:
        """Return the slot of each key, -1 where it has none."""
        get = self._slots.get
        return np.array([get(key, -1) for key in keys], dtype=np.int64)

    def add(self, keys: Sequence[str]) -> Slots:
        """Return the slot of each key; those that have none get the next ones."""
        slots, known = self._slots, self.keys
        found = []
        for key in keys:
            slot = slots.get(key)
            if slot is None:
                slot = slots[key] = len(known)
                known.append(key)
            found.append(slot)
        return np.array(found, dtype=np.int64)

    def packed(self, first: int, end: int) -> list[str]:
        """Return the keys of some slots as they are packed."""
        return self.keys[first:end]


class _Places:
    """A table of open addressing, probed for a whole column at once.

    While one thread puts keys, others may look for keys that are there already.

    Attributes:
        rounds: how many times a column was probed so far.
    """

    def __init__(self, count: int) -> None:
        self._at = np.zeros(count, dtype=np.uint64)
        self.slots = np.full(count, -1, dtype=np.int64)
        self._mask = np.int64(count - 1)
        self._shift = np.uint64(64 - (count.bit_length() - 1))
        self.rounds = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of its arrays."""
        return self._at.nbytes + self.slots.nbytes

    def find(self, keys: U64s) -> Slots:
        """Return the slot of each key, -1 where it has none."""
        self.rounds += 1
        place = self._first_places(keys)
        slots = self.slots[place]
        # Only keys that found another key probe on; an empty place ends the search with its -1.
        rest = np.flatnonzero((self._at[place] != keys) & (slots >= 0))
        while rest.size:
            self.rounds += 1
            here = (place[rest] + 1) & self._mask
            place[rest] = here
            found = self.slots[here]
            slots[rest] = found
            rest = rest[(self._at[here] != keys[rest]) & (found >= 0)]
        return slots

    def put(self, keys: U64s, slots: Slots) -> None:
        """Put keys that are not there yet into the first empty places from their own on."""
        place = self._first_places(keys)
        while slots.size:
            self.rounds += 1
            # If several keys probe one empty place, one gets it; the others probe on.
            empty = np.flatnonzero(self.slots[place] < 0)
            won = empty[np.unique(place[empty], return_index=True)[1]]
            # The slot last: a thread that finds the slot also finds its key.
            self._at[place[won]] = keys[won]
            self.slots[place[won]] = slots[won]
            lost = np.ones(slots.size, dtype=np.bool_)
            lost[won] = False
            keys, slots, place = keys[lost], slots[lost], (place[lost] + 1) & self._mask

    def _first_places(self, keys: U64s) -> Slots:
        mixed = (keys ^ _SEED) * _FACTOR
        # The upper half acts on the lower one, and the second product on the upper half again: so
        # every bit of a key decides about the place.
        mixed ^= mixed >> _FOLD
        return ((mixed * np.uint64(SPREAD)) >> self._shift).astype(np.int64)


class NumberIndex:
    """Slots of u64 keys: open addressing, probed for a whole column at once.

    A quarter of the places is used at most, so that few keys need a second probe: for a thousand
    keys about 30 ns each, where a dict of Python's numbers takes 100.
    """

    def __init__(self) -> None:
        self._count = 0
        self._keys = np.zeros(_MIN_KEYS, dtype=np.uint64)
        self._places = _Places(_MIN_KEYS * _PLACES_PER_KEY)

    def __len__(self) -> int:
        return self._count

    @property
    def rounds(self) -> int:
        """How many times a column was probed since the index grew last: what look-ups cost."""
        return self._places.rounds

    @property
    def size_bytes(self) -> int:
        """Bytes of its arrays."""
        return self._keys.nbytes + self._places.size_bytes

    @property
    def keys(self) -> U64s:
        """The key of each slot."""
        return self._keys[: self._count]

    def find(self, key: Any) -> int | None:
        """Return a key's slot; None if it has none."""
        if not isinstance(key, (int, np.integer)) or not 0 <= key < 1 << 64:
            return None
        slot = int(self.find_all(np.array([key], dtype=np.uint64))[0])
        return slot if slot >= 0 else None

    def find_all(self, keys: U64s) -> Slots:
        """Return the slot of each key, -1 where it has none."""
        return self._places.find(keys)

    def add(self, keys: U64s) -> Slots:
        """Return the slot of each key; those that have none get the next ones, in order."""
        slots = self.find_all(keys)
        new = keys[slots < 0]
        if not new.size:
            return slots
        _, first = np.unique(new, return_index=True)
        new = new[np.sort(first)]
        start, self._count = self._count, self._count + new.size
        if self._count > self._keys.size:
            self._keys = np.resize(self._keys, _power_above(self._count))
        self._keys[start : self._count] = new
        if self._count * _PLACES_PER_KEY > self._places.slots.size:
            # Other threads use the old arrays until the new ones are complete.
            places = _Places(_power_above(self._count) * _PLACES_PER_KEY)
            places.put(self.keys, np.arange(self._count))
            self._places = places
        else:
            self._places.put(new, np.arange(start, self._count))
        return self.find_all(keys)

    def packed(self, first: int, end: int) -> bytes:
        """Return the keys of some slots as they are packed."""
        return self._keys[first:end].astype("<u8").tobytes()


def shards_of_numbers(keys: U64s, shards: int) -> npt.NDArray[np.int64]:
    """Shard of each u64 key: the upper half of key times 0x9E3779B97F4A7C15, modulo `shards`."""
    upper = (keys * np.uint64(SPREAD)) >> np.uint64(32)
    return (upper % np.uint64(shards)).astype(np.int64)


def _power_above(count: int) -> int:
    return 1 << max(_MIN_KEYS, count - 1).bit_length()
