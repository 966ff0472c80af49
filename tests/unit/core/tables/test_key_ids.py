"""Tables in the producer's buffer: ids are defined before their use, whatever Redis loses.

The machine is that of `test_buffer_machine` with tables in the place of objects. Sizes that tell
when ids get a chunk of their own are small here, so that few keys are enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from broker.core import packer as module
from broker.core.buffer import AddResult, ProducerBuffer
from broker.core.chunk_size import check_table_run
from broker.core.columns import Columns
from broker.core.key_ids import DEFINE_BYTES
from broker.core.sent_chunks import Packed
from broker.core.tables.input import Keys, column_runs, number_keys, text_keys
from broker.errors import EncodeError
from broker.protocol.codec import decode_chunk, encode_chunk
from broker.protocol.constants import MAX_CHUNK_BYTES, MAX_TABLE_DELTAS, MAX_TABLES
from broker.protocol.messages import Chunk, IdRange, TableDefine, TableKey, TableRun
from broker.protocol.names import shard_of
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET
from tests.effort import examples
from tests.unit.core.test_buffer_machine import INCARNATION, KEEP_S, LINGER, SHARD, SHARDS, Record
from tests.unit.exactness import exact
from tests.unit.table_model import KEYS as TABLES
from tests.unit.table_model import Model

NAMED = TableKey("t", "str-f64")
NODE = "n1"


@pytest.fixture(autouse=True)
def _small_defines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFINED_ALONG_BYTES", DEFINE_BYTES + 40)
    monkeypatch.setattr(module, "DEFINED_ALONE_BYTES", 100)
    monkeypatch.setattr(module, "DEFINED_AGAIN_BYTES", 240)


def buffer_of(**limits: Any) -> ProducerBuffer:
    """Return a buffer; limits that are not given do not matter."""
    given = {
        "shards": SHARDS,
        "max_bytes": 1 << 30,
        "max_count": 1000,
        "chunk_bytes": 1 << 18,
        "keep_s": KEEP_S,
        "keep_bytes": 1 << 30,
    }
    buffer = ProducerBuffer(node=NODE, **(given | limits))
    for lane in buffer.lanes:
        lane.incarnation = INCARNATION
    return buffer


def keys_of(buffer: ProducerBuffer, table: TableKey, numbers: list[int]) -> Keys | None:
    """Look keys up as a table's writer does; None if there is no room."""
    shards = len(buffer.lanes)
    if table.is_named:
        return text_keys(table, [f"k{number}" for number in numbers], shards, buffer.intern)
    return number_keys(table, np.array(numbers, dtype=np.uint64), shards)


def decoded(packed: Packed) -> Chunk:
    """Read a chunk's bytes; none of it may be skipped."""
    assert len(packed.data) <= MAX_CHUNK_BYTES
    chunk = decode_chunk(packed.data)
    assert not chunk.tables_fault
    assert chunk.deltas == packed.deltas
    return chunk


