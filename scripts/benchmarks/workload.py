"""The updates that every contender writes, and the state that must result; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgpack

# Coprime to every number of keys: each key comes once before any comes twice, in mixed order.
STRIDE = 7_919
NODE_KEYS = 10


def workload(updates: int, keys: int) -> tuple[list[str], list[float]]:
    """Return the keys and the values of the updates, in the order in which they are written.

    Values have all digits that a float can have. Provenance before the clock runs.
    """
    if updates < keys:
        written = [key_of(number * STRIDE % keys) for number in range(updates)]
    else:
        names = [key_of(number) for number in range(keys)]
        written = [names[number * STRIDE % keys] for number in range(updates)]
    return written, [value_of(number) for number in range(updates)]


def key_of(number: int) -> str:
    """Return the name of one key."""
    return f"vehicle/{number:05d}"


def value_of(number: int) -> float:
    """Return the value that the update of this number writes."""
    return number / 7


def final_state(updates: int, keys: int) -> dict[str, float]:
    """Return key -> last value after these updates."""
    # Every key is among the last `keys` updates.
    last = range(max(0, updates - keys), updates)
    return {key_of(number * STRIDE % keys): value_of(number) for number in last}


def texts(updates: int, keys: int, size: int) -> tuple[list[str], list[str]]:
    """Return the same keys with texts of `size` characters, all different."""
    return workload(updates, keys)[0], [str(number).rjust(size, "x") for number in range(updates)]


def difference(found: dict[str, float], updates: int, keys: int) -> str:
    """Return how a final state differs from the right one; empty if it does not."""
    return fault_of(found, final_state(updates, keys))


def fault_of(found: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """Return how a state differs from the right one; empty if it does not."""
    if found == right:
        return ""
    missing = len(right.keys() - found.keys())
    foreign = len(found.keys() - right.keys())
    wrong = sum(found[key] != right[key] for key in right.keys() & found.keys())
    return f"the reader's state is wrong: {missing} keys missing, {wrong} wrong, {foreign} foreign"


def digest(state: Mapping[str, Any]) -> str:
    """Return a digest that is the same for equal states, whatever the order of their keys."""
    return sha256(msgpack.packb(sorted(state.items()))).hexdigest()


def node_key(node: int, number: int) -> str:
    """Return the name of one of the keys of a node."""
    return f"node/{node:04d}/{number}"


def nodes_state(nodes: int, each: int) -> dict[str, float]:
    """Return the state after each node wrote `each` updates to its keys in turn."""
    last = {done % NODE_KEYS: float(done) for done in range(each)}
    return {
        node_key(node, number): value for node in range(nodes) for number, value in last.items()
    }
