"""The producer's buffer against a server that accepts each number once, and may lose data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from broker.core.buffer import AddResult, ProducerBuffer
from broker.core.chunk_size import CHUNK_HEAD_BYTES, RUN_BYTES
from broker.core.columns import Columns
from broker.core.lane import Lane
from broker.core.sent_chunks import Packed
from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.frames import FrameReader
from broker.protocol.messages import Chunk
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from tests.effort import examples
from tests.unit.core.test_buffer import size_of
from tests.unit.exactness import exact
from tests.unit.model_history import Delta, apply_delta

SHARDS = 2
LINGER = 0.5
KEEP_S = 20.0
INCARNATION = 7

SHARD = st.integers(0, SHARDS - 1)
KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from([0, 1, 2.5, "x" * 30, "x" * 200])
DELTAS = st.one_of(
    st.tuples(st.just(OP_SET), KEYS, VALUES),
    st.tuples(st.just(OP_INCREMENT), KEYS, st.sampled_from([1, 0.5])),
    st.tuples(st.just(OP_DELETE), KEYS, st.none()),
)
GROUPS = st.dictionaries(KEYS, VALUES, min_size=1)


@dataclass
class Call:
    """One delta as the caller gave it; its place in the lane's calls is sent as its timestamp."""

    delta: Delta
    group: int | None = None


@dataclass
class Record:
    """The server's record of one lane: `append.lua` in a few lines."""

    last: int = 0
    total: int = 0
    chunks: dict[int, Packed] = field(default_factory=dict)

    def append(self, packed: Packed) -> tuple[str, int, int]:
        """Accept a chunk once, in order."""
        if packed.number <= self.last:
            return "DUPLICATE", 0, 0
        if packed.number > self.last + 1:
            return "MISSING", self.last + 1, self.total
        self.last, self.total = packed.number, self.total + packed.deltas
        self.chunks[packed.number] = packed
        return "OK", 0, 0

    def open(self, base: int, total: int) -> None:
        """Let the producer continue after a loss."""
        self.last, self.total = base, total

    def forget(self, chunks: int) -> None:
        """Restart with fewer chunks; gaps that were opened are included."""
        for _ in range(min(chunks, len(self.chunks))):
            number = max(self.chunks)
            packed = self.chunks.pop(number)
            self.last, self.total = number - 1, packed.total - packed.deltas

    @property
    def calls(self) -> list[int]:
        """Places of the calls that the chunks hold, in their order."""
        return [place for number in sorted(self.chunks) for place in places(self.chunks[number])]


def opened(data: bytes) -> Chunk:
    """A chunk, compressed or not."""
    return decode_chunk(data, FrameReader())


def places(packed: Packed) -> list[int]:
    """Places of the calls in a chunk."""
    return [stamp for run in opened(packed.data).runs for stamp in run.timestamps or ()]


def calls_in(columns: Columns) -> list[int]:
    """Places of the calls that wait in columns."""
    return [stamp for run in columns.runs for stamp in run.timestamps or ()]


def packed_size(columns: Columns) -> int:
    """How much room columns take on the wire, without the chunk's own fields."""
    empty = encode_chunk(Chunk("n1", INCARNATION, 1, 0, []))
    return len(encode_chunk(Chunk("n1", INCARNATION, 1, 0, columns.runs))) - len(empty)


