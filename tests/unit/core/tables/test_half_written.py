"""Tables that are loaded while schedulers write and crash equal the history, with the log.

A load reads each field at a moment of its own, from its begin to its end, as HSCAN may. Meanwhile
full states are written field by field, are committed or not, and the next scheduler goes on from
what it finds. Blocks have 8 slots here instead of 512, so that what Hypothesis finds stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from broker.core.tables.shard import ShardTables
from broker.protocol.messages import Chunk, TableKey
from broker.protocol.operations import OP_DEFINE, OP_DELETE, OP_INCREMENT, OP_SET
from tests.effort import examples
from tests.unit.table_model import Act, Call, Model, chunks_of, told

SLOTS = 8

TABLES = [TableKey("t", "str-i64"), TableKey("t", "u64-f64")]


@st.composite
def acts(draw: st.DrawFn) -> Act:
    """Return one call of a node: on a range of keys, or on one; every value is another one.

    Some chunks use an id that only a later one defines.
    """
    op = draw(st.sampled_from([OP_SET, OP_SET, OP_INCREMENT, OP_DELETE, OP_DEFINE]))
    first, count = draw(st.integers(0, 24)), draw(st.sampled_from([1, 1, 3, 9]))
    keys, value = [*range(first, first + count)], draw(st.integers(1, 99))
    values = [value + key / 4 for key in keys]
    table = draw(st.sampled_from([TABLES[0], TABLES[0], TABLES[1]]))
    if not table.is_float:
        values = [value * 100 + key for key in keys]
    stamps = keys if draw(st.booleans()) else None
    call = Call(op, table, keys, values, stamps, draw(st.booleans()))
    restarts = draw(st.sampled_from([False, False, False, True]))
    breaks = draw(st.sampled_from(["", "", "", "early"]))
    return Act(draw(st.sampled_from(["n1", "n1", "n2"])), [call], restarts, breaks)


HISTORIES = st.lists(st.lists(acts(), min_size=1, max_size=2), min_size=3, max_size=9)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("full_state", "shard", "table"):
            patch.setattr(f"broker.core.tables.{module}.BLOCK_SLOTS", SLOTS)
        yield


@dataclass
class Step:
    """The full state between two writes to it.

    Attributes:
        fields: of the tables hash.
        snapshot: up to where it is complete.
        newest: no field is from beyond.
        cut: the log begins after this offset.
    """

    fields: dict[str, bytes] = field(default_factory=dict)
    snapshot: int = 0
    newest: int = 0
    cut: int = 0


@dataclass(frozen=True)
class Round:
    """One round of a scheduler.

    Attributes:
        batches: how many it takes of the log.
        fields: after how many fields it dies; None: it commits.
        cuts: whether the log is cut then up to the full state before.
        is_new: another scheduler, which has to load first.
    """

    batches: int
    fields: int | None
    cuts: bool
    is_new: bool


ROUNDS = st.lists(
    st.builds(
        Round, st.integers(1, 4), st.none() | st.integers(0, 6), st.booleans(), st.booleans()
    ),
    min_size=2,
    max_size=5,
)


def replay(tables: ShardTables, batches: list[list[Chunk]], first: int, last: int) -> None:
    """Apply the batches after one offset up to another."""
    for offset in range(first + 1, last + 1):
        for chunk in batches[offset - 1]:
            tables.apply(chunk, offset)


class Schedulers:
    """Successive schedulers, and every step of their writes."""

    def __init__(self, batches: list[list[Chunk]]) -> None:
        self.batches = batches
        self.steps = [Step()]
        self.tables: ShardTables | None = None

    def write(self, fields: dict[str, bytes], gone: list[str], **marks: int) -> None:
        """Write fields at once."""
        last = self.steps[-1]
        kept = {name: one for name, one in (last.fields | fields).items() if name not in gone}
        self.steps.append(
            Step(
                kept,
                marks.get("snapshot", last.snapshot),
                max(last.newest, marks.get("newest", 0)),
                marks.get("cut", last.cut),
            )
        )

    def round(self, one: Round) -> None:
        """Fold a portion of the log and write it, as `workers.snapshot` does."""
        before = self.steps[-1]
        start = before.snapshot
        if one.is_new or self.tables is None:
            self.tables = ShardTables.loaded(before.fields, start, tracks=True)
        tables, self.tables = self.tables, None
        # A portion reaches at least as far as pages that are there.
        goal = min(len(self.batches), max(start + one.batches, before.newest))
        replay(tables, self.batches, start, goal)
        changed = list(tables.changed_fields(goal))
        for name, content in changed[: one.fields]:
            self.write({name: content}, [], newest=goal)
        if one.fields is None or one.fields > len(changed):
            self.write({}, tables.over(before.cut), newest=goal)
            tables.clean(before.cut)
            self.write({}, [], snapshot=goal, newest=goal, cut=start if one.cuts else before.cut)
            self.tables = tables


@st.composite
def readings(draw: st.DrawFn, steps: list[Step]) -> tuple[Step, dict[str, bytes], Step]:
    """Return where a load began, what it read, and where it ended."""
    begin = draw(st.integers(0, len(steps) - 1))
    end = draw(st.integers(begin, len(steps) - 1) | st.just(len(steps) - 1))
    moments = st.sampled_from([begin, end]) | st.integers(begin, end)
    names = sorted({name for step in steps[begin : end + 1] for name in step.fields})
    read = {}
    for name in names:
        content = steps[draw(moments)].fields.get(name)
        if content is not None:
            read[name] = content
    return steps[begin], read, steps[end]


@pytest.mark.timeout(900)  # shrinking a failure takes minutes
@settings(max_examples=examples(600))
@given(HISTORIES, ROUNDS, st.data())
def test_a_load_of_any_mixture_and_the_log_are_the_history(
    history: list[list[Act]], rounds: list[Round], data: st.DataObject
) -> None:
    """Values, timestamps, slots, what ids mean and since when; or the log begins too late."""
    batches, model = chunks_of(history), Model()
    schedulers = Schedulers(batches)
    for one in rounds:
        schedulers.round(one)
    begin, read, end = data.draw(readings(schedulers.steps))
    for chunk in (chunk for batch in batches for chunk in batch):
        if not chunk.tables_fault:
            model.apply(chunk)
    if end.cut > begin.snapshot:
        return  # what the log no longer has is loaded anew
    tables = ShardTables.loaded(read, begin.snapshot)
    assert tables.newest <= end.newest
    replay(tables, batches, begin.snapshot, len(batches))
    assert told(tables) == model.told()
    right = ShardTables()
    replay(right, batches, 0, len(batches))
    assert tables.differences(right) == []


@pytest.mark.timeout(900)
@settings(max_examples=examples(200))
@given(HISTORIES, ROUNDS)
def test_what_schedulers_wrote_in_the_end_is_the_history(
    history: list[list[Act]], rounds: list[Round]
) -> None:
    """A committed full state is exactly that of its position, however many schedulers crash."""
    batches, model = chunks_of(history), Model()
    schedulers = Schedulers(batches)
    for one in [*rounds, Round(len(batches), None, cuts=False, is_new=True)]:
        schedulers.round(one)
    last = schedulers.steps[-1]
    assert last.snapshot == len(batches)
    for chunk in (chunk for batch in batches for chunk in batch):
        if not chunk.tables_fault:
            model.apply(chunk)
    assert told(ShardTables.loaded(last.fields, last.snapshot)) == model.told()


def test_a_slow_load_still_knows_ids_that_ended_since() -> None:
    """A load that outlasts two full states still has the log and its ids."""
    table = TABLES[0]

    def act(key: int, *, restarts: bool = False) -> list[Act]:
        return [Act("n1", [Call(OP_SET, table, [key], [key], None, again=False)], restarts)]

    # The first incarnation sets 1 and 2; the second ends its ids at offset 3.
    batches = chunks_of([act(1), act(2), act(3, restarts=True), act(4), act(5), act(6)])
    schedulers = Schedulers(batches)
    begin = 0
    for number in range(6):
        schedulers.round(Round(1, None, cuts=False, is_new=number == 4))
        if number == 0:
            begin = len(schedulers.steps) - 1
    first, last = schedulers.steps[begin], schedulers.steps[-1]
    read = last.fields | {f"t:{table.kind}:v:0": first.fields[f"t:{table.kind}:v:0"]}
    tables = ShardTables.loaded(read, first.snapshot)
    replay(tables, batches, first.snapshot, len(batches))
    assert told(tables) == told(ShardTables.loaded(last.fields, last.snapshot))


def test_ids_are_forgotten_with_the_log_that_needs_them() -> None:
    """Their field is removed by a later scheduler, old or new."""
    table = TABLES[0]

    def act(key: int, *, restarts: bool = False) -> list[Act]:
        return [Act("n1", [Call(OP_SET, table, [key], [key], None, again=False)], restarts)]

    batches = chunks_of([act(1), act(2, restarts=True), act(3), act(4), act(5)])
    schedulers = Schedulers(batches)
    for is_new in (False, False, True, False, True):
        schedulers.round(Round(1, None, cuts=True, is_new=is_new))
    assert schedulers.steps[-1].cut > 2
    ids = [name for name in schedulers.steps[-1].fields if ":d:" in name]
    assert ids == [f"t:{table.kind}:d:2:n1"]


def test_ids_are_known_from_the_batch_on_that_defined_them() -> None:
    """Who loads what a scheduler wrote ahead refuses the same chunks, wherever the log begins."""
    table, offsets = TABLES[0], range(1, 7)

    def act(key: int, breaks: str = "") -> list[Act]:
        return [Act("n1", [Call(OP_SET, table, [key], [key], None, again=False)], breaks=breaks)]

    batches = chunks_of([act(1), act(9, "early"), act(2), act(9, "early"), act(3), act(4)])
    writer = ShardTables(tracks=True)
    faults = [
        writer.apply(chunk, offset).fault for offset, (chunk,) in zip(offsets, batches, strict=True)
    ]
    assert list(map(bool, faults)) == [False, True, False, True, False, False]
    for cut in (0, 2, 3, 5):
        # No reader begins before the log does.
        ((_, _, ids),) = writer.tables[table].producers()
        ids.forget_counts(cut)
        for position in range(cut, 6):
            reader = ShardTables.loaded(dict(writer.changed_fields(6)), position)
            for offset in offsets[position:]:
                (chunk,) = batches[offset - 1]
                assert reader.apply(chunk, offset).fault == faults[offset - 1]
            assert told(reader) == told(writer)
    assert ids.counts == [(3, 5), (4, 6)]
