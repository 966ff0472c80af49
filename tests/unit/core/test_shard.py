"""One shard of a replica: visible content, changes, and outdated packets."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest

from broker.core.bulk_chunks import MAX_BYTES
from broker.core.effects import KeysRepaired, LoadState, ReadLog, Reconnect
from broker.core.kept_batches import KEPT_BYTES
from broker.core.recent_ids import RECENT_IDS
from broker.core.shard import LOADS_BEFORE_GIVING_UP, ShardState
from broker.core.shard_counts import ShardCounts
from broker.core.tables import made_tables
from broker.core.transitions import Event
from broker.model import Change, Status
from broker.protocol.codec import encode_chunk, encode_packet
from broker.protocol.constants import MAX_CHUNK_BYTES, NO_ID
from broker.protocol.digest import range_of
from broker.protocol.fields import pack_field
from broker.protocol.messages import Batch, Chunk, Heartbeat, LogEntry, Notice, Position, Run
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from broker.protocol.sums import with_head
from tests.unit.exactness import exact
from tests.unit.model_history import Delta, History, SnapshotRun
from tests.unit.replica_without_io import STALENESS_BOUND, Follower, LogRead


def plus(key: str, amount: float = 1) -> Delta:
    """Return an increment."""
    return (OP_INCREMENT, key, amount)


def write(history: History, *deltas: Delta) -> None:
    """Publish deltas as one batch."""
    history.append("n1", deltas)
    history.drain(1)


def snapshot(history: History, *, cut: int = 0) -> None:
    """Write the full state completely."""
    run = SnapshotRun(history)
    while run.pages:
        run.write_page()
    run.commit(cut)


@pytest.fixture
def history() -> History:
    """Give a server with two batches: a is 2."""
    history = History()
    write(history, plus("a"))
    write(history, plus("a"))
    return history


@pytest.fixture
def replica(history: History) -> Follower:
    """Give a live replica of it, whose changes are watched."""
    replica = Follower("replica", history, watched=True)
    replica.settle()
    return replica


# -- what is shown --------------------------------------------------------------------------------


def test_nothing_is_shown_before_a_load_has_caught_up(history: History) -> None:
    """A partial load is never visible in any phase; a complete one appears at once."""
    snapshot(history)
    write(history, plus("a"), (OP_SET, "b", "x"))
    replica = Follower("replica", history, watched=True)
    replica.subscribe()
    replica.ask()
    while not isinstance(replica.reading, LogRead):
        assert (replica.state.values, replica.state.position) == ({}, Position())
        if replica.reading is None:
            replica.ask()
        else:
            replica.answer()
    replica.answer()
    assert replica.state.phase is Status.LIVE
    assert replica.state.values == {"a": 3, "b": "x"}


def test_old_content_stays_readable_while_loading_again(
    history: History, replica: Follower
) -> None:
    """A complete load replaces the content in one step."""
    write(history, (OP_SET, "b", 1))
    history.wipe()
    write(history, (OP_SET, "c", 1))
    replica.receive_all()
    assert replica.state.phase is Status.LOADING
    assert replica.state.values == {"a": 2, "b": 1}
    replica.read_all()
    assert replica.state.values == {"c": 1}


def test_packets_that_came_during_a_read_are_applied_at_its_end(
    history: History, replica: Follower
) -> None:
    """They need no second read, and no packet in between is missed."""
    replica.subscribe()
    replica.ask()
    write(history, plus("a"))
    write(history, plus("a"))
    replica.receive_all()
    assert replica.state.values == {"a": 2}
    replica.answer()
    assert (replica.wanted, replica.state.values) == (None, {"a": 4})


def test_a_hole_among_packets_kept_is_filled_from_the_log(
    history: History, replica: Follower
) -> None:
    """The next packet reveals what was lost during the read."""
    replica.subscribe()
    replica.ask()
    write(history, plus("a"))
    write(history, plus("a"))
    replica.inbox.pop(0)
    replica.receive_all()
    replica.answer()
    assert isinstance(replica.wanted, ReadLog)
    assert replica.state.values == {"a": 2}
    replica.read_all()
    assert (replica.state.phase, replica.state.values) == (Status.LIVE, {"a": 4})


def test_a_key_that_a_scan_gives_twice_counts_as_given_last(history: History) -> None:
    """HSCAN may repeat a key; the later page is the newer one, and its floor counts."""
    snapshot(history)
    write(history, plus("a"))
    replica = Follower("replica", history, watched=False)
    replica.subscribe()
    head = history.read_head()
    assert head is not None
    replica.perform(replica.state.begin_load(head))
    replica.state.load_page([b"a"], [pack_field("a", 2, 2)])
    replica.state.load_page([b"a"], [pack_field("a", 3, 3)])
    replica.perform(replica.state.end_load())
    replica.read_all()
    assert replica.state.values == {"a": 3}
    assert replica.state.tally.superseded == 1


# -- what was loaded, compared -------------------------------------------------------------------


def loaded(replica: Follower, altered: set[int] | None) -> None:
    """Load a full state of which this much is known to be altered."""
    head = replica.history.read_head()
    assert head is not None
    replica.perform(replica.state.begin_load(head))
    replica.state.load_page([b"a", b"bad"], [pack_field("a", 1, 2), b"short"])
    replica.perform(replica.state.end_load(altered))


def doubts_of(replica: Follower) -> str:
    """Return all texts about what speaks against its content."""
    return " ".join(replica.state.doubts.texts(replica.state.content))


def test_a_load_that_is_altered_is_repeated_once_and_then_in_doubt(history: History) -> None:
    """What is wrong for good keeps no replica away; it is live, counted, and says so."""
    write(history, plus("a"))
    snapshot(history)
    replica = Follower("replica", history, watched=False)
    replica.subscribe()
    loaded(replica, {7})
    assert (replica.state.phase, replica.state.counts.loads_altered) == (Status.LOADING, 0)
    assert replica.wanted == LoadState(1)
    loaded(replica, {7, 8})
    assert replica.state.phase is Status.LOADING, "it is not the same as before"
    loaded(replica, {7, 8})
    assert replica.state.phase is Status.CATCHING_UP
    replica.read_all()
    assert replica.state.phase is Status.LIVE
    assert replica.state.counts.loads_altered == 1
    assert "in 2 of 256 key ranges of shard 0" in doubts_of(replica)
    replica.state.compared(())
    assert "key ranges" not in doubts_of(replica)


def test_a_load_that_was_mended_meanwhile_is_not_in_doubt(history: History) -> None:
    """The second time it is what schedulers wrote."""
    write(history, plus("a"))
    snapshot(history)
    replica = Follower("replica", history, watched=False)
    replica.subscribe()
    loaded(replica, {7})
    loaded(replica, set())
    replica.read_all()
    assert replica.state.counts.loads_altered == 0
    assert not replica.state.is_to_be_compared
    assert not replica.state.content.altered


def test_a_range_is_not_in_doubt_for_a_key_that_is_named(history: History) -> None:
    """What cannot be read differs, too: its key says more than its range."""
    write(history, plus("a"))
    snapshot(history)
    replica = Follower("replica", history, watched=False)
    replica.subscribe()
    loaded(replica, {range_of("bad")})
    assert replica.state.phase is Status.CATCHING_UP
    assert not replica.state.content.altered
    assert replica.state.counts.loads_altered == 0


def test_what_could_not_be_compared_is_compared_when_live(history: History) -> None:
    """None is not yet known, and not until the replica is live."""
    write(history, plus("a"))
    snapshot(history)
    replica = Follower("replica", history, watched=False)
    replica.subscribe()
    loaded(replica, None)
    assert not replica.state.is_to_be_compared
    replica.read_all()
    assert replica.state.is_to_be_compared
    replica.state.compared(())
    assert not replica.state.is_to_be_compared


# -- changes -------------------------------------------------------------------------------------


def test_each_change_is_reported_once_with_what_it_made(
    history: History, replica: Follower
) -> None:
    """A change has key, new value, operation, position and time; refused deltas make none."""
    replica.changes.clear()
    runs = [
        Run(OP_SET, ["s"], ["x"], [77]),
        Run(OP_DELETE, ["a", "absent"], None),
        Run(OP_INCREMENT, ["n", "s"], [2.5, 1]),
    ]
    data = encode_chunk(Chunk("n1", 1, 9, 55, runs))
    history.stored.pending.append((data, [], 5))
    history.drain(1)
    replica.receive_all()
    here = replica.state.position
    assert replica.changes == [
        Change("s", "x", "set", here, 0, 77),
        Change("a", None, "delete", here, 0, 55),
        Change("n", 2.5, "increment", here, 0, 55),
    ]
    tally = replica.state.tally
    assert (tally.deltas, tally.applied, tally.refused) == (7, 6, 1)


def test_after_a_load_exactly_the_differences_are_reported(
    history: History, replica: Follower
) -> None:
    """Differences are marked; a value of another type differs, an equal one does not."""
    write(history, (OP_SET, "gone", 1), (OP_SET, "typed", 1), (OP_SET, "same", [1]))
    replica.receive_all()
    replica.changes.clear()
    history.wipe()
    write(history, (OP_SET, "typed", True), (OP_SET, "same", [1]), plus("a", 2), plus("new"))
    replica.settle()
    here = replica.state.position
    replica.changes.sort(key=lambda change: change.key)
    assert replica.changes == [
        Change("gone", None, "delete", here, 0, resync=True),
        Change("new", 1, "set", here, 0, resync=True),
        Change("typed", True, "set", here, 0, resync=True),
    ]
    assert exact([change.value for change in replica.changes]) == exact([None, 1, True])


# -- what is counted ------------------------------------------------------------------------------


def test_a_broken_chunk_is_skipped_whole_and_counted(history: History, replica: Follower) -> None:
    """Its neighbours in the batch take effect; its promised deltas count as skipped."""
    history.append("n1", [plus("a")])
    history.append("n2", [plus("a", 10), plus("b")], broken=True)
    history.append("n1", [plus("a")])
    history.drain(3)
    replica.receive_all()
    state = replica.state
    assert (state.phase, state.values) == (Status.LIVE, {"a": 4})
    assert (state.counts.chunks_skipped, state.tally.skipped) == (1, 2)


def test_memory_for_ids_is_bounded(history: History, replica: Follower) -> None:
    """Ids of old offsets are dropped; an older packet is checked with a read."""
    first = history.stored.log[2].packet
    for _ in range(RECENT_IDS + 5):
        history.append("n1", [])
        history.drain(1)
    replica.receive_all()
    assert len(replica.state._recent) <= RECENT_IDS
    assert replica.events_of(first) == [Event.BEHIND]
    replica.read_all()
    assert replica.state.phase is Status.LIVE


def test_memory_for_bulk_chunks_is_bounded(replica: Follower) -> None:
    """Unused bulk chunks are dropped; a batch that needs a dropped one is read from the log."""
    chunk = bytes(MAX_CHUNK_BYTES)
    for _ in range(10):
        replica.state.bulk(chunk)
    kept = replica.state._bulk.take()
    assert sum(map(len, kept)) == MAX_BYTES
    assert replica.state.counts.bytes_received >= 10 * len(chunk)


def test_memory_for_packets_kept_is_bounded(history: History, replica: Follower) -> None:
    """During a long read the oldest packets are dropped, then read from the log."""
    replica.subscribe()
    replica.ask()
    big = "x" * (1 << 20)
    for _ in range((KEPT_BYTES >> 20) + 3):
        write(history, (OP_SET, "big", big), plus("a"))
    replica.receive_all()
    assert replica.state._kept.bytes <= KEPT_BYTES
    replica.read_all()
    assert replica.state.values == history.moments[history.head].values


# -- damage and strangers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode_packet(Heartbeat(1, b"\0" * 8, 0, NO_ID, NO_ID, 0, 0)),
    ],
    ids=["empty", "damaged", "of another shard"],
)
def test_packets_that_are_not_for_it_change_nothing_and_keep_nothing_alive(
    replica: Follower, data: bytes
) -> None:
    """A packet of another protocol version, for example, does not prove that data is current."""
    for _ in range(10):
        replica.history.now += 0.5
        assert not replica.state.packet(data, replica.now)
        effects = replica.state.tick(replica.now)
    assert Reconnect() in effects
    assert (replica.state.phase, replica.state.values) == (Status.STALE, {"a": 2})
    assert replica.state.counts.packets_unreadable == 10


def test_repeats_and_notices_keep_nothing_alive(history: History, replica: Follower) -> None:
    """Only packets that prove completeness renew the staleness bound."""
    notice = encode_packet(Notice(0, history.head.epoch, 2, history.head.batch_id, NO_ID, 0, 99))
    for _ in range(10):
        history.now += 0.5
        replica.state.packet(history.stored.log[2].packet, replica.now)
        replica.state.packet(notice, replica.now)
        replica.state.tick(replica.now)
    assert replica.state.phase is Status.STALE
    assert replica.state.covered == 2


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        pytest.param([b"a"], [b"\0" * 7], id="offset cut"),
        pytest.param([b"a"], [b"\0" * 14], id="check sum"),
        pytest.param([b"a"], [pack_field("b", 1, 1)], id="field of another key"),
        pytest.param([b"a"], [with_head(b"a", 1, b"\1\1")], id="unknown flags"),
        pytest.param([b"a"], [with_head(b"a", 1, b"\0")], id="no value"),
        pytest.param([b"a"], [with_head(b"a", 1, b"\0\1\1")], id="two values"),
        pytest.param(
            [b"a", b"b"],
            [with_head(b"a", 1, b"\0"), with_head(b"b", 1, b"\0\1\1")],
            id="none beside two",
        ),
        pytest.param(
            [b"a", b"b"],
            [with_head(b"a", 1, b"\0\x92"), with_head(b"b", 1, b"\0\1\2\3")],
            id="takes another's",
        ),
        pytest.param([b"\xff"], [pack_field(b"\xff", 1, 1)], id="key not UTF-8"),
    ],
)
def test_a_damaged_full_state_is_named_and_never_shown(
    history: History, replica: Follower, keys: list[bytes], fields: list[bytes]
) -> None:
    """The load goes on without the damaged keys; until it ends, the content is kept."""
    history.wipe()
    write(history, plus("z"))
    replica.receive_all()
    head = history.read_head()
    assert head is not None
    replica.perform(replica.state.begin_load(head))
    replica.state.load_page(keys, fields)
    load = replica.state._load
    assert load is not None
    assert load.damaged
    assert load.values.keys() <= {"b"}
    assert replica.state.values == {"a": 2}
    replica.read_all()
    assert replica.state.values == {"z": 1}


@pytest.mark.parametrize(
    "entry", ["damaged", "heartbeat", "another epoch", "a hole before it", "another predecessor"]
)
def test_a_log_that_does_not_continue_mine_is_not_applied(
    history: History, replica: Follower, entry: str
) -> None:
    """The replica loads again instead of guessing, and shows nothing of it."""
    state, mine = replica.state, history.head
    chunk = encode_chunk(Chunk("n1", 1, 9, 0, [Run(OP_SET, ["a"], [99])]))
    next_one = Batch(0, mine.epoch, 3, b"x" * 8, mine.batch_id, 0, 3, 1, 0, 1, [chunk])
    data = {
        "damaged": b"\xc1",
        "heartbeat": encode_packet(Heartbeat(0, mine.epoch, 3, b"x" * 8, mine.batch_id, 0, 3)),
        "another epoch": encode_packet(replace(next_one, epoch=b"y" * 8)),
        "a hole before it": encode_packet(replace(next_one, offset=4)),
        "another predecessor": encode_packet(replace(next_one, previous_id=b"y" * 8)),
    }[entry]
    write(history, plus("a"))
    replica.subscribe()
    state.log_page(history.read_head(), [LogEntry(data)], replica.now)
    assert (state.phase, state.values) == (Status.LOADING, {"a": 2})


def test_loading_for_ever_ends_loudly(history: History, replica: Follower) -> None:
    """A replica fails when repeated loads never match the published history of the same epoch."""

    def stranger() -> Heartbeat:
        mine = replica.state.position
        return Heartbeat(0, mine.epoch, mine.offset, b"x" * 8, NO_ID, 0, 5)

    for _ in range(LOADS_BEFORE_GIVING_UP):
        assert replica.state.phase is Status.LIVE
        replica.packet(encode_packet(stranger()))
        replica.read_all()
    history.heartbeat()
    replica.receive_all()
    assert replica.state.loads_in_a_row == 0
    for _ in range(LOADS_BEFORE_GIVING_UP + 1):
        replica.packet(encode_packet(stranger()))
        replica.read_all()
    assert (replica.state.phase, replica.wanted) == (Status.FAILED, None)


def test_packets_of_another_database_are_ignored(history: History, replica: Follower) -> None:
    """They cost one load, prove nothing, and do not hide silence."""
    stranger = encode_packet(Heartbeat(0, b"stranger", 5, b"x" * 8, NO_ID, 0, 5))
    loads = replica.state.counts.loads
    for _ in range(5):
        replica.packet(stranger)
        replica.read_all()
    assert replica.state.phase is Status.LIVE
    assert (replica.state.counts.loads, replica.state.counts.packets_foreign) == (loads + 1, 4)
    history.heartbeat()
    replica.receive_all()
    assert replica.state.phase is Status.LIVE


# -- histories ------------------------------------------------------------------------------------


def test_an_epoch_is_reported_from_another_even_before_its_first_batch() -> None:
    """Two empty shards differ only in the epoch, and a token names it."""
    history = History()
    history.heartbeat()
    replica = Follower("replica", history, watched=True)
    replica.settle()
    history.wipe()
    history.heartbeat()
    replica.receive_all()
    assert replica.state.phase is Status.LOADING
    replica.read_all()
    assert replica.state.position == history.head


def test_ids_of_an_older_history_are_forgotten(history: History, replica: Follower) -> None:
    """A late packet of the older history is neither a repeat nor a contradiction."""
    write(history, plus("a"))
    write(history, plus("a"))
    replica.receive_all()
    old = history.stored.log[3].packet
    history.roll_back(4)
    for _ in range(3):
        write(history, plus("b"))
    true = history.stored.log[3].packet
    snapshot(history, cut=5)
    replica.settle()
    for late in (old, true):
        assert replica.events_of(late) == [Event.BEHIND]
        replica.read_all()
    assert (replica.state.phase, replica.state.values) == (Status.LIVE, {"a": 2, "b": 3})


def test_covered_is_that_of_the_present_history(history: History, replica: Follower) -> None:
    """A token from before a wipe is not covered, although its offset once was."""
    assert replica.state.covered == 2
    history.wipe()
    history.append("n1", [plus("a")])
    replica.settle()
    assert (replica.state.position, replica.state.covered) == (history.head, 0)


def test_what_came_over_an_older_subscription_is_not_applied_after_a_new_one(
    history: History, replica: Follower
) -> None:
    """The server may have lost the packet between both subscriptions."""
    replica.subscribe()
    write(history, plus("a"))
    replica.receive_all()
    assert replica.state.phase is Status.CATCHING_UP
    history.roll_back(1)
    replica.subscribe()
    replica.read_all()
    assert (replica.state.phase, replica.state.values) == (Status.LIVE, {"a": 2})


def half_written(history: History) -> Follower:
    """Return a replica that has loaded a state with a key from beyond the snapshot."""
    snapshot(history)
    write(history, plus("a", 10))
    SnapshotRun(history).write_page()
    replica = Follower("replica", history, watched=True)
    replica.subscribe()
    replica.ask()
    while isinstance(replica.wanted, LoadState):
        replica.answer()
    return replica


def test_a_load_is_not_finished_from_another_server(history: History) -> None:
    """A new subscription restarts the load: another server may have answered."""
    replica = half_written(history)
    history.roll_back(3)
    replica.disconnect()
    replica.subscribe()
    write(history, plus("a", 100))
    replica.read_all()
    assert (replica.state.phase, replica.state.values) == (Status.LIVE, {"a": 102})


def test_a_key_from_beyond_the_head_is_from_another_history(history: History) -> None:
    """A load with a key from beyond the head is discarded."""
    replica = half_written(history)
    history.roll_back(3)
    replica.ask()
    replica.answer()
    assert replica.state.phase is Status.LOADING


def test_a_packet_from_beyond_a_cut_back_head_is_asked_for_once(
    history: History, replica: Follower
) -> None:
    """The log has every published batch, so a packet beyond its head is dropped."""
    write(history, plus("a"))
    replica.inbox.clear()
    write(history, plus("a"))
    replica.receive_all()
    assert replica.state.phase is Status.CATCHING_UP
    history.roll_back(4)
    for _ in range(3):
        if isinstance(replica.wanted, ReadLog):
            replica.ask()
            replica.answer()
    assert (replica.state.phase, replica.state.values) == (Status.LIVE, {"a": 2})


def test_an_answer_does_not_make_a_replica_live_that_hears_nothing(replica: Follower) -> None:
    """Without a subscription a replica is not live: it would miss the next batch."""
    replica.subscribe()
    replica.ask()
    replica.disconnect()
    replica.answer()
    assert replica.state.phase is not Status.LIVE


# -- time -----------------------------------------------------------------------------------------


def test_lag_counts_from_publication_and_not_from_arrival(
    history: History, replica: Follower
) -> None:
    """A delayed packet proves the state at its publication, not at its arrival."""
    assert ShardState(0, STALENESS_BOUND).lag(replica.now) == float("inf")
    history.now += 1.0
    write(history, plus("a"))
    history.now += 2.0
    assert replica.state.lag(replica.now) == pytest.approx(3.0)
    replica.receive_all()
    assert replica.state.lag(replica.now) == pytest.approx(2.0)


def test_packets_older_than_the_bound_do_not_make_it_live(
    history: History, replica: Follower
) -> None:
    """Old packets are applied, but the current lag needs a read."""
    write(history, plus("a"))
    history.now += STALENESS_BOUND + 1
    assert Event.LATE in replica.events_of(replica.inbox.pop().data)
    assert (replica.state.phase, replica.state.values) == (Status.CATCHING_UP, {"a": 3})


def test_a_server_whose_clock_was_set_back_is_followed_again(
    history: History, replica: Follower
) -> None:
    """Its packets look old until a reply updates the clock offset."""
    at, time_ms = history.head, round(history.now * 1000) - 100_000
    beat = Heartbeat(0, at.epoch, at.offset, at.batch_id, NO_ID, time_ms, 2)
    assert replica.events_of(encode_packet(beat)) == [Event.LATE]
    head = history.read_head()
    assert head is not None
    replica.state.log_page(
        type(head)(head.position, head.snapshot, 2, 0.0, head.time_s - 100), [], replica.now
    )
    assert replica.events_of(encode_packet(beat)) == [Event.CURRENT]
    assert replica.state.phase is Status.LIVE


def test_a_shard_of_which_nobody_speaks_is_complete_but_not_live(history: History) -> None:
    """Without a worker the content is stale until a heartbeat arrives."""
    history.now += STALENESS_BOUND + 1
    replica = Follower("replica", history, watched=True)
    replica.subscribe()
    replica.read_all()
    assert (replica.state.phase, replica.state.values) == (Status.STALE, {"a": 2})
    history.heartbeat()
    replica.receive_all()
    assert replica.state.phase is Status.LIVE


# -- counters --------------------------------------------------------------------------------------


def test_what_a_self_check_finds_is_counted_by_the_shard(replica: Follower) -> None:
    """A difference in keys and one in tables are two; keys count where they were corrected."""
    state = replica.state
    state.self_checked(keys_differ=False, tables_differ=False)
    state.self_checked(keys_differ=True, tables_differ=True)
    state.self_check_undecided("no digest")
    state.compared({7})
    state.compared(())
    (repaired,) = state.repair({"a": 1, "b": 2}, ["c"])
    assert isinstance(repaired, KeysRepaired)
    assert sorted(repaired.keys) == ["a", "b"]
    assert list(state.repair({"a": 1, "b": 2}, ["c"])) == []
    counts = state.counts
    assert (counts.self_checks, counts.self_checks_failed, counts.self_checks_undecided) == (
        2,
        2,
        1,
    )
    assert (counts.full_state_altered, counts.keys_repaired) == (1, 2)


def test_doubted_tables_are_counted_as_an_altered_full_state(replica: Follower) -> None:
    """Until a self-check finds them as schedulers wrote them."""
    state = replica.state
    state.compared_tables(("table t (u64-f64) rows 1",))
    assert state.content.is_doubted
    state.compared_tables(())
    assert not state.content.is_doubted
    assert state.counts.full_state_altered == 1


def test_corrected_tables_replace_those_that_differ(replica: Follower) -> None:
    """Their keys count as repaired, and are reported as an effect."""
    state, right = replica.state, made_tables()
    assert list(state.repair_tables(right, ["t['a']"])) == [KeysRepaired(["t['a']"])]
    assert state.tables is right
    assert state.counts.keys_repaired == 1


def test_counters_of_shards_add_up_field_by_field() -> None:
    """No field is left out."""
    names = [one.name for one in fields(ShardCounts)]
    one = ShardCounts(**{name: n for n, name in enumerate(names)})
    one.add(ShardCounts(**dict.fromkeys(names, 100)))
    assert asdict(one) == {name: 100 + n for n, name in enumerate(names)}
