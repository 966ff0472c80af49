"""The Lua commands of producers, called as their heads say, on a real server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.lua_shard import EPOCH, HOUR, TOKEN, Shard, token_bytes

# -- join, open, leave ----------------------------------------------------------------------------


def test_join_makes_a_namespace_once(shard: Shard) -> None:
    """The first caller decides; later callers get its values, whatever values they pass."""
    protocol, shards, created, features = shard.join(1, 4, "leases ttl")
    assert (protocol, shards, features) == (b"1", b"4", b"leases ttl")
    assert abs(int(created) - shard.now()) < 10_000
    assert shard.join(2, 16, "compress") == [b"1", b"4", created, b"leases ttl"]
    assert shard.hashes() == {
        "protocol": b"1",
        "shards": b"4",
        "created": created,
        "features": b"leases ttl",
    }


def test_a_namespace_without_words_is_plain(shard: Shard) -> None:
    """Nobody asked for words, or the field is not there: both are the empty text."""
    created = shard.join(3, 1)[2]
    assert shard.join(3, 1, "ttl") == [b"3", b"1", created, b""]
    shard.admin.hdel(shard.config, "features")
    assert shard.join(3, 1, "ttl") == [b"3", b"1", created, b""]


def test_open_gives_a_new_incarnation_or_takes_the_callers(shard: Shard) -> None:
    """A new claim is above all before and at least the clock; the holder keeps its own."""
    before = shard.now()
    status, first, *rest = shard.open(token="a")
    assert [status, *rest] == [b"OPEN", EPOCH, 50, 1000, 0]
    assert before <= first <= shard.now()
    assert shard.record() == (first, "a", 0, 0)

    ahead = shard.now() + HOUR
    shard.heartbeat(max_age=70, max_count=80)
    opened = shard.open(incarnation=ahead, token="b", chunk=7, deltas=9)
    assert opened == [b"OPEN", ahead, EPOCH, 70, 80, 0]
    assert shard.record() == (ahead, "b", 7, 9)
    assert shard.open(token="c")[1] == ahead + 1
    assert shard.open("n2", 1)[:3] == [b"OPEN", 1, EPOCH]


def test_open_fences_those_who_lost_the_name(shard: Shard) -> None:
    """A lower incarnation, or the same one with another token, is refused and changes nothing."""
    shard.open(incarnation=5, token="a")
    before = shard.lists()
    assert shard.open(incarnation=4, token="a") == [b"FENCED", 5]
    assert shard.open(incarnation=5, token="b") == [b"FENCED", 5]
    assert shard.lists() == before
    assert shard.open(incarnation=5, token="a")[:3] == [b"OPEN", 5, EPOCH]


def test_open_keeps_the_epoch_there_is(shard: Shard) -> None:
    """An epoch is given only to a shard that has none."""
    shard.put(epoch=b"epoch--0")
    assert shard.open()[2] == b"epoch--0"


def test_an_open_that_arrives_late_does_not_forget_accepted_chunks(shard: Shard) -> None:
    """A repeat of `open` that was stuck in the network must not make chunks count twice."""
    shard.opened()
    shard.append(1, deltas=3)
    shard.append(2, deltas=4)
    for chunk_number in (0, 1, 2):
        assert shard.open(incarnation=5, chunk=chunk_number, deltas=chunk_number)[0] == b"OPEN"
        assert shard.append(2)[0] == b"DUPLICATE"
        assert shard.append(4) == [b"MISSING", 3, 7]
    shard.open(incarnation=5, chunk=3, deltas=9)
    assert shard.append(5) == [b"MISSING", 4, 9]


def test_append_numbers_never_come_again(shard: Shard) -> None:
    """They rise with every chunk, and are at least the clock: also after Redis lost some."""
    shard.opened("n1", "n2")
    before = shard.now() * 1000
    numbers = [shard.append(n // 2 + 1, node=f"n{n % 2 + 1}")[1] for n in range(10)]
    assert before <= numbers[0]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < (shard.now() + 1) * 1000
    shard.put(appends=1)
    assert shard.append(6)[1] > numbers[-1]
    ahead = (shard.now() + HOUR) * 1000
    shard.put(appends=ahead)
    assert [shard.append(n)[1] for n in (7, 8)] == [ahead + 1, ahead + 2]


def test_confirm_tells_how_far_the_chunks_are_here(shard: Shard) -> None:
    """The last number of the caller's own incarnation; nothing changes, though it is a write."""
    keys = [shard.keys.intake]
    assert shard.call("confirm", keys, "n1", 5, token_bytes(TOKEN)) == [b"MISSING"]
    shard.opened()
    assert shard.call("confirm", keys, "n1", 5, token_bytes(TOKEN)) == [b"HELD", 0]
    shard.append(1)
    shard.append(2)
    before = shard.lists()
    record = shard.admin.hgetall(shard.keys.intake)
    assert shard.call("confirm", keys, "n1", 5, token_bytes(TOKEN)) == [b"HELD", 2]
    assert shard.call("confirm", keys, "n1", 6, token_bytes(TOKEN)) == [b"MISSING"]
    assert shard.call("confirm", keys, "n1", 4, token_bytes(TOKEN)) == [b"FENCED", 5]
    assert shard.call("confirm", keys, "n1", 5, token_bytes("other")) == [b"FENCED", 5]
    assert shard.call("confirm", keys, "n2", 5, token_bytes(TOKEN)) == [b"MISSING"]
    assert (shard.lists(), shard.admin.hgetall(shard.keys.intake)) == (before, record)


