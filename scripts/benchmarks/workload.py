"""What every contender writes, and what its reader must hold in the end; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgpack

# Coprime to every number of keys: each comes once before any twice, and no neighbours in a row.
STRIDE = 7_919


def workload(updates: int, keys: int) -> tuple[list[str], list[float]]:
    """Return the keys and the values of so many updates, in the order in which they are written.

    Values have all digits that a float can have. Made before the clock runs.
    """
    names = [f"vehicle/{number:05d}" for number in range(keys)]
    written = [names[number * STRIDE % keys] for number in range(updates)]
    return written, [number / 7 for number in range(updates)]


def final_state(updates: int, keys: int) -> dict[str, float]:
    """Return key -> last value after so many updates."""
    return dict(zip(*workload(updates, keys), strict=True))


def texts(updates: int, keys: int, size: int) -> tuple[list[str], list[str]]:
    """Return the same keys with texts of so many characters, each another one."""
    return workload(updates, keys)[0], [str(number).rjust(size, "x") for number in range(updates)]


def difference(found: dict[str, float], updates: int, keys: int) -> str:
    """Return how a final state differs from the right one; empty if it does not."""
    right = final_state(updates, keys)
    if found == right:
        return ""
    missing = len(right.keys() - found.keys())
    foreign = len(found.keys() - right.keys())
    wrong = sum(found[key] != right[key] for key in right.keys() & found.keys())
    return f"the reader's state is wrong: {missing} keys missing, {wrong} wrong, {foreign} foreign"


def digest(state: Mapping[str, Any]) -> str:
    """Return the same text for equal states of plain values, in whatever order they are."""
    return sha256(msgpack.packb(sorted(state.items()))).hexdigest()
