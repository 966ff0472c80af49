"""The Lua commands of schedulers, called as their heads say, on a real server."""

from __future__ import annotations

from typing import Any

import pytest

from broker.backend.replies import Lease
from broker.protocol.constants import NO_ID
from broker.protocol.digest import range_of
from tests.integration.lua_shard import HOUR, MARK, Shard

# -- lease and snapshot ---------------------------------------------------------------------------


def test_one_holds_the_lease_and_each_new_holder_has_a_higher_number(shard: Shard) -> None:
    """Acquiring again renews; others get the holder's name; after release or expiry it is free."""
    assert shard.take("s1", HOUR) == [1, b"s1"]
    assert shard.take("s2 x", HOUR) == [0, b"s1"]
    assert shard.take("s1", 2 * HOUR) == [1, b"s1"]
    assert shard.admin.pttl(shard.keys.lease) > HOUR
    assert shard.admin.get(shard.keys.lease) == b"1 s1"
    keys = [shard.keys.lease, shard.keys.workers]
    assert set(shard.admin.hkeys(shard.keys.workers)) == {b"s1", b"s2 x"}
    assert shard.call("lease_release", keys, "s2 x", 1) == 0
    assert shard.call("lease_release", keys, "s1", 2) == 0
    assert shard.call("lease_release", keys, "s1", 1) == 1
    assert shard.call("lease_release", keys, "s1", 1) == 0
    assert not shard.admin.exists(shard.keys.workers)
    assert shard.take("s2 x") == [2, b"s2 x"]
    assert shard.take("s1") == [0, b"s2 x"]
    shard.admin.delete(shard.keys.lease)
    assert shard.take("s1") == [3, b"s1"]


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 2001, 5000])
def test_a_page_sets_and_deletes_whatever_its_size(shard: Shard, count: int) -> None:
    """Every field of a page arrives, also where the page is larger than Lua's stack."""
    shard.batches(1)
    shard.take()
    shard.begin(1, (1).to_bytes(8))
    shard.admin.hset(shard.keys.state, mapping={f"old{n}": "x" for n in range(4001)})
    sets = {b"k%d" % n: b"\x00field%d" % n for n in range(count)}
    deletes = tuple(b"old%d" % n for n in range(4001))
    assert shard.page(sets, deletes) == [b"OK"]
    assert shard.admin.hgetall(shard.keys.state) == sets