class TableBufferMachine(RuleBasedStateMachine):
    """Calls on tables, sending, lost answers and forgetting in any order.

    Whatever chunks the server holds in the end, in the order of their numbers, mean what the calls
    said: no id is used before it is defined, and none means another key.
    """

    @initialize(
        max_count=st.integers(1, 12),
        chunk_bytes=st.sampled_from([600, 1200, 10_000]),
        max_bytes=st.sampled_from([1000, 2000, 100_000]),
        keep_bytes=st.sampled_from([0, 800, 100_000]),
        conflates=st.booleans(),
    )
    def begin(self, **limits: Any) -> None:
        """Make a buffer of small limits."""
        self.buffer = buffer_of(**limits)
        self.now = 100.0
        self.records = [Record() for _ in range(SHARDS)]
        # Of each delta, whose place is its timestamp: table, operation, key and value.
        self.calls: list[tuple[TableKey, int, Any, Any]] = []

    @rule(
        table=st.sampled_from(TABLES),
        op=st.sampled_from([OP_SET, OP_INCREMENT, OP_DELETE]),
        first=st.integers(0, 60),
        count=st.integers(1, 12),
    )
    def write(self, table: TableKey, op: int, first: int, count: int) -> None:
        """Write to some keys; a refused write leaves no trace."""
        numbers = [*range(first, first + count)]
        keys = keys_of(self.buffer, table, numbers)
        if keys is None:
            return
        place = len(self.calls)
        stamps = np.arange(place, place + count)
        values = np.arange(place, place + count, dtype="<f8" if table.is_float else "<i8")
        names = [f"k{number}" if table.is_named else number for number in numbers]
        for name, value in zip(names, values.tolist(), strict=True):
            self.calls.append((table, op, name, None if op == OP_DELETE else value))
        for shard, run in column_runs(op, keys, None if op == OP_DELETE else values, stamps):
            before = self.buffer.bytes
            if self.buffer.add_table_run(shard, run, self.now) is AddResult.NO_ROOM:
                assert before > 0
                assert self.buffer.bytes == before
            else:
                assert before < self.buffer.bytes
                assert self.buffer.bytes <= self.buffer.max_bytes or not before

    @rule(table=st.sampled_from(TABLES), first=st.integers(0, 60), count=st.integers(1, 12))
    def look_up(self, table: TableKey, first: int, count: int) -> None:
        """Only look keys up."""
        before = self.buffer.bytes
        if keys_of(self.buffer, table, [*range(first, first + count)]) is None:
            assert self.buffer.bytes == before > 0

    @rule()
    def conflate(self) -> None:
        """Make room by dropping overwritten deltas."""
        before = self.buffer.bytes
        assert self.buffer.conflate() == before - self.buffer.bytes >= 0

    @rule()
    def close_all(self) -> None:
        """Close every open chunk."""
        self.buffer.close_all()

    @rule(seconds=st.sampled_from([0.1, 1.0, 15.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(shard=SHARD)
    def take(self, shard: int) -> None:
        """Send the next chunk; earlier ones may still be unanswered."""
        before = self.buffer.bytes
        packed, _ = self.buffer.next_chunk(shard, self.now, LINGER, 0)
        assert self.buffer.bytes <= before
        if packed is not None:
            decoded(packed)

    @rule(
        shard=SHARD,
        chunks=st.integers(1, 4),
        answers=st.sampled_from(["arrive", "arrive", "are lost"]),
    )
    def answer(self, shard: int, chunks: int, answers: str) -> None:
        """Deliver chunks to the server; replies, and the reply to `open`, may be lost."""
        for packed in list(self.buffer.lanes[shard].sent.in_flight)[:chunks]:
            status, number, total = self.records[shard].append(packed)
            if status == "MISSING":
                self._resume(shard, number, total, opened=answers == "arrive")
                return
            if answers == "arrive":
                self.buffer.accepted(shard, self.now)
        if answers != "arrive":
            self.buffer.requeue(shard)

    @rule(shard=SHARD, chunks=st.integers(1, 6))
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
        base, deltas, _ = self.buffer.rewind(shard, number, total, self.now)
        assert base >= number - 1
        lane = self.buffer.lanes[shard]
        assert [one.number for one in lane.sent.resend] == [*range(base + 1, lane.number + 1)]
        if opened:
            self.records[shard].open(base, deltas)

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def bytes_are_an_upper_bound(self) -> None:
        """Of what waits, as it will be packed, ids included; of nothing they are 0."""
        true_bytes = 0
        for lane in self.buffer.lanes:
            assert lane.buffered == lane.sent.accepted + lane.conflated + lane.pending
            waiting = Columns()
            for columns in (*lane.closed, lane.open):
                waiting.tables += columns.tables
            defines = [
                TableDefine(table, lane.names.defined.get(table, 0), keys[first:])
                for table, keys in lane.names._keys.items()
                if len(keys) > (first := lane.names.defined.get(table, 0))
            ]
            if waiting.tables or defines:
                parts = [*defines, *waiting.tables]
                empty = encode_chunk(Chunk(NODE, INCARNATION, 1, 0, []))
                true_bytes += len(encode_chunk(Chunk(NODE, INCARNATION, 1, 0, [], parts)))
                true_bytes -= len(empty)
            in_flight = [*lane.sent.in_flight, *lane.sent.resend]
            true_bytes += sum(
                len(one.data) for one in in_flight if one.number > lane.sent.accepted_number
            )
        assert true_bytes <= self.buffer.bytes

    @invariant()
    def the_server_has_what_was_called(self) -> None:
        """Each delta names the key that its call named, and has its value; each arrives once."""
        for shard, record in enumerate(self.records):
            model, arrived = Model(), []
            for number in sorted(record.chunks):
                chunk = decoded(record.chunks[number])
                for part in chunk.tables:
                    if isinstance(part, TableRun):
                        arrived += self._checked(model, chunk, part)
                    else:
                        assert model.apply(chunk_of(part)) == 0
            assert len(arrived) == len(set(arrived))
            for table in TABLES:
                of_table = [place for place in arrived if self.calls[place][0] == table]
                assert of_table == sorted(of_table)
            assert all(shard_of(key, SHARDS) == shard for key in _names(model))

    def _checked(self, model: Model, chunk: Chunk, run: TableRun) -> list[int]:
        """Return the call numbers of a run's deltas, each checked."""
        assert model.apply(chunk_of(run)) is not None, f"chunk {chunk.number} uses an unknown id"
        places = []
        table = model.tables[run.table]
        for key, value, place in model._deltas(table, run, NODE, INCARNATION):
            assert exact([run.table, run.op, key, value]) == exact([*self.calls[place]])
            places.append(place)
        return places

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
        self.bytes_are_an_upper_bound()
        self.the_server_has_what_was_called()
        assert self.buffer.is_accepted(tickets)
        assert self.buffer.pending == 0
        assert self.buffer.bytes == sum(lane.names.waiting_bytes for lane in self.buffer.lanes)


def _names(model: Model) -> Iterator[str]:
    for key, table in model.tables.items():
        if key.is_named:
            yield from table.keys


def chunk_of(*parts: TableDefine | TableRun) -> Chunk:
    """Return a chunk of this producer."""
    return Chunk(NODE, INCARNATION, 1, 0, [], [*parts])


@pytest.mark.timeout(900)  # shrinking a failure takes minutes
def test_every_delta_names_its_key_whatever_redis_forgets() -> None:
    """See the machine."""
    effort = settings(max_examples=examples(200), stateful_step_count=30)
    run_state_machine_as_test(TableBufferMachine, settings=effort)


# -- by example -----------------------------------------------------------------------------------


def write(buffer: ProducerBuffer, *numbers: int, table: TableKey = NAMED) -> None:
    """Set keys of a table to 1, each number another one, as a chunk of its own."""
    keys = keys_of(buffer, table, [*numbers])
    assert keys is not None
    for shard, run in column_runs(OP_SET, keys, 1, None):
        assert buffer.add_table_run(shard, run, 0.0) is not AddResult.NO_ROOM
    buffer.close_all()


def sent(buffer: ProducerBuffer, now: float) -> list[Packed]:
    """Accept everything; return the chunks."""
    chunks = []
    while (packed := buffer.next_chunk(0, now, 0.0, 0)[0]) is not None:
        chunks.append(packed)
        buffer.accepted(0, now)
    return chunks


def applied(*chunks: Packed) -> Model:
    """Return what the chunks write; none uses an id that it does not define."""
    model = Model()
    for packed in chunks:
        assert model.apply(decoded(packed)) is not None
    return model


@pytest.fixture
def one() -> ProducerBuffer:
    """Give a buffer of one shard that keeps chunks for 20 s."""
    return buffer_of(shards=1)


def test_ids_are_defined_again_where_their_chunks_are_lost(one: ProducerBuffer) -> None:
    """Ids are defined under the last lost chunk's number; deltas and numbers stay the same."""
    write(one, 1, 2)
    lost = sent(one, 0.0)
    write(one, 2, 3)
    kept = sent(one, 15.0)
    base, total, gone = one.rewind(0, 1, 0, 25.0)
    assert (base, total, gone) == (0, 2, 2)
    again = sent(one, 25.0)
    assert [packed.number for packed in again] == [1, 2]
    assert (again[0].deltas, again[1].data) == (0, kept[-1].data)
    assert set(applied(*again).tables[NAMED].held) == {"k2", "k3"}
    assert len(lost) == 1


def test_only_ids_of_lost_chunks_are_defined_again(one: ProducerBuffer) -> None:
    """Only ids of lost chunks are defined again, so that they fit in the lost chunks' place."""
    other = TableKey("other", "str-f64")
    write(one, *range(200), table=other)
    stay = sent(one, 0.0)
    write(one, 1)
    assert len(sent(one, 1.0)) == 1
    write(one, 1)
    sent(one, 15.0)
    number = len(stay) + 1
    assert one.rewind(0, number, 200, 25.0) == (number - 1, 201, 1)
    again = sent(one, 25.0)
    assert [packed.number for packed in again] == [number, number + 1]
    assert set(applied(*stay, *again).tables[NAMED].held) == {"k1"}


def test_definitions_that_took_a_lost_chunks_place_may_get_lost_themselves(
    one: ProducerBuffer,
) -> None:
    """They are sent again as the chunk with their number."""
    write(one, 1)
    sent(one, 0.0)
    write(one, 2)
    sent(one, 1.0)
    write(one, 1, 2)
    sent(one, 18.0)
    assert one.rewind(0, 1, 0, 22.0)[0] == 1
    assert [packed.number for packed in sent(one, 22.0)] == [2, 3]
    # Redis returns with the number that `open` gave it, and only the last chunk is still kept.
    one.lanes[0].sent.kept.popleft()
    assert one.rewind(0, 2, 2, 23.0)[0] == 1
    again = sent(one, 23.0)
    assert [packed.number for packed in again] == [2, 3]
    assert set(applied(*again).tables[NAMED].held) == {"k1", "k2"}


def test_several_chunks_of_definitions_may_get_lost_in_part(one: ProducerBuffer) -> None:
    """Where both chunks are lost, the second repeats the definitions of the first."""
    write(one, *range(200))
    many = sent(one, 0.0)
    write(one, 0, 199)
    sent(one, 15.0)
    base, *_ = one.rewind(0, 1, 0, 25.0)
    again = sent(one, 25.0)
    assert [packed.number for packed in again] == [*range(base + 1, len(many) + 2)]
    assert len(again) > 2
    while len(one.lanes[0].sent.kept) > 2:
        one.lanes[0].sent.kept.popleft()
    assert one.rewind(0, again[-2].number - 1, 200, 26.0)[0] == again[-2].number - 2
    last = sent(one, 26.0)
    assert [packed.number for packed in last] == [one.number for one in again[-3:]]
    assert set(applied(*again[:-3], *last).tables[NAMED].held) == {"k0", "k199"}


def test_ids_that_nothing_kept_relies_on_wait_for_the_next_deltas(one: ProducerBuffer) -> None:
    """Where every chunk is lost the next chunk defines its ids, under a new number."""
    write(one, 1, 2)
    sent(one, 0.0)
    assert one.rewind(0, 1, 0, 25.0) == (1, 2, 2)
    assert sent(one, 25.0) == []
    write(one, 2)
    (packed,) = sent(one, 25.0)
    assert packed.number == 2
    assert set(applied(packed).tables[NAMED].held) == {"k2"}


def test_ids_alone_do_not_stand_in_the_way_of_their_deltas() -> None:
    """Ids are sent without deltas only when a caller found no room."""
    buffer = buffer_of(shards=1, max_bytes=1000)
    assert keys_of(buffer, NAMED, [*range(60)]) is not None
    assert sent(buffer, 0.0) == []
    assert keys_of(buffer, NAMED, [*range(60, 120)]) is None
    chunks = sent(buffer, 0.0)
    assert chunks
    assert buffer.bytes == 0
    assert keys_of(buffer, NAMED, [*range(60, 120)]) is not None
    assert {packed.deltas for packed in chunks} == {0}


def test_a_producer_refuses_one_table_too_many() -> None:
    """The error names the limit; tables that it writes already go on."""
    buffer = buffer_of()
    for number in range(MAX_TABLES):
        buffer.admit_table(TableKey(f"t{number}", "u64-f64"))
    with pytest.raises(EncodeError, match=f"'more' is one more than the {MAX_TABLES}"):
        buffer.admit_table(TableKey("more", "u64-f64"))
    buffer.admit_table(TableKey("t0", "u64-f64"))


def test_a_producer_refuses_a_call_of_too_many_deltas() -> None:
    """Deleting a range of ids is a few bytes, but not a few deltas, for every reader."""
    run = TableRun(OP_DELETE, NAMED, IdRange(0, MAX_TABLE_DELTAS))
    check_table_run(run, "keys")
    with pytest.raises(EncodeError, match="split them into calls"):
        check_table_run(replace(run, keys=IdRange(0, MAX_TABLE_DELTAS + 1)), "keys")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_chunk_with_its_definitions_is_within_the_limit(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk with its definitions stays within the limit, however full it is."""
    monkeypatch.setattr(module, "DEFINED_ALONG_BYTES", 64 << 10)
    table = TableKey("t" * 64, "u64-f64")
    most = (MAX_CHUNK_BYTES - parts * 250) // 8 // parts
    for close in range(0, 60, 3):
        buffer = buffer_of(shards=1, chunk_bytes=MAX_CHUNK_BYTES, max_count=most)
        numbers = np.arange(most - close, dtype=np.uint64)
        for _ in range(parts):
            for shard, run in column_runs(OP_DELETE, number_keys(table, numbers, 1), None, None):
                check_table_run(run, "keys")
                buffer.add_table_run(shard, run, 0.0)
            buffer.close_all()
        for name in "abcdef":
            write(buffer, *range(10 * parts), table=TableKey(name * 64, "str-f64"))
        for packed in sent(buffer, 0.0):
            decoded(packed)
