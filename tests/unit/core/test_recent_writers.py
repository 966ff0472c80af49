"""Who wrote a value that cannot be read: known for what came last, in bounded memory."""

from __future__ import annotations

from broker.core.recent_writers import KEPT_KEYS, RecentWriters
from broker.protocol.messages import Chunk, Run
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET


def chunk(node: str, *keys: str, op: int = OP_SET) -> Chunk:
    """Return a chunk of one run."""
    return Chunk(node, 1, 1, 0, [Run(op, [*keys], None if op == OP_DELETE else [1] * len(keys))])


def test_the_last_who_set_a_key_is_named() -> None:
    """Not who deleted it, or added to it: neither packs a value."""
    writers = RecentWriters()
    writers.add([chunk("a", "k", "l"), chunk("b", "k")])
    writers.add([chunk("c", "k", op=OP_INCREMENT), chunk("d", "l", op=OP_DELETE)])
    assert [writers.node_of(key) for key in ("k", "l", "m")] == ["b", "a", None]


def test_the_oldest_are_forgotten() -> None:
    """So that it stays small, whatever is written."""
    writers = RecentWriters()
    writers.add([chunk("old", "first")])
    for number in range(20):
        writers.add([chunk(f"n{number}", *(f"{number}/{n}" for n in range(KEPT_KEYS // 10)))])
        assert sum(len(keys) for _, keys in writers._runs) <= KEPT_KEYS
    assert writers.node_of("first") is None
    assert writers.node_of("19/0") == "n19"


def test_one_run_larger_than_the_limit_is_known() -> None:
    """It is there anyway, since the shard received it."""
    writers = RecentWriters()
    writers.add([chunk("old", "first"), chunk("big", *map(str, range(KEPT_KEYS + 1)))])
    assert writers.node_of("0") == "big"
    assert writers.node_of("first") is None


def test_another_history_has_other_writers() -> None:
    """What was known of the one before is forgotten."""
    writers = RecentWriters()
    writers.add([chunk("a", "k")])
    writers.clear()
    assert writers.node_of("k") is None
