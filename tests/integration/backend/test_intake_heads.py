"""What producers may write stops no shard: a head that cannot be meant is made anew."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from tests.integration.lua_shard import HOUR, Shard


@pytest.mark.parametrize("ahead", [(1 << 53), None])
def test_a_head_ahead_of_the_clock_numbers_nothing(shard: Shard, ahead: int | None) -> None:
    """Else one write of a producer would end the numbers of a shard, which its readers wait for."""
    shard.opened()
    assert shard.append(1, max_age=0)[0] == b"OK"
    shard.put(appends=ahead or 1000 * (shard.now() + 48 * HOUR))
    assert shard.drain() == [b"IDLE", -1]
    with pytest.raises(ResponseError, match=r"DAMAGED .*:intake :head"):
        shard.append(2)
    shard.heartbeat()
    assert shard.drain()[0] == b"BATCH"
    assert shard.number("covered") <= 1000 * (shard.now() + 1)
    assert shard.append(2)[0] == b"OK"


def test_a_count_that_is_due_beyond_the_last_append_makes_nothing_due(shard: Shard) -> None:
    """Else each chunk would be published alone until somebody drains an empty queue."""
    shard.opened()
    shard.append(1)
    shard.put(count_due=shard.number("appends") + 10**9)
    assert shard.drain() == [b"IDLE", -1]
    shard.heartbeat()
    assert shard.number("count_due") == 0


def test_a_due_of_an_empty_queue_makes_nobody_wait(shard: Shard) -> None:
    """Else producers would be BUSY for as long as somebody wrote into the head."""
    shard.opened()
    shard.put(due_ms=shard.now() + 23 * HOUR, pending_bytes=1 << 52)
    assert shard.append(1)[0] == b"BUSY"
    shard.heartbeat()
    assert shard.drain() == [b"IDLE", -1]
    assert shard.append(1)[0] == b"OK"


def test_a_head_of_a_new_shard_is_not_taken_where_there_is_a_history(shard: Shard) -> None:
    """A producer that opens makes a head where there is none; the heartbeat knows better."""
    shard.opened()
    shard.append(1, deltas=3, max_age=0)
    assert shard.drain()[0] == b"BATCH"
    shard.admin.hdel(shard.keys.intake, ":head")
    shard.opened("n2")
    shard.append(1, node="n2", deltas=4, max_age=0)
    assert shard.drain() == [b"IDLE", -1]
    shard.heartbeat()
    assert shard.drain()[0] == b"BATCH"
    assert shard.number("accepted") == shard.number("published") == 7