def test_leave_forgets_its_own_record_only(shard: Shard) -> None:
    """Another incarnation's or token's record stays; what was appended stays pending."""
    keys = [shard.keys.intake]
    assert shard.call("leave", keys, "n1", 5, token_bytes("tok")) == 0
    shard.opened()
    shard.append(1)
    assert shard.call("leave", keys, "n1", 5, token_bytes("to")) == 0
    assert shard.call("leave", keys, "n1", 4, token_bytes("tok")) == 0
    assert shard.call("leave", keys, "n1", 5, token_bytes("tok")) == 1
    assert shard.call("leave", keys, "n1", 5, token_bytes("tok")) == 0
    assert not shard.admin.hexists(shard.keys.intake, "n1")
    assert shard.admin.llen(shard.keys.queue) == 2
    assert shard.append(2) == [b"MISSING", 1, 0]


# -- append ---------------------------------------------------------------------------------------


def test_append_stores_a_chunk_and_counts(shard: Shard) -> None:
    """OK returns append number, epoch and thresholds; the chunk is stored unchanged."""
    shard.opened("n1", "n2")
    data = bytes(range(256))
    status, number, *rest = shard.append(1, data, deltas=3, max_age=70, max_count=80)
    assert [status, *rest] == [b"OK", EPOCH, 70, 80]
    assert number == shard.number("appends")
    assert shard.append(1, b"other", "n2", deltas=4)[0] == b"OK"
    assert shard.chunks() == [data, b"other"]
    assert [(one.append, one.deltas, one.node) for one in shard.entries()] == [
        (number, 3, "n1"),
        (shard.number("appends"), 4, "n2"),
    ]
    assert shard.record() == (5, "tok", 1, 3)
    assert (shard.number("accepted"), shard.number("pending_bytes")) == (7, 261)


@pytest.mark.parametrize("before", [2**31 - 2, 2**31 - 1, 2**32 - 1, 2**53 - 3])
def test_numbers_of_any_size_are_kept_to_the_digit(shard: Shard, before: int) -> None:
    """Also beyond 32 bits, and beyond the 14 digits that Lua writes by itself."""
    shard.opened()
    shard.put(accepted=before, pending_bytes=before)
    shard.put_record("n1", 5, before, before)
    assert shard.append(before + 1, b"x", deltas=1, limit=1 << 60)[0] == b"OK"
    assert shard.record() == (5, "tok", before + 1, before + 1)
    assert (shard.number("accepted"), shard.number("pending_bytes")) == (before + 1, before + 1)


def test_append_recognises_what_it_took(shard: Shard) -> None:
    """A repeat is a DUPLICATE with the present append number, and stores nothing."""
    shard.opened("n1", "n2")
    shard.append(1)
    shard.append(2)
    last = shard.append(1, node="n2")[1]
    before = shard.lists()
    for number in (2, 1, 0):
        assert shard.append(number, limit=0) == [b"DUPLICATE", last, EPOCH, HOUR, 1000]
    assert shard.lists() == before


def test_append_refuses_a_hole(shard: Shard) -> None:
    """MISSING names the first number that is not here, and the deltas before it."""
    assert shard.append(1) == [b"MISSING", 1, 0]
    shard.opened()
    before = shard.lists()
    assert shard.append(2) == [b"MISSING", 1, 0]
    assert shard.lists() == before
    shard.append(1, deltas=7)
    assert shard.append(3) == [b"MISSING", 2, 7]
    # Redis came back with an older incarnation's record, or with no head.
    assert shard.append(1, incarnation=6) == [b"MISSING", 1, 0]
    # The record says what is here, though the head is gone.
    shard.admin.hdel(shard.keys.intake, ":head")
    assert shard.append(2) == [b"MISSING", 2, 7]


