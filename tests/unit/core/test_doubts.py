"""What is known against a shard though its data flows."""

from __future__ import annotations

from broker.core.content import Content
from broker.core.doubts import UNDECIDED_IN_DOUBT, Doubts
from broker.protocol.messages import Batch, Heartbeat, TableKey

IDS = (b"e" * 8, 1, b"i" * 8, b"p" * 8)


def heartbeat(time_ms: int) -> Heartbeat:
    """Return a heartbeat of shard 0."""
    return Heartbeat(0, *IDS, time_ms, 0)


def test_heartbeats_that_are_rarer_than_the_bound_in_a_row_are_a_fault() -> None:
    """One long pause is none, and a batch or an earlier heartbeat ends the fault."""
    doubts = Doubts(0, staleness_bound=3)
    for time_ms, is_fault in ((100_000, False), (104_000, False), (109_000, True)):
        doubts.note_rhythm(heartbeat(time_ms))
        assert bool(doubts.rhythm_fault) == is_fault, time_ms
    assert "every 5.0 s, which is rarer than the staleness bound of 3 s" in doubts.rhythm_fault
    doubts.note_rhythm(Batch(0, *IDS, 114_000, 0))
    assert not doubts.rhythm_fault
    doubts.note_rhythm(heartbeat(118_000))
    doubts.note_rhythm(heartbeat(121_000))
    doubts.note_rhythm(heartbeat(125_000))
    assert not doubts.rhythm_fault


def test_each_doubt_is_a_sentence_of_its_own() -> None:
    """Without a doubt there is none; what is decided is doubted no more."""
    doubts, content = Doubts(5, staleness_bound=3), Content()
    assert list(doubts.texts(content)) == []
    doubts.server_fault = "eviction"
    content.damaged.add("k")
    content.altered = frozenset((7,))
    content.doubted_tables = ("table t (u64-f64) rows 1, 2",)
    assert content.tables is not None
    content.tables.damaged[TableKey("u", "str-i64")] = "field 'v:0' cannot be read"
    for _ in range(UNDECIDED_IN_DOUBT):
        doubts.note_undecided("no digest")
    fault, damaged, altered, lacking, tables, undecided = doubts.texts(content)
    assert fault == "eviction"
    assert "shard 5 has 1 keys whose field cannot be read" in damaged
    assert "keys in 1 of 256 key ranges of shard 5" in altered
    assert "1 tables of which a part" in lacking
    assert "(table u (str-i64): field 'v:0' cannot be read)" in lacking
    assert "schedulers wrote (table t (u64-f64) rows 1, 2)" in tables
    assert "3 self-checks of shard 5 in a row could not decide (no digest)" in undecided
    doubts.note_decided()
    assert len(list(doubts.texts(content))) == 5