def test_a_page_stores_the_digest_and_renews_the_lease(shard: Shard) -> None:
    """The digest is stored with its page; the lease lasts for any number of pages."""
    shard.batches(1)
    shard.take(ttl=HOUR // 2)
    assert shard.begin(1, (1).to_bytes(8)) == [b"OK", None, None]
    assert shard.admin.pttl(shard.keys.lease) > HOUR // 2
    shard.take(ttl=HOUR // 2)
    assert shard.page({b"k": b"field"}, digest=b"sums") == [b"OK"]
    assert shard.admin.pttl(shard.keys.lease) > HOUR // 2
    assert shard.begin(1, (1).to_bytes(8)) == [b"OK", b"sums", None]
    # Each hash has its own.
    assert shard.page({b"k": b"field"}, digest=b"others", which="tables_digest") == [b"OK"]
    assert shard.begin(1, (1).to_bytes(8)) == [b"OK", b"sums", b"others"]


def test_who_lost_the_lease_writes_nothing(shard: Shard) -> None:
    """Begin, page and commit check fencing number and name before anything else."""
    shard.batches(1)
    one = (1).to_bytes(8)
    for setup in ("nobody", "another number", "another name"):
        if setup == "another number":
            shard.put(fence=1)
            shard.take("s1")
        elif setup == "another name":
            shard.admin.set(shard.keys.lease, "1 s2")
        shard.put(fold=MARK)
        before = shard.lists()
        subscription = shard.subscription
        assert shard.begin(1, one) == [b"FENCED"], setup
        assert shard.page({b"k": b"field"}) == [b"FENCED"], setup
        assert shard.commit(1, one, NO_ID, b"dead") == [b"FENCED"], setup
        assert shard.lists() == before
        assert subscription.none_came()


def test_a_scheduler_that_did_not_begin_writes_nothing(shard: Shard) -> None:
    """REWRITTEN is the reply to a page or commit of a write that the server does not have."""
    shard.batches(1)
    shard.take()
    one = (1).to_bytes(8)
    for _ in range(2):
        before = shard.lists()
        assert shard.page({b"k": b"field"}) == [b"REWRITTEN"]
        assert shard.commit(1, one) == [b"REWRITTEN"]
        assert shard.lists() == before
        assert shard.begin(1, one, mark=b"another!")[0] == b"OK"
    assert shard.page({b"k": b"field"}, mark=b"another!") == [b"OK"]


def test_a_lost_page_is_noticed_by_the_next_step(shard: Shard) -> None:
    """Each page moves the mark on: what a server without the last page has is the one before."""
    shard.batches(1)
    shard.take()
    one = (1).to_bytes(8)
    assert shard.begin(1, one)[0] == b"OK"
    lease = Lease("s1", 1, HOUR, MARK)
    assert shard.page({b"k1": b"field"}) == [b"OK"]
    lease = lease.after_page()
    kept = shard.admin.hgetall(shard.keys.meta)
    assert shard.page({b"k2": b"field"}, mark=lease.mark) == [b"OK"]
    shard.admin.hset(shard.keys.meta, mapping=kept)
    assert shard.page({b"k3": b"field"}, mark=lease.after_page().mark) == [b"REWRITTEN"]
    assert shard.commit(1, one, mark=lease.after_page().mark) == [b"REWRITTEN"]
    assert shard.commit(1, one, mark=lease.mark)[0] == b"OK"


def test_begin_refuses_a_position_outside_the_history(shard: Shard) -> None:
    """REWRITTEN: another epoch, beyond the head, another id at or below it; nothing was written."""
    shard.batches(3)
    shard.take()
    before = shard.lists()
    two, three = (2).to_bytes(8), (3).to_bytes(8)
    assert shard.begin(3, three, epoch=b"epoch--2") == [b"REWRITTEN"]
    assert shard.begin(4, three) == [b"REWRITTEN"]
    assert shard.begin(3, b"batch--9") == [b"REWRITTEN"]
    assert shard.begin(2, b"batch--9") == [b"REWRITTEN"]
    assert shard.lists() == before
    assert shard.begin(2, two)[0] == b"OK"
    assert shard.begin(3, three)[0] == b"OK"
    assert shard.begin(0, NO_ID)[0] == b"OK"


def test_begin_knows_the_snapshot_though_the_log_is_cut(shard: Shard) -> None:
    """A position that the log no longer has is in the history if it is the snapshot's."""
    shard.batches(2)
    shard.take()
    one = (1).to_bytes(8)
    shard.begin_and_commit(1, one, cut=1)
    assert shard.begin(1, one)[0] == b"OK"
    assert shard.begin(1, b"batch--9") == [b"REWRITTEN"]


def test_a_page_writes_whatever_it_is_given(shard: Shard) -> None:
    """More than one call can take, and names and fields of any bytes and lengths."""
    shard.batches(1)
    shard.take()
    shard.begin(1, (1).to_bytes(8))
    sizes = (0, 1, 31, 32, 255, 256, 65535, 65536)
    sets = {bytes((n,)) * (n + 1): bytes(range(256)) * 257 for n in range(128, 256, 31)}
    sets |= {b"size %d" % size: b"\xff" * size for size in sizes}
    sets |= {b"%d" % n: b"%d" % -n for n in range(5000)}
    assert shard.page(sets) == [b"OK"]
    assert shard.admin.hgetall(shard.keys.state) == sets
    gone = tuple(b"%d" % n for n in range(4999))
    mark = Lease("s1", 1, HOUR, MARK).after_page().mark
    assert shard.page({b"more": b"field"}, (*gone, b"absent"), mark=mark) == [b"OK"]
    left = {key: one for key, one in (sets | {b"more": b"field"}).items() if key not in gone}
    assert shard.admin.hgetall(shard.keys.state) == left


def test_begin_never_takes_back_how_far_fields_may_reach(shard: Shard) -> None:
    """fold_to grows only: pages of a scheduler that died are still there."""
    shard.batches(3)
    shard.take()
    assert shard.begin(3, (3).to_bytes(8))[0] == b"OK"
    assert shard.number("fold_to") == 3
    assert shard.begin(2, (2).to_bytes(8))[0] == b"OK"
    assert shard.number("fold_to") == 3


def test_only_the_ranges_asked_for_leave_the_server(shard: Shard) -> None:
    """Fields of other key ranges are looked at where they are."""
    state = {f"key/{n}".encode(): b"%d" % n for n in range(3000)}
    shard.admin.hset(shard.keys.state, mapping=state)
    wanted = {0, 0x4F, 255}
    cursor: Any = "0"
    found: dict[bytes, bytes] = {}
    while True:
        cursor, *rest = shard.call("state_ranges", [shard.keys.state], cursor, 100, "00 4f ff")
        found |= dict(zip(rest[::2], rest[1::2], strict=True))
        if cursor == b"0":
            break
    assert found == {key: one for key, one in state.items() if range_of(key.decode()) in wanted}
    assert len(found) > 10


def test_commit_moves_the_position_and_cuts_the_log(shard: Shard) -> None:
    """The cut goes up to the given offset, never beyond the snapshot; sizes stay right."""
    shard.batches(6)
    shard.take()
    entries = shard.admin.xrange(shard.keys.log)
    sizes = [len(fields[b"b"]) for _, fields in entries]
    assert shard.number("log_bytes") == sum(sizes)
    for offset, cut, stays in ((2, 0, 6), (3, 1, 5), (4, 9, 2), (6, 5, 1), (6, 6, 0), (6, 6, 0)):
        reply = shard.begin_and_commit(
            offset, offset.to_bytes(8), (offset - 1).to_bytes(8), cut=cut
        )
        size = sum(sizes[6 - stays :])
        assert reply == [b"OK", size]
        assert shard.number("log_bytes") == size
        assert shard.admin.xlen(shard.keys.log) == stays
        assert shard.number("snap_offset") == offset
        assert shard.hashes()["snap_id"] == offset.to_bytes(8)
    shard.append(7, waited=HOUR)
    assert shard.drain(log_limit=0)[:2] == [b"BATCH", 7]
    assert shard.admin.xrange(shard.keys.log)[0][0] == b"7-0"


def test_dead_letters_are_kept_up_to_a_limit_and_counted(shard: Shard) -> None:
    """The newest stay, all are counted."""
    shard.batches(1)
    shard.take()
    one = (1).to_bytes(8)
    assert not shard.number("dead")
    shard.begin_and_commit(1, one, NO_ID, b"a", b"b", most_dead=3)
    shard.begin_and_commit(1, one, NO_ID, most_dead=3)
    shard.begin_and_commit(1, one, NO_ID, b"c", b"d", most_dead=3)
    assert shard.admin.lrange(shard.keys.dead, 0, -1) == [b"b", b"c", b"d"]
    assert shard.number("dead") == 4
