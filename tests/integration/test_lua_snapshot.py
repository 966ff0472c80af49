"""The Lua commands of schedulers, called as their heads say, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.protocol import NO_ID
from tests.integration.lua_shard import HOUR, Shard
from tests.servers import Server


@pytest.fixture
def shard(server: Server, namespace: str) -> Iterator[Shard]:
    """Give a shard that does not exist yet."""
    made = Shard(server, namespace)
    yield made
    made.close()


# -- lease and snapshot ---------------------------------------------------------------------------


def test_one_holds_the_lease_and_each_new_holder_has_a_higher_number(shard: Shard) -> None:
    """Taking again renews; another one is told who holds it; after release or expiry the next."""
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
    shard.take()
    shard.admin.hset(shard.keys.state, mapping={f"old{n}": "x" for n in range(4001)})
    sets = {b"k%d" % n: b"\x00field%d" % n for n in range(count)}
    deletes = tuple(b"old%d" % n for n in range(4001))
    assert shard.page(sets, deletes) == [b"OK"]
    assert shard.admin.hgetall(shard.keys.state) == sets


def test_who_lost_the_lease_writes_nothing(shard: Shard) -> None:
    """Page and commit check fencing number and name before anything else."""
    shard.batches(1)
    one = (1).to_bytes(8)
    for setup in ("nobody", "another number", "another name"):
        if setup == "another number":
            shard.put(fence=1)
            shard.take("s1")
        elif setup == "another name":
            shard.admin.set(shard.keys.lease, "1 s2")
        before = shard.lists()
        subscription = shard.subscription
        assert shard.page({b"k": b"field"}) == [b"FENCED"], setup
        assert shard.commit(1, one, NO_ID, b"dead") == [b"FENCED"], setup
        assert shard.lists() == before
        assert subscription.none_came()


def test_commit_refuses_a_position_outside_the_history(shard: Shard) -> None:
    """REWRITTEN: another epoch, beyond the head, or another id at the head; nothing was written."""
    shard.batches(2)
    shard.take()
    before = shard.lists()
    two = (2).to_bytes(8)
    assert shard.commit(2, two, epoch=b"epoch--2") == [b"REWRITTEN"]
    assert shard.commit(3, two) == [b"REWRITTEN"]
    assert shard.commit(2, b"batch--9") == [b"REWRITTEN"]
    assert shard.lists() == before
    assert shard.commit(2, two)[0] == b"OK"


def test_commit_refuses_another_id_below_the_head(shard: Shard) -> None:
    """REWRITTEN also where the history was cut back and has grown past the position since."""
    shard.batches(3)
    shard.take()
    assert shard.commit(2, b"batch--9") == [b"REWRITTEN"]


def test_commit_moves_the_position_and_cuts_the_log(shard: Shard) -> None:
    """The cut goes up to the offset asked for, never beyond the snapshot; sizes stay right."""
    shard.batches(6)
    shard.take()
    entries = shard.admin.xrange(shard.keys.log)
    sizes = [len(fields[b"b"]) for _, fields in entries]
    assert shard.number("log_bytes") == sum(sizes)
    for offset, cut, stays in ((2, 0, 6), (3, 1, 5), (4, 9, 2), (6, 5, 1), (6, 6, 0), (6, 6, 0)):
        reply = shard.commit(offset, offset.to_bytes(8), (offset - 1).to_bytes(8), cut=cut)
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
    shard.commit(1, one, NO_ID, b"a", b"b", most_dead=3)
    shard.commit(1, one, NO_ID, most_dead=3)
    shard.commit(1, one, NO_ID, b"c", b"d", most_dead=3)
    assert shard.admin.lrange(shard.keys.dead, 0, -1) == [b"b", b"c", b"d"]
    assert shard.number("dead") == 4