class BufferMachine(RuleBasedStateMachine):
    """Calls, sending, lost answers, forgetting and conflating in any order.

    Each call is at any moment in one place: waiting, in a chunk on its way or accepted, dropped for
    a newer one, or lost and counted. What was accepted is in the order of the calls.
    """

    @initialize(
        max_count=st.integers(1, 6),
        chunk_bytes=st.sampled_from([600, 1200, 10_000]),
        max_bytes=st.sampled_from([700, 2000, 100_000]),
        keep_bytes=st.sampled_from([0, 800, 100_000]),
        conflates=st.booleans(),
        level=st.sampled_from([0, 1]),
    )
    def begin(self, conflates: bool, **limits: int) -> None:  # noqa: FBT001 - given by name
        """Make a buffer of small limits."""
        self.buffer = ProducerBuffer(
            node="n1",
            shards=SHARDS,
            keep_s=KEEP_S,
            conflates=conflates,
            **limits,
        )
        for lane in self.buffer.lanes:
            lane.incarnation = INCARNATION
        self.now = 100.0
        self.groups = 0
        self.calls: list[list[Call]] = [[] for _ in range(SHARDS)]
        self.records = [Record() for _ in range(SHARDS)]
        self.seen: list[dict[int, bytes]] = [{} for _ in range(SHARDS)]
        self.lost: list[set[int]] = [set() for _ in range(SHARDS)]

    # -- calls ------------------------------------------------------------------------------------

    @rule(shard=SHARD, deltas=st.lists(DELTAS, min_size=1, max_size=5))
    def add(self, shard: int, deltas: list[Delta]) -> None:
        """Buffer deltas one by one; a refused one leaves no trace."""
        lane, calls = self.buffer.lanes[shard], self.calls[shard]
        for op, key, value in deltas:
            size = size_of(op, key, value, stamped=True)
            before = self.buffer.bytes
            first, closed = not lane.open.count, len(lane.closed)
            result = self.buffer.add(shard, op, key, value, size, len(calls), self.now)
            if result is AddResult.NO_ROOM:
                assert before + size > self.buffer.max_bytes - CHUNK_HEAD_BYTES - RUN_BYTES
                assert self.buffer.bytes == before
                continue
            assert self.buffer.bytes > before
            assert self.buffer.bytes <= self.buffer.max_bytes or not before
            assert result is AddResult.WAKE or not (first or len(lane.closed) > closed)
            calls.append(Call((op, key, value)))

    @rule(shard=SHARD, group=GROUPS)
    def add_many(self, shard: int, group: dict[str, Any]) -> None:
        """Buffer sets that have to become visible at once."""
        calls = self.calls[shard]
        # All of a group carry one timestamp, so calls of a group are looked up by the first one.
        size = sum(size_of(OP_SET, key, value, stamped=True) for key, value in group.items())
        before = self.buffer.bytes
        result = self.buffer.add_many(
            shard, list(group), list(group.values()), size, len(calls), self.now
        )
        if result is AddResult.NO_ROOM:
            assert before > 0
            assert self.buffer.bytes == before
            return
        first = len(calls)
        self.groups += 1
        calls += [Call((OP_SET, key, value), first) for key, value in group.items()]

    @rule()
    def conflate(self) -> None:
        """Make room by dropping overwritten deltas."""
        before = self.buffer.bytes
        freed = self.buffer.conflate()
        assert freed == before - self.buffer.bytes >= 0

    @rule()
    def close_all(self) -> None:
        """Close every open chunk."""
        self.buffer.close_all()
        assert all(not lane.open.count for lane in self.buffer.lanes)

    @rule(seconds=st.sampled_from([0.1, 1.0, 15.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    # -- the server -------------------------------------------------------------------------------

    @rule(shard=SHARD)
    def take(self, shard: int) -> None:
        """Send the next chunk; earlier ones may still be unanswered."""
        lane = self.buffer.lanes[shard]
        in_flight, waits = list(lane.sent.in_flight), bool(lane.sent.resend or lane.closed)
        since, count = lane.open.since, lane.open.count
        before = self.buffer.bytes
        packed, wait = self.buffer.next_chunk(shard, self.now, LINGER, round(self.now))
        assert self.buffer.bytes <= before
        if packed is None:
            assert not waits
            left = since + LINGER - self.now
            assert wait == (pytest.approx(left) if count else None)
            assert wait is None or wait > 0
            return
        assert wait is None
        assert list(lane.sent.in_flight) == [*in_flight, packed]
        self._check_chunk(shard, packed)

    @rule(
        shard=SHARD,
        chunks=st.integers(1, 4),
        answers=st.sampled_from(["arrive", "arrive", "are lost", "busy"]),
    )
    def answer(self, shard: int, chunks: int, answers: str) -> None:
        """Deliver chunks to the server; replies, and the reply to `open`, may be lost."""
        lane, record = self.buffer.lanes[shard], self.records[shard]
        for packed in list(lane.sent.in_flight)[:chunks]:
            if answers == "busy":
                break
            status, number, total = record.append(packed)
            if answers == "are lost" and status != "MISSING":
                continue
            if status == "MISSING":
                self._resume(shard, number, total, opened=answers == "arrive")
                return
            self.buffer.accepted(shard, self.now)
        if answers != "arrive":
            # What was not sent yet, too: it follows the others.
            waiting = [*lane.sent.in_flight, *lane.sent.resend]
            self.buffer.requeue(shard)
            assert list(lane.sent.resend) == waiting
            assert not lane.sent.in_flight

    @rule(shard=SHARD, chunks=st.integers(1, 4))
    def forget(self, shard: int, chunks: int) -> None:
        """Restart the server with fewer chunks."""
        self.records[shard].forget(chunks)

    @rule(shard=SHARD)
    def probe(self, shard: int) -> None:
        """Ask for the server's last chunk, as an idle producer does."""
        lane, record = self.buffer.lanes[shard], self.records[shard]
        if not (lane.sent.in_flight or lane.sent.resend or lane.closed or lane.open.count) and (
            record.last < lane.number
        ):
            self._resume(shard, record.last + 1, record.total, opened=True)

    def _resume(self, shard: int, number: int, total: int, *, opened: bool) -> None:
        lane, record = self.buffer.lanes[shard], self.records[shard]
        base, deltas, lost = self.buffer.rewind(shard, number, total, self.now)
        assert [one.number for one in lane.sent.resend] == [*range(base + 1, lane.number + 1)]
        assert not lane.sent.in_flight
        assert base >= number - 1
        gone = {n for n in range(number, base + 1) if n not in record.chunks}
        news = gone - self.lost[shard]
        self.lost[shard] |= gone
        assert lost == sum(self._deltas(shard, n) for n in news)
        if opened:
            record.open(base, deltas)

    def _deltas(self, shard: int, number: int) -> int:
        return opened(self.seen[shard][number]).deltas

    def _check_chunk(self, shard: int, packed: Packed) -> None:
        """A chunk never changes, is within the limits, and does not part a group."""
        known = self.seen[shard].setdefault(packed.number, packed.data)
        assert known == packed.data
        chunk = opened(packed.data)
        assert (chunk.number, chunk.deltas) == (packed.number, packed.deltas)
        if self.buffer._packer.conflates:
            fresh = [(run.op, key) for run in chunk.runs for key in run.keys]
            sets = [key for op, key in fresh if op != OP_INCREMENT]
            assert len(sets) == len(set(sets)), "a chunk sets or deletes a key once"
        groups = {self.calls[shard][place].group for place in places(packed)}
        if groups == {None}:
            assert len(packed.data) <= self.buffer.chunk_bytes or packed.deltas == 1

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def everything_is_somewhere(self) -> None:
        """Counts add up, and bytes are an upper bound of what waits."""
        true_bytes = 0
        for lane, calls in zip(self.buffer.lanes, self.calls, strict=True):
            assert lane.buffered == len(calls)
            assert lane.buffered == lane.sent.accepted + lane.conflated + lane.pending
            waiting = [lane.open, *lane.closed]
            unsent = sum(columns.count for columns in waiting)
            assert lane.packed + unsent + lane.conflated == lane.buffered
            assert [len(calls_in(one)) for one in waiting] == [one.count for one in waiting]
            in_flight = [*lane.sent.in_flight, *lane.sent.resend]
            assert [one.number for one in in_flight] == [
                *range(lane.number + 1 - len(in_flight), lane.number + 1)
            ]
            unaccepted = [one for one in in_flight if one.total > lane.sent.accepted]
            assert lane.pending == unsent + sum(one.deltas for one in unaccepted)
            assert 0 <= lane.sent.lost <= lane.sent.accepted
            assert lane.sent.kept_bytes == sum(len(one.data) for one, _ in lane.sent.kept)
            true_bytes += sum(map(packed_size, waiting))
            true_bytes += sum(len(one.data) for one in unaccepted)
            self._groups_are_whole(lane)
        assert true_bytes <= self.buffer.bytes
        if not self.buffer.pending:
            assert self.buffer.bytes == 0

    def _groups_are_whole(self, lane: Lane) -> None:
        """The rest of a conflated group is in one chunk."""
        homes: dict[int, int] = {}
        calls = self.calls[lane.shard]
        for home, columns in enumerate((lane.open, *lane.closed)):
            for place in calls_in(columns):
                group = calls[place].group
                if group is not None:
                    assert homes.setdefault(group, home) == home

    @invariant()
    def the_server_has_what_was_called_in_order(self) -> None:
        """No call is accepted twice or before an earlier call."""
        for shard, record in enumerate(self.records):
            arrived = record.calls
            assert arrived == sorted(arrived)
            singles = [one for one in arrived if self.calls[shard][one].group is None]
            assert len(singles) == len(set(singles))

    def teardown(self) -> None:
        """At the end everything is accepted, except for conflated and lost deltas."""
        if not hasattr(self, "buffer"):
            return
        tickets = self.buffer.close_all()
        for shard in range(SHARDS):
            for _ in range(400):
                is_empty = self.buffer.next_chunk(shard, self.now, 0.0, 0) == (None, None)
                self.answer(shard, 4, "arrive")
                if is_empty:
                    self.probe(shard)
                lane = self.buffer.lanes[shard]
                if is_empty and not (lane.sent.in_flight or lane.sent.resend):
                    break
            else:
                raise AssertionError("the lane never became empty")
        self.everything_is_somewhere()
        assert self.buffer.is_accepted(tickets)
        assert (self.buffer.bytes, self.buffer.pending) == (0, 0)
        for shard, lane in enumerate(self.buffer.lanes):
            self._check_outcome(shard, lane)

    def _check_outcome(self, shard: int, lane: Lane) -> None:
        record = self.records[shard]
        missing = set(range(1, lane.number + 1)) - record.chunks.keys()
        assert lane.sent.lost >= sum(self._deltas(shard, number) for number in missing)
        arrived: dict[str, Any] = {}
        for number in sorted(record.chunks):
            for run in opened(record.chunks[number].data).runs:
                for key, value in zip(run.keys, run.values or [None] * len(run.keys), strict=True):
                    apply_delta(arrived, (run.op, key, value))
        expected: dict[str, Any] = {}
        for call in self.calls[shard]:
            apply_delta(expected, call.delta)
        if not missing:
            assert exact(arrived) == exact(expected)
        if not self.lost[shard]:
            assert not missing


@pytest.mark.timeout(900)  # shrinking a failure takes minutes
def test_every_call_arrives_once_in_order_or_is_counted() -> None:
    """Every call is accepted once and in order, or counted as lost or conflated."""
    effort = settings(max_examples=examples(200), stateful_step_count=30)
    run_state_machine_as_test(BufferMachine, settings=effort)
