"""How deltas change values: examples, and a reference that applies one delta at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from broker.core.fold import Tally, decode_chunks, fold
from broker.protocol.codec import encode_chunk
from broker.protocol.constants import INT_MAX, INT_MIN
from broker.protocol.messages import Batch, Chunk, Run
from broker.protocol.operations import OP_DELETE, OP_INCREMENT, OP_SET, OPERATIONS
from tests.check_sums import checked
from tests.unit.exactness import exact, held, read
from tests.unit.model_history import Delta, apply_delta, runs_of
from tests.unit.strategies import NUMBERS, VALUES

INF = float("inf")


def incremented(value: Any, amount: Any) -> int | float | None:
    """Return what a key of this value holds after an increment; None if that is refused."""
    values = {"k": value}
    _, refused = OPERATIONS[OP_INCREMENT].effect(values, ["k"], [amount])
    assert not refused or values["k"] is value
    return None if refused else values["k"]


def batch_of(*chunks: Chunk, offset: int = 5, promised: int | None = None) -> Batch:
    """Return a batch of these chunks."""
    deltas = sum(chunk.deltas for chunk in chunks) if promised is None else promised
    data = [encode_chunk(chunk) for chunk in chunks]
    return Batch(0, b"epoch--1", offset, b"batch--5", b"batch--4", 0, 9, 1, 0, deltas, data)


def folded(values: dict[str, Any], *runs: Run, **options: Any) -> Tally:
    """Fold one chunk of these runs into `values`."""
    chunk = Chunk("n1", 1, 1, 77, [*runs])
    return fold(values, batch_of(chunk), [chunk], **options)


def test_a_sum_that_is_no_number_has_one_form() -> None:
    """Processors differ in its sign, and digests of replicas have to agree."""
    total = incremented(float("inf"), float("-inf"))
    assert isinstance(total, float)
    assert struct.pack(">d", total).hex() == "7ff8000000000000"


# -- increments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "amount", "total"),
    [
        (0, 1, 1),
        (5, -7, -2),
        (INT_MAX, 0, INT_MAX),
        (INT_MAX - 1, 1, INT_MAX),
        (INT_MIN + 1, -1, INT_MIN),
        (INT_MIN, INT_MAX, INT_MAX + INT_MIN),
        (1, 0.5, 1.5),
        (1, 1.0, 2.0),
        (0.5, 1, 1.5),
        (0.5, 0.25, 0.75),
        (INT_MAX, 1.0, 18446744073709551616.0),
        (1e308, 1e308, INF),
        (INF, -1, INF),
        (-0.0, 0, 0.0),
        ((1 << 53) + 1, 0.0, float(1 << 53)),
    ],
)
def test_numbers_add_up_and_keep_their_kind(value: float, amount: float, total: float) -> None:
    """Integers stay integers; with a float on either side the sum is a float64."""
    assert exact(incremented(value, amount)) == exact(total)


def test_infinities_of_both_signs_are_not_a_number() -> None:
    """The sum of both infinities is NaN, as in IEEE 754, and stays NaN."""
    assert exact(incremented(INF, -INF)) == exact(float("nan"))
    assert exact(incremented(float("nan"), 1)) == exact(float("nan"))


@pytest.mark.parametrize("value", [True, False, None, "1", b"1", [], {}, [1]])
@pytest.mark.parametrize("amount", [1, 1.5])
def test_what_is_not_a_number_is_not_incremented(value: object, amount: float) -> None:
    """The delta is refused and counted, the value stays."""
    assert incremented(value, amount) is None
    values = {"k": value}
    tally = folded(values, Run(OP_INCREMENT, ["k"], [amount]))
    assert exact(values) == exact({"k": value})
    assert (tally.refused, tally.applied) == (1, 0)


@pytest.mark.parametrize(("value", "amount"), [(INT_MAX, 1), (INT_MIN, -1), (1, INT_MAX)])
def test_integers_do_not_leave_their_range(value: int, amount: int) -> None:
    """A delta beyond the range is refused; those before and after it count."""
    assert incremented(value, amount) is None
    values = {"k": value}
    tally = folded(values, Run(OP_INCREMENT, ["k", "k", "l"], [amount, 0, 2]))
    assert values == {"k": value, "l": 2}
    assert (tally.refused, tally.applied) == (1, 2)


def test_an_absent_key_counts_as_zero() -> None:
    """An integer zero, so that an integer amount gives an integer."""
    values: dict[str, Any] = {}
    folded(values, Run(OP_INCREMENT, ["i", "f"], [3, 0.5]))
    assert exact(values) == exact({"i": 3, "f": 0.5})


# -- order ----------------------------------------------------------------------------------------


def test_runs_and_keys_apply_in_their_order() -> None:
    """The later delta wins, within a run and between runs, chunks and batches."""
    values: dict[str, Any] = {}
    folded(
        values,
        Run(OP_SET, ["a", "a", "b"], [1, 2, 1]),
        Run(OP_INCREMENT, ["a", "b"], [10, 10]),
        Run(OP_DELETE, ["b"], None),
        Run(OP_INCREMENT, ["b"], [5]),
        Run(OP_SET, ["c"], ["x"]),
        Run(OP_DELETE, ["c", "c", "never"], None),
    )
    assert values == {"a": 12, "b": 5}
    one, two = (Chunk("n", 1, n, 0, [Run(OP_SET, ["a"], [n])]) for n in (1, 2))
    fold(values, batch_of(one, two), [one, two])
    assert values["a"] == 2


# -- floors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("floor", "applies"), [(0, True), (4, True), (5, False), (6, False)])
@pytest.mark.parametrize("op", [OP_SET, OP_DELETE, OP_INCREMENT])
def test_what_a_key_already_holds_is_not_applied_again(
    op: int, floor: int, *, applies: bool
) -> None:
    """A floor is the offset up to which a key was folded; deltas of that batch are in it."""
    values = {"k": 1, "other": 1}
    columns: dict[int, list[Any] | None] = {OP_SET: [9, 9], OP_DELETE: None, OP_INCREMENT: [8, 8]}
    column = columns[op]
    expected = {"k": 9, "other": 9} if column else {}
    tally = folded(values, Run(op, ["k", "other"], column), floors={"k": floor})
    if not applies:
        expected["k"] = 1
    assert values == expected
    assert (tally.superseded, tally.applied) == ((0, 2) if applies else (1, 1))


# -- broken chunks and the tally ------------------------------------------------------------------


def test_broken_chunks_come_apart_and_the_others_count() -> None:
    """Their place and bytes are kept for inspection, with the rule they broke."""
    good = [Chunk("n", 1, n, 0, [Run(OP_INCREMENT, ["k"], [1])]) for n in (1, 2)]
    batch = batch_of(*good, promised=7)
    batch.chunks.insert(1, checked(b"\xc1"))
    batch.chunks.append(encode_chunk(Chunk("n", 1, 3, 0, [Run(9, ["k"], [1])])))
    chunks, bad = decode_chunks(batch)
    assert chunks == good
    assert [(one.offset, one.index, one.data) for one in bad] == [
        (5, 1, checked(b"\xc1")),
        (5, 3, batch.chunks[3]),
    ]
    assert "MessagePack" in bad[0].fault
    assert "operation 9" in bad[1].fault
    values: dict[str, Any] = {}
    assert fold(values, batch, chunks) == Tally(deltas=7, applied=2, skipped=5)
    assert values == {"k": 2}


def test_tallies_add_up_part_by_part() -> None:
    """Counters add up over the lifetime of a replica."""
    total = Tally(10, 5, 2, 2, 1)
    total.add(Tally(100, 50, 20, 20, 10))
    assert total == Tally(110, 55, 22, 22, 11)


@given(st.integers(0, 5))
def test_a_producer_that_told_too_few_deltas_makes_no_part_negative(promised: int) -> None:
    """Every part is at least 0 when a producer promised too few deltas."""
    chunk = Chunk("n", 1, 1, 0, [Run(OP_INCREMENT, ["bad", "k", "k"], [1, 1, 1])])
    values: dict[str, Any] = {"bad": "text"}
    tally = fold(values, batch_of(chunk, promised=promised), [chunk])
    assert values == {"bad": "text", "k": 2}
    assert min(tally.applied, tally.refused, tally.superseded, tally.skipped) >= 0


# -- against the reference ------------------------------------------------------------------------

FEW_KEYS = st.sampled_from(["a", "b", "c"])
DELTAS = st.one_of(
    st.tuples(st.just(OP_SET), FEW_KEYS, VALUES | NUMBERS),
    st.tuples(st.just(OP_INCREMENT), FEW_KEYS, NUMBERS | st.sampled_from([1, 2.5])),
    st.tuples(st.just(OP_DELETE), FEW_KEYS, st.none()),
)
CONTENTS = st.dictionaries(FEW_KEYS, VALUES | NUMBERS)
FLOORS = st.dictionaries(FEW_KEYS, st.integers(0, 6))


@given(CONTENTS, st.lists(st.lists(DELTAS, min_size=1, max_size=8), max_size=4), FLOORS)
def test_both_ways_through_the_fold_agree_with_the_reference(
    before: dict[str, Any], chunks_of_deltas: list[list[Delta]], floors: dict[str, int]
) -> None:
    """Whole columns, single deltas with an observer, and the reference agree."""
    chunks = [Chunk("n", 1, n, n, runs_of(deltas)) for n, deltas in enumerate(chunks_of_deltas, 1)]
    batch = batch_of(*chunks, offset=4)
    reference, refused, superseded = deepcopy(before), 0, 0
    for delta in (delta for deltas in chunks_of_deltas for delta in deltas):
        if floors.get(delta[1], 0) >= 4:
            superseded += 1
        elif not apply_delta(reference, delta):
            refused += 1

    fast, watched, mirror = held(before), held(before), held(before)

    def observe(
        operation: str, keys: Sequence[str], values: Iterable[Any], _stamps: Iterable[int]
    ) -> None:
        for key, value in zip(keys, values, strict=True):
            if operation == "delete":
                assert value is None
                del mirror[key]
            else:
                mirror[key] = value

    tally = fold(fast, batch, chunks, floors)
    assert fold(watched, batch, chunks, floors, observe) == tally
    assert exact(fast) == exact(watched) == exact(mirror)
    assert exact(read(fast)) == exact(reference)
    assert (tally.refused, tally.superseded, tally.skipped) == (refused, superseded, 0)
    assert tally.applied == tally.deltas - refused - superseded


@given(st.lists(DELTAS, min_size=1, max_size=6), st.booleans())
def test_a_fold_leaves_the_chunk_as_it_was(deltas: list[Delta], watched: bool) -> None:  # noqa: FBT001 - drawn
    """The same batch may be folded into a load as well as into what is held."""
    chunk = Chunk("n", 1, 1, 1, runs_of(deltas))
    before = encode_chunk(chunk)
    fold({}, batch_of(chunk), [chunk], {"a": 9}, (lambda *_: None) if watched else None)
    assert encode_chunk(chunk) == before


def test_an_observer_hears_the_time_of_each_delta() -> None:
    """An observer gets the delta's timestamp if it has one, else the chunk's."""
    heard: list[tuple[Any, ...]] = []
    folded(
        {"c": 1},
        Run(OP_SET, ["a", "b"], [1, None], [5, 6]),
        Run(OP_DELETE, ["c", "never"], None, [7, 8]),
        Run(OP_INCREMENT, ["a"], [1]),
        observe=lambda operation, *columns: heard.extend(
            (operation, *told) for told in zip(*columns, strict=False)
        ),
    )
    assert heard == [
        ("set", "a", 1, 5),
        ("set", "b", None, 6),
        ("delete", "c", None, 7),
        ("increment", "a", 2, 77),
    ]
