"""Any sequence of appends, garbage, lost heads and drains on a real server, against a model."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from redis.exceptions import ResponseError

from broker.backend.stored import QueueEntry
from broker.protocol.constants import BULK_BYTES
from broker.testing.server import Server
from tests.effort import examples
from tests.integration.lua_shard import HOUR, Shard, packed_entry

NODES = ("n1", "n2", "n3")
GARBAGE = (
    b"",
    b"no chunk",
    b"\1",
    packed_entry(QueueEntry(1, 1, 1, "n1")),
    packed_entry(QueueEntry(1 << 62, 1 << 62, 9, "n2")),
)

STEPS = st.one_of(
    st.tuples(
        *(st.just("append"), st.sampled_from(NODES), st.integers(0, 60), st.integers(0, 12)),
        *(st.booleans(), st.sampled_from([0, 0, 0, BULK_BYTES])),
    ),
    st.tuples(st.just("repeat"), st.sampled_from(NODES), st.integers(0, 3)),
    st.tuples(st.just("hole"), st.sampled_from(NODES), st.integers(2, 5)),
    st.tuples(st.just("take"), st.sampled_from(NODES)),
    st.tuples(st.just("drain"), st.integers(1, 5), st.sampled_from([1, 60, 1 << 20])),
    st.tuples(st.just("garbage"), st.integers(0, 9), st.sampled_from(GARBAGE)),
    st.tuples(st.just("spoil"), st.sampled_from([b"", b"x" * 56, b"\xff" * 56])),
    st.tuples(st.just("beat")),
)


class Model:
    """What the commands have to do, beside a shard on which they do it."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.subscription = shard.subscription
        shard.heartbeat(HOUR)
        self.subscription.next()
        shard.opened(*NODES)
        self.incarnations = dict.fromkeys(NODES, 5)
        self.numbers = dict.fromkeys(NODES, 0)
        self.totals = dict.fromkeys(NODES, 0)
        # The queue: chunks with their deltas and nodes, and garbage, which is None.
        self.queue: list[tuple[bytes, int] | None] = []
        self.accepted: list[bytes] = []
        self.published: list[bytes] = []
        self.deltas: Counter[str] = Counter()
        self.offset = 0
        self.is_spoilt = False
        self.last_append = 0

    def append(self, node: str, size: int, deltas: int, is_due: bool, more: int) -> None:  # noqa: FBT001
        """The next chunk of a node is accepted, unless the head cannot be read."""
        number = self.numbers[node] + 1
        data = f"{node} {self.incarnations[node]} {number} ".encode() + b"x" * (size + more)
        append: Any = self.shard.append_pushed if more else self.shard.append
        given = {"deltas": deltas * 100, "waited": HOUR if is_due else 0}
        deltas *= 100
        place = (number, data, node, self.incarnations[node])
        if self.is_spoilt:
            with pytest.raises(ResponseError, match="DAMAGED"):
                append(*place, **given)
            return
        reply = append(*place, **given)
        assert reply[0] == b"OK"
        assert reply[1] > self.last_append
        self.last_append = reply[1]
        self.numbers[node] = number
        self.totals[node] += deltas
        self.queue.append((data, deltas))
        self.accepted.append(data)
        self.deltas["accepted"] += deltas

    def repeat(self, node: str, back: int) -> None:
        """A chunk that was accepted is recognised."""
        number = self.numbers[node] - back
        if number > 0 and not self.is_spoilt:
            reply = self.shard.append(number, b"again", node, self.incarnations[node])
            assert reply[0] == b"DUPLICATE"

    def hole(self, node: str, ahead: int) -> None:
        """A chunk whose predecessor is not here is refused, with what is here."""
        number = self.numbers[node] + ahead
        reply = self.shard.append(number, b"ahead", node, self.incarnations[node])
        assert reply == [b"MISSING", self.numbers[node] + 1, self.totals[node]]

    def take(self, node: str) -> None:
        """Another process takes the name, and the one before is fenced."""
        if self.is_spoilt and len(self.shard.admin.hget(self.shard.keys.intake, ":head")) != 56:
            with pytest.raises(ResponseError, match="DAMAGED"):
                self.shard.open(node)
            return
        before = self.incarnations[node]
        self.incarnations[node] = self.shard.open(node)[1]
        assert self.shard.append(1, b"old", node, before) == [b"FENCED", self.incarnations[node]]
        self.numbers[node] = self.totals[node] = 0

    def garbage(self, at: int, data: bytes) -> None:
        """Somebody puts something between two chunks."""
        at = min(at, len(self.queue))
        if None in self.queue[max(0, at - 1) : at + 1]:
            return  # two of them could look like a chunk and its entry
        pair = [(one is not None) + 1 for one in self.queue]
        elements = self.shard.admin.lrange(self.shard.keys.queue, 0, -1)
        elements.insert(sum(pair[:at]), data)
        self.shard.admin.delete(self.shard.keys.queue)
        self.shard.admin.rpush(self.shard.keys.queue, *elements)
        self.queue.insert(at, None)

    def spoil(self, head: bytes) -> None:
        """Somebody overwrites the head."""
        self.shard.admin.hset(self.shard.keys.intake, ":head", head)
        self.is_spoilt = True

    def beat(self) -> None:
        """A heartbeat makes the head anew."""
        self.shard.heartbeat(HOUR)
        self.is_spoilt = False
        waiting = [one for one in self.queue if one is not None]
        head = self.shard.head()
        assert head.pending_bytes == sum(len(data) for data, _ in waiting)
        assert head.accepted == self.deltas["published"] + sum(deltas for _, deltas in waiting)
        assert head.accepted == self.deltas["accepted"]

    def drain(self, most: int, size: int) -> bytes:
        """A batch is a prefix of the queue, within both limits, and garbage is removed."""
        reply = self.shard.drain(max_chunks=most, max_bytes=size)
        status: bytes = reply[0]
        if self.is_spoilt:
            assert reply == [b"IDLE", -1]
        if status != b"BATCH":
            return status
        self.offset += 1
        assert reply[1] == self.offset
        batch = self.subscription.batch()
        wanted, taken, missing, deltas = list[bytes](), 0, 0, 0
        while len(wanted) < len(batch.chunks) or missing < reply[8]:
            one = self.queue[taken]
            taken += 1
            if one is None:
                missing += 1
            else:
                wanted.append(one[0])
                deltas += one[1]
        assert (batch.chunks, missing) == (wanted, reply[8])
        assert (reply[3], reply[4]) == (deltas, len(wanted))
        assert 1 <= taken <= most
        assert len(wanted) <= 1 or sum(map(len, wanted)) <= size
        del self.queue[:taken]
        self.published += wanted
        self.deltas["published"] += deltas
        self.deltas["missing"] += missing
        return status

    def finish(self) -> None:
        """Everything is published, once and in its order, and counted."""
        self.beat()
        while self.queue:
            self.shard.put(due_ms=1)
            assert self.drain(5, 1 << 20) == b"BATCH"
        assert self.drain(5, 1 << 20) == b"IDLE"
        assert self.published == self.accepted
        head = self.shard.head()
        assert (head.pending_bytes, head.due_ms) == (0, 0)
        assert head.accepted == self.shard.number("published") == self.deltas["accepted"]
        assert self.shard.number("missing") == self.deltas["missing"]
        assert not self.shard.admin.exists(self.shard.keys.queue)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(STEPS, max_size=30))
def test_what_was_accepted_is_published_once_in_its_order(
    server: Server, steps: list[tuple[Any, ...]]
) -> None:
    """Whatever others put into the queue or the head, and whatever the limits of a batch are."""
    shard = Shard(server, f"t-{uuid.uuid4().hex[:12]}")
    try:
        model = Model(shard)
        for name, *arguments in steps:
            getattr(model, name)(*arguments)
        model.finish()
    finally:
        for key in shard.lists():
            shard.admin.delete(key)
        shard.close()