def test_append_fences_first(shard: Shard) -> None:
    """An older incarnation or another token is FENCED, whatever its chunk number."""
    shard.opened()
    shard.append(1)
    before = shard.lists()
    for number in (1, 2, 9):
        assert shard.append(number, incarnation=4) == [b"FENCED", 5]
        assert shard.append(number, token="other") == [b"FENCED", 5]
    assert shard.lists() == before


def test_append_is_busy_above_the_limit(shard: Shard) -> None:
    """Pending bytes may reach the limit and not pass it; a lone chunk always gets in."""
    shard.opened()
    assert shard.append(1, b"x" * 10, limit=0)[0] == b"OK"
    before = shard.lists()
    for limit in (0, 1, 10, 14):
        assert shard.append(2, b"x" * 5, limit=limit) == [b"BUSY", 10, 0]
    assert shard.lists() == before
    assert shard.append(2, b"x" * 5, limit=15)[0] == b"OK"
    assert shard.append(3, b"", limit=15)[0] == b"OK"
    assert shard.append(4, b"x", limit=15) == [b"BUSY", 15, 5]


HALF = 262144
LIMIT = 32 * HALF


def append_half(shard: Shard, number: int, node: str = "n1") -> Any:
    """Append a chunk of half of a node's share."""
    return shard.append(number, b"x" * HALF, node, limit=LIMIT)


def test_a_node_is_busy_above_its_share_and_no_other_is(shard: Shard) -> None:
    """A half, and another one only when what was before the first is published; others append."""
    shard.opened("n1", "n2")
    large = b"x" * 4 * HALF
    assert shard.append(1, large, limit=LIMIT)[0] == b"OK", "nothing of the node is pending"
    assert append_half(shard, 2)[0] == b"OK", "a half while what was before is published"
    assert shard.append(3, b"x", limit=LIMIT) == [b"BUSY", 5 * HALF, HALF]
    assert append_half(shard, 1, "n2")[0] == b"OK", "the share is of a node"
    assert append_half(shard, 2, "n2")[0] == b"OK"
    assert shard.drain(max_bytes=HALF)[4] == 1
    assert append_half(shard, 3)[0] == b"OK", "as much as was published"
    assert shard.append(4, b"x", limit=LIMIT) == [b"BUSY", 4 * HALF, HALF]
    while shard.drain()[0] == b"BATCH":
        pass
    assert shard.append(4, large, limit=LIMIT)[0] == b"OK"


@pytest.mark.parametrize("times", [1, 2])
def test_a_share_grows_with_the_limit(shard: Shard, times: int) -> None:
    """Half of it is a 32nd of the limit, and not less than 256 KiB."""
    shard.opened()
    limit = times * LIMIT if times > 1 else LIMIT // 2
    assert shard.append(1, b"x", limit=limit)[0] == b"OK"
    assert shard.append(2, b"x", limit=limit)[0] == b"OK"
    assert shard.append(3, b"x" * (times * HALF - 1), limit=limit)[0] == b"OK"
    half = times * HALF
    assert shard.append(4, b"x", limit=limit) == [b"BUSY", 1 + half, half]


def test_who_has_used_its_share_waits_for_no_age(shard: Shard) -> None:
    """What is pending is due at once, and a worker is told so once."""
    shard.opened()
    append_half(shard, 1)
    append_half(shard, 2)
    assert shard.number("count_due") == 0
    woken(shard)
    assert append_half(shard, 3)[0] == b"BUSY"
    assert (shard.number("count_due"), woken(shard)) == (shard.number("appends"), 1)
    assert append_half(shard, 3)[0] == b"BUSY"
    assert woken(shard) == 0
    status, _, trigger, *_ = shard.drain()
    assert (status, trigger) == (b"BATCH", 1)
    assert append_half(shard, 3)[0] == b"OK"


@pytest.mark.parametrize("ahead", [1, 2**50])
def test_an_edge_from_ahead_is_none(shard: Shard, ahead: int) -> None:
    """Nobody waits for an append number that was never given."""
    shard.opened("n1", "n2")
    shard.append(1, node="n2")
    edge = shard.number("appends") + ahead
    shard.put_record("n1", 5, 0, 0, append=edge, edge=edge, own_bytes=1 << 40)
    assert shard.append(1, b"x")[0] == b"OK"


def test_a_share_is_of_the_name(shard: Shard) -> None:
    """Another process of it goes on where the one before stopped."""
    shard.opened()
    append_half(shard, 1)
    append_half(shard, 2)
    incarnation = shard.open()[1]
    reply = shard.append(1, b"x", incarnation=incarnation, limit=LIMIT)
    assert reply == [b"BUSY", 2 * HALF, HALF]


def test_thresholds_come_from_the_call_or_the_namespace_or_the_defaults(shard: Shard) -> None:
    """An empty argument means the value set by the flush workers, else 50 ms and 1,000 deltas."""
    shard.opened()
    assert shard.append(1, max_age="", max_count="")[3:] == [50, 1000]
    shard.heartbeat(max_age=70, max_count=80)
    assert shard.append(2, max_age="", max_count="")[3:] == [70, 80]
    assert shard.append(3, max_age=0, max_count="")[3:] == [0, 80]
    assert shard.append(4, max_age="", max_count=1)[3:] == [70, 1]


@pytest.mark.parametrize(
    ("full", "flag"),
    [
        ("keys 12 10", 1),
        ("bytes 123456789012 1", 1),
        *((text, 0) for text in ("", "keys", "keys 1", "keys -1 1", "Keys 1 1", "keys 1 1 1")),
    ],
)
def test_a_full_state_is_told_to_who_appends_or_opens(shard: Shard, full: str, flag: int) -> None:
    """From the heartbeat on that finds it in meta, until one does not; other text is none."""
    shard.opened()
    shard.put(full=full)
    assert shard.append(1, full=True) == 0, "no heartbeat came yet"
    shard.heartbeat(max_age=70, max_count=80)
    assert shard.append(2, full=True) == flag
    assert shard.append(2, full=True) == flag, "a duplicate says so too"
    assert shard.open("n2")[3:] == [70, 80, flag]
    assert shard.append(3, max_age="", max_count="")[3:] == [70, 80]
    shard.put(full="")
    shard.heartbeat()
    assert shard.append(4, full=True) == 0
    assert shard.open("n3")[3:] == [70, 80, 0]


def woken(shard: Shard) -> int:
    """How many wake-ups wait; takes them."""
    count = shard.admin.llen(shard.keys.ready)
    shard.admin.delete(shard.keys.ready)
    return int(count)


def test_append_wakes_a_worker_exactly_when_the_shard_is_due_earlier(shard: Shard) -> None:
    """A wake-up is pushed for the first chunk, an earlier deadline and a full node; never two."""
    shard.opened("n1", "n2")
    shard.append(1, max_age=HOUR)
    assert woken(shard) == 1, "the shard was empty"
    shard.append(2, max_age=HOUR + 1000)
    assert woken(shard) == 0, "due later"
    shard.append(1, node="n2", max_age=HOUR // 2)
    assert woken(shard) == 1, "due earlier"
    shard.append(2, node="n2", max_age=HOUR, waited=HOUR)
    shard.append(3, node="n2", deltas=1000)
    assert woken(shard) == 1, "due earlier, then full: one is enough"
    shard.append(3, node="n2", deltas=1000)
    shard.append(9, node="n2")
    shard.append(4, token="x", node="n2")
    shard.append(4, node="n2", limit=0)
    assert woken(shard) == 0, "nothing was stored"
    while shard.drain()[0] == b"BATCH":
        pass
    assert shard.number("due_ms") == 0
    shard.append(4, node="n2", max_age=2 * HOUR)
    assert woken(shard) == 1, "the shard was empty again"


@pytest.mark.parametrize(
    ("before", "deltas", "full"),
    [
        *((0, 9, False), (0, 10, True), (0, 11, True), (0, 35, True), (9, 1, True), (8, 1, False)),
        *((10, 1, False), (10, 9, False), (10, 10, True), (19, 1, True), (11, 9, True)),
    ],
)
def test_a_node_is_full_at_each_multiple_of_the_count(
    shard: Shard, before: int, deltas: int, *, full: bool
) -> None:
    """The append that reaches or passes a multiple of max_count makes all up to it due."""
    shard.opened("n1", "n2")
    shard.append(1, node="n2", deltas=9, max_count=10)
    number = 1
    if before:
        shard.append(1, deltas=before, max_count=10)
        number = 2
    shard.put(count_due=0)
    woken(shard)
    appended = shard.append(number, deltas=deltas, max_count=10)[1]
    assert shard.number("count_due") == (appended if full else 0)
    assert woken(shard) == full


def test_a_count_begins_where_nothing_of_the_node_is_pending(shard: Shard) -> None:
    """Deltas that are published, also those of another process of the name, count no more."""
    shard.opened("n1", "n2")
    shard.append(1, deltas=9, max_count=10, waited=HOUR)
    assert shard.drain()[0] == b"BATCH"
    shard.append(2, deltas=1, max_count=10)
    assert shard.number("count_due") == 0
    # What is pending of a process before counts.
    incarnation = shard.open()[1]
    appended = shard.append(1, incarnation=incarnation, deltas=9, max_count=10)[1]
    assert shard.number("count_due") == appended
    # What others have pending does not.
    shard.append(1, node="n2")
    assert shard.drain()[4] == 2
    shard.append(2, incarnation=incarnation, deltas=9, max_count=10)
    assert shard.number("count_due") == appended
